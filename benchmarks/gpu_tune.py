"""Tile sizes timed on the device, for the table in attn_kernels/triton/configs.py: the default of
each kernel, and a few that its machine code recommends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from attn_kernels.triton.configs import Config, candidates, fits
from attn_kernels.triton.launch import Call, forward, launch_forward
from attn_kernels.triton.launch_backward import Backward

from . import gpu_calls, gpu_values
from .gpu_calls import Work

TMA = "described"
LATE = "late", TMA


class Change(NamedTuple):
    """What is tried instead of the default: a name, and the settings that differ."""

    name: str
    settings: tuple[tuple[str, Any], ...]


DEFAULT = Change("default", ())


def tile(block_q: int, block_k: int, num_warps: int, num_stages: int, *ways: str) -> Change:
    """A configuration, whatever the default is."""
    named = {way: way in ways for way in (*LATE, "whole")}
    config = asdict(Config(block_q, block_k, num_warps, num_stages, **named))
    name = " ".join((f"{block_q}x{block_k} {num_warps} {num_stages}", *ways))
    return Change(name, tuple(config.items()))


def without(*ways: str) -> Change:
    """The default without these."""
    return Change(f"without {' '.join(ways)}", tuple((way, False) for way in ways))


# By group, head dim and kernel. CONTRIBUTING.md says what is expected of them.
TRIED: dict[tuple[str, int, str], tuple[Change, ...]] = {
    ("causal", 128, "forward"): (without(*LATE), tile(128, 64, 8, 3, *LATE)),
    ("causal", 128, "grad_q"): (without(TMA), tile(64, 64, 4, 2, TMA)),
    ("causal", 128, "grad_kv"): (tile(32, 128, 8, 2), tile(64, 64, 4, 2)),
    ("causal", 64, "forward"): (without(*LATE), tile(64, 128, 4, 3, *LATE)),
    ("causal", 64, "grad_q"): (without(TMA), tile(64, 64, 4, 2, TMA)),
    ("causal", 64, "grad_kv"): (tile(64, 64, 4, 2), tile(32, 128, 8, 2)),
    ("relative", 128, "forward"): (tile(128, 64, 8, 2, *LATE, "whole"), tile(64, 32, 4, 2)),
    ("relative", 128, "grad_q"): (tile(64, 32, 4, 2, TMA, "whole"), tile(32, 32, 4, 2)),
    ("relative", 128, "grad_kv"): (tile(32, 32, 4, 2), tile(64, 64, 4, 2)),
    ("relative", 64, "forward"): (tile(128, 64, 8, 2, *LATE, "whole"), tile(64, 64, 4, 2)),
    ("relative", 64, "grad_q"): (tile(64, 32, 4, 2, TMA), tile(64, 32, 4, 2, TMA, "whole")),
    ("relative", 64, "grad_kv"): (tile(64, 128, 8, 2, TMA), tile(64, 64, 4, 2)),
    ("local_2d", 128, "forward"): (tile(64, 64, 4, 2), tile(64, 128, 4, 2)),
    ("local_2d", 128, "grad_q"): (tile(64, 32, 4, 2),),
    ("local_2d", 128, "grad_kv"): (tile(32, 64, 4, 2), tile(64, 64, 4, 1)),
    ("local_2d", 64, "forward"): (tile(64, 64, 4, 2), tile(64, 128, 4, 2)),
    ("local_2d", 64, "grad_q"): (tile(64, 32, 4, 2),),
    ("local_2d", 64, "grad_kv"): (tile(32, 64, 4, 2), tile(64, 64, 4, 3)),
}  # fmt: skip


def tried() -> Iterator[tuple[Work, str, Change]]:
    """The bars' shapes, but the longest, each kernel's default first."""
    for work in gpu_calls.bars():
        if work.backward or work.label == "L 16384":
            continue
        for direction in ("forward", "grad_q", "grad_kv"):
            if changes := TRIED.get((work.group, work.dim, direction)):
                yield from ((work, direction, change) for change in (DEFAULT, *changes))


def call_of(work: Work, inputs: list[Tensor]) -> Call:
    q, k, v, *table = inputs
    geometry, scale = work.geometry, work.dim**-0.5
    return Call.of(
        q, k, v, table[0] if table else None, None, None, None, None,
        geometry.table_for("triton", q.device), work.offset,
        geometry.name, geometry.extent(), True, scale, scale,
    )  # fmt: skip


def prepared(
    call: Call, work: Work, direction: str
) -> tuple[Callable[[Config], object], Callable[[], dict[int, Tensor]]]:
    """A launch of one kernel, and its results by their place in what truth_of returns."""
    out, lse = forward(call)
    if direction == "forward":
        return lambda config: launch_forward(call, config, out, lse), lambda: {0: out}
    backward = Backward(call, gpu_values.gradient_of(work), out, None, lse)
    launches = dict(backward.steps())
    launches[None](None)

    def results() -> dict[int, Tensor]:
        if direction == "grad_kv":
            return {2: backward.grad_k, 3: backward.grad_v}
        return {1: backward.grad_q} | dict(enumerate(backward.table_gradients(), 4))

    return launches[direction], results


@cache
def expected(work: Work) -> list[Tensor]:
    return gpu_values.sampled_truth(work, work.inputs(), both_ways=True)


def time_tile(work: Work, direction: str, change: Change, compile_only: bool = False) -> dict:
    """One configuration of one kernel: compiled, compared and timed."""
    call = call_of(work, [x.detach() for x in work.inputs()])
    kind = call.kind(direction)
    default = candidates(kind)[0]
    config = replace(default, **dict(change.settings))
    row: dict[str, Any] = {"direction": direction, "config": asdict(config)}
    if change != DEFAULT and config == default:
        return row | {"left_out": "it is the default"}
    if not fits(kind, config):
        return row | {"left_out": "it does not fit"}
    launch, results = prepared(call, work, direction)
    launch(config)
    gpu_values.synchronize()
    if compile_only:
        return row
    found = results()
    values = [gpu_values.sampled(work, x, place) for place, x in found.items()]
    error = gpu_values.errors(values, [expected(work)[place] for place in found])
    row["errors"] = error
    if not gpu_values.within(error, gpu_values.TOLERANCE[work.dtype]):
        return row | {"wrong": [direction]}
    return row | {"milliseconds": gpu_values.milliseconds(lambda: launch(config))}
