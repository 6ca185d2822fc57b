"""What the processes of benchmarks.gpu do: each function makes what one row of the file tells."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch
import triton

from attn_kernels import __version__

from . import gpu_calls, report
from .gpu_calls import OURS, PROVIDERS, Work
from .gpu_values import (
    NAMES,
    TOLERANCE,
    captured,
    clocks,
    error_of,
    errors,
    gradient_of,
    host_microseconds,
    kernel_milliseconds,
    milliseconds,
    out_and_gradients,
    peak_bytes,
    sampled,
    sampled_truth,
    step_of,
    synchronize,
    truth_of,
    within,
)

Row = dict[str, Any]
ROUNDS = 3
REPEATS = 20  # asynchronous copies that lack a fence would show as rare differences
PEER_TOLERANCE = (0.2, 5e-2)  # a peer may round its bias
CEILING = 8192  # rows of the square matrices whose product is timed


def environment(commit: str) -> Row:
    """The device, the versions and the commit that results belong to."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "python": platform.python_version(),
        "attn_kernels": __version__,
        "commit": commit or report.commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def ceilings() -> Row:
    """What the device can do at best: bytes read and written by a copy, a product in bfloat16."""
    draw = lambda *size: torch.randn(size, device=gpu_calls.DEVICE, dtype=torch.bfloat16)  # noqa: E731
    a, b = draw(CEILING, CEILING), draw(CEILING, CEILING)
    source = a.repeat(16, 1)
    target = torch.empty_like(source)
    copy, product = milliseconds(lambda: target.copy_(source)), milliseconds(lambda: a @ b)
    for _ in range(100):  # the clocks are read while these run
        a @ b
    return {
        "gigabytes_per_second": 2 * source.nbytes / copy / 1e6,
        "tflops": 2 * CEILING**3 / product / 1e9,
        "clocks": clocks(),
    }


def check(work: Work) -> Row:
    """Values and all gradients of one small shape."""
    inputs, grad_out = work.inputs(), gradient_of(work)
    values = out_and_gradients(PROVIDERS[OURS](work), inputs, grad_out)
    truth = truth_of(work, inputs, grad_out)
    found = {name: error_of(x, y) for name, x, y in zip(NAMES, values, truth, strict=False)}
    limits = TOLERANCE[work.dtype]
    return {"errors": found, "wrong": [x for x in found if not within(found[x], limits)]}


def compile_work(work: Work) -> Row:
    """Run once, so that triton's cache on disk has the kernels."""
    start = time.monotonic()
    call, inputs = PROVIDERS[OURS](work), work.inputs()
    if work.group == "decode":
        call(*inputs)
    else:
        out_and_gradients(call, inputs, gradient_of(work))
    synchronize()
    return {"seconds": time.monotonic() - start}


def steadiness(work: Work) -> Row:
    """Out and gradients at a timed shape, bit by bit: again and again, and as a CUDA graph that is
    replayed with other inputs."""
    call, inputs, grad_out = PROVIDERS[OURS](work), work.inputs(), gradient_of(work)
    values: list[Any] = []

    def step() -> None:
        values[:] = out_and_gradients(call, inputs, grad_out)

    def different(first: list[Any]) -> list[str]:
        synchronize()
        return [n for n, x, y in zip(NAMES, first, values, strict=False) if not torch.equal(x, y)]

    step()
    first, changed = list(values), [0] * len(values)
    for _ in range(REPEATS):
        step()
        for name in different(first):
            changed[NAMES.index(name)] += 1
    del first
    replay = captured(step)
    with torch.no_grad():
        for x in inputs:
            x.copy_(x.flip(-1))
    replay()
    synchronize()
    replayed = list(values)
    step()
    row = {"repeats": REPEATS, "changed": dict(zip(NAMES, changed, strict=False))}
    row["graph"] = different(replayed)
    return row | {"wrong": [n for n, x in row["changed"].items() if x] + row["graph"]}


def kernels(work: Work) -> Row:
    """What each kernel takes of a call and its gradients."""
    call, inputs, grad_out = PROVIDERS[OURS](work), work.inputs(), gradient_of(work)
    step = lambda: out_and_gradients(call, inputs, grad_out)  # noqa: E731
    return {"milliseconds": kernel_milliseconds(step)}


@dataclass
class Measured:
    """One provider on one shape."""

    milliseconds: float | None = None
    rounds: list[float] = field(default_factory=list)
    host_microseconds: float | None = None
    tflops: float | None = None
    gigabytes_per_second: float | None = None
    peak_bytes: int | None = None
    error: tuple[float, float] | None = None
    skipped: str = ""


def measure(work: Work) -> Row:
    """Every provider on one shape, in turns."""
    found = {name: Measured() for name in (OURS, *work.peers)}
    steps = {}
    inputs = work.inputs()
    truth = sampled_truth(work, inputs, work.backward)
    for name, row in found.items():
        try:
            step = step_of(work, PROVIDERS[name](work), inputs)
            row.error = errors([sampled(work, x, i) for i, x in enumerate(step())], truth)
            if not within(row.error, TOLERANCE[work.dtype] if name == OURS else PEER_TOLERANCE):
                row.skipped = f"wrong values: errors {row.error[0]:.2g}, {row.error[1]:.2g}"
                continue
            row.peak_bytes = peak_bytes(step)
            row.host_microseconds = host_microseconds(step)
            steps[name] = captured(step) if work.group == "decode" else step
        except Exception as error:  # peers fail in many ways; the report says how
            row.skipped = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
            synchronize()  # raises where the error broke the context, and this process with it
    names = list(steps)
    for turn in range(ROUNDS):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            found[name].rounds.append(milliseconds(steps[name]))
    for name in names:
        row = found[name]
        row.milliseconds = ms = median(row.rounds)
        row.tflops = work.flops() / ms / 1e9
        if work.group == "decode":
            cache_bytes = 4 * work.batch * work.k_heads * work.k_len * work.dim
            row.gigabytes_per_second = cache_bytes / ms / 1e6
    return {
        "work": f"{work.label} D {work.dim}",
        "shape": [work.batch, work.heads, work.k_heads, work.q_len, work.k_len],
        "dim": work.dim,
        "backward": work.backward,
        "providers": {name: asdict(row) for name, row in found.items()},
    }


def both_ways_once(work: Work) -> Work:
    """Of works that are the same forward and backward, one."""
    return replace(work, backward=work.group != "decode", peers=())
