"""How benchmarks.gpu compares with float64, and how it times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from attn_kernels import Relative
from attn_kernels.core import reference

from . import gpu_calls
from .gpu_calls import Call, Work

MILLISECONDS = 60  # of repetitions in each round
HOST_CALLS = 10  # few enough to wait in the device's queue
REFERENCE_ELEMENTS = 1 << 26  # of a matrix of the float64 reference
# Largest and mean error, relative to the largest and mean value.
TOLERANCE = {
    torch.bfloat16: (2e-2, 1.2e-2),
    torch.float16: (4e-3, 2e-3),
    torch.float32: (2e-5, 5e-6),
}


def gradient_of(work: Work, dtype: torch.dtype) -> Tensor:
    """The gradient of out: the same values every time."""
    generator = torch.Generator(gpu_calls.DEVICE).manual_seed(1)
    size = (work.batch, work.heads, work.q_len, work.dim)
    return torch.randn(size, generator=generator, device=gpu_calls.DEVICE).to(dtype)


def step_of(
    call: Call, inputs: list[Tensor], grad_out: Tensor, backward: bool
) -> Callable[[], list[Tensor]]:
    """The timed step: forward without gradients, or backward alone."""
    if not backward:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [call(*inputs)]

        return forward
    out = call(*inputs)
    return lambda: [
        out.detach(), *torch.autograd.grad(out, inputs, grad_out, retain_graph=True)
    ]  # fmt: skip


def sampled(work: Work, x: Tensor, place: int) -> Tensor:
    """What belongs to the last key head of every batch entry.

    place: 0 out, 1 q, 2 k, 3 v, 4 the table, or their gradients.
    """
    group = work.heads // work.k_heads
    if place == 4:
        return x[-group:]
    return x[:, -(1 if place in (2, 3) else group) :]


def truth_of(work: Work, inputs: list[Tensor], grad_out: Tensor) -> list[Tensor]:
    """out and, if backward, the gradients of the inputs by the float64 reference, over chunks of
    queries."""
    wide = [x.detach().double().requires_grad_(work.backward) for x in inputs]
    q, k, v, *table = wide
    rows = max(1, REFERENCE_ELEMENTS // (q.shape[0] * q.shape[1] * work.k_len))
    outs = []
    for start in range(0, work.q_len, rows):
        part = slice(start, start + rows)
        score = Relative(table[0]) if table else None
        out, _ = reference.attention(
            q[:, :, part], k, v, work.geometry, score, work.dim**-0.5, None, work.offset + start
        )
        if work.backward:
            out.backward(grad_out[:, :, part].double())
        outs.append(out.detach())
    return [torch.cat(outs, 2), *(x.grad for x in wide if work.backward)]


def sampled_truth(work: Work, inputs: list[Tensor]) -> list[Tensor]:
    """truth_of for the last key head."""
    grad_out = gradient_of(work, inputs[0].dtype)
    some = [sampled(work, x, place) for place, x in enumerate(inputs, 1)]
    return truth_of(work, some, sampled(work, grad_out, 0))


def errors(results: list[Tensor], truth: list[Tensor]) -> tuple[float, float]:
    """The worst of the largest and of the mean errors, relative to the largest and mean value."""
    worst = [0.0, 0.0]
    for x, y in zip(results, truth, strict=True):
        error, y = (x.double() - y.double()).abs(), y.double().abs()
        if not error.isfinite().all():
            return math.inf, math.inf
        found = (error.max() / y.max().clamp_min(1e-9), error.mean() / y.mean().clamp_min(1e-9))
        worst = [max(a, float(b)) for a, b in zip(worst, found, strict=True)]
    return worst[0], worst[1]


def within(found: tuple[float, float], limits: tuple[float, float]) -> bool:
    return all(a <= b for a, b in zip(found, limits, strict=True))


def synchronize() -> None:
    torch.cuda.synchronize()


def peak_bytes(step: Callable[[], list[Tensor]]) -> int:
    """What a step allocates, results included."""
    synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    values = step()
    synchronize()
    del values
    return torch.cuda.max_memory_allocated() - before


def milliseconds(step: Callable[[], Any]) -> float:
    """Median of a round."""
    return triton.testing.do_bench(
        step, warmup=MILLISECONDS // 4, rep=MILLISECONDS, return_mode="median"
    )


def captured(step: Callable[[], Any]) -> Callable[[], None]:
    """The step as a CUDA graph: its kernels without the host's work for them."""
    step()  # what is compiled or allocated by a first call
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def host_microseconds(step: Callable[[], Any]) -> float:
    """What a call takes of the host, which does not wait for the device."""
    synchronize()
    start = time.perf_counter()
    for _ in range(HOST_CALLS):
        step()
    stop = time.perf_counter()
    synchronize()
    return (stop - start) / HOST_CALLS * 1e6
