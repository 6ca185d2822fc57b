"""Tile sizes timed on the device, for the table in attn_kernels/triton/configs.py.

For every shape and every kernel of it: all sizes of `searched` are compiled and compared with the
float64 reference, several at a time; those with right values are then timed one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from attn_kernels.triton.configs import Config, Kind, candidates, fits
from attn_kernels.triton.launch import Call, forward, launch_forward
from attn_kernels.triton.launch_backward import Backward

from . import gpu_values
from .gpu_calls import Work
from .worker import JobError, Worker, run_all


def searched(kind: Kind) -> list[Config]:
    """The candidates of configs.py, and every other size that fits, in every way."""
    sizes = (32, 64, 128)
    ways: list[dict[str, bool]] = [{}]
    if kind.describable and kind.arch >= 90:
        ways.append({"described": True, "late": kind.direction == "forward"})
    if kind.relative and kind.direction != "grad_kv":
        ways += [way | {"whole": True} for way in ways]
    grid = [Config(*x, **way) for way in ways for x in product(sizes, sizes, (4, 8), (1, 2, 3))]
    return list(dict.fromkeys([*candidates(kind), *(x for x in grid if fits(kind, x))]))


def call_of(work: Work, inputs: list[Tensor]) -> Call:
    q, k, v, *table = inputs
    geometry, scale = work.geometry, work.dim**-0.5
    return Call.of(
        q, k, v, table[0] if table else None, None, None, None, None,
        geometry.table_for("triton", q.device), work.offset,
        geometry.name, geometry.extent(), True, scale, scale,
    )  # fmt: skip


def directions(work: Work) -> list[str]:
    if not work.backward:
        return ["forward"]
    return ["grad_q", "grad_kv"]


def configs_of(work: Work) -> list[tuple[str, Kind, Config]]:
    """What is tried for a shape."""
    call = call_of(work, work.inputs())
    kinds = [(name, call.kind(name)) for name in directions(work)]
    return [(name, kind, config) for name, kind in kinds for config in searched(kind)]


def prepared(
    work: Work, direction: str
) -> tuple[Callable[[Config], object], Callable[[], dict[int, Tensor]]]:
    """A launch of one kernel, and its results by their place in what truth_of returns."""
    call = call_of(work, [x.detach() for x in work.inputs()])
    out, lse = forward(call)
    if direction == "forward":
        return lambda config: launch_forward(call, config, out, lse), lambda: {0: out}
    backward = Backward(call, gpu_values.gradient_of(work, call.q.dtype), out, None, lse)
    launches = dict(backward.steps())
    launches[None](None)

    def results() -> dict[int, Tensor]:
        if direction == "grad_kv":
            return {2: backward.grad_k, 3: backward.grad_v}
        return {1: backward.grad_q} | dict(enumerate(backward.table_gradients(), 4))

    return launches[direction], results


@cache
def expected(work: Work) -> list[Tensor]:
    return gpu_values.sampled_truth(work, work.inputs())


def errors_of(work: Work, direction: str, config: Config) -> tuple[float, float]:
    """Compile, run, compare."""
    launch, results = prepared(work, direction)
    launch(config)
    found = results()
    values = [gpu_values.sampled(work, x, place) for place, x in found.items()]
    return gpu_values.errors(values, [expected(work)[place] for place in found])


def milliseconds_of(work: Work, direction: str, config: Config) -> float:
    launch, _ = prepared(work, direction)
    return gpu_values.milliseconds(lambda: launch(config))


def tune(
    report: Any, works: list[Work], worker: Worker, processes: int, seconds: Callable[[], float]
) -> bool:
    """Fill report.configs; False if any size gives wrong values."""
    limits = gpu_values.TOLERANCE[torch.bfloat16]
    fine = True
    for work in works:
        if seconds() <= 0:
            break
        tried = worker.run((configs_of, work), seconds())
        jobs = [(errors_of, work, direction, config) for direction, _, config in tried]
        found = run_all(jobs, processes, seconds)
        rows = []
        for (direction, kind, config), error in zip(tried, found, strict=True):
            row = {"group": work.group, "work": work.label, "direction": direction}
            row |= {"kind": asdict(kind), "config": asdict(config)}
            if isinstance(error, JobError):
                row["failed"] = str(error)
            elif not gpu_values.within(error, limits):
                fine = False
                row |= {"errors": error, "failed": "wrong values"}
            else:
                try:
                    job = (milliseconds_of, work, direction, config)
                    row |= {"errors": error, "milliseconds": worker.run(job, seconds())}
                except JobError as late:
                    row["failed"] = str(late)
            rows.append(row)
        report.configs += rows
        report.write()
        for direction in directions(work):
            timed = [x for x in rows if x["direction"] == direction and "milliseconds" in x]
            print(work.group, work.label, direction, f"{len(timed)} sizes", flush=True)
            for row in sorted(timed, key=lambda x: x["milliseconds"])[:5]:
                config = Config(**row["config"])
                print(f"  {row['milliseconds']:.3f} ms  {config}", flush=True)
    return fine
