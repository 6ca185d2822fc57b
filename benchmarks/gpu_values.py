"""How benchmarks.gpu compares with float64, and how it times."""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from attn_kernels.core import reference

from . import gpu_calls
from .gpu_calls import Call, Work

MILLISECONDS = 60  # of repetitions in each round
HOST_CALLS = 10  # few enough to wait in the device's queue
NAMES = ("out", "q", "k", "v", "rel_k", "rel_v")  # what comes out, or the gradients of these
REFERENCE_ELEMENTS = 1 << 25  # of a matrix of the float64 reference
# Largest and mean error, relative to the largest and mean value.
TOLERANCE = {
    torch.bfloat16: (2e-2, 1.2e-2),
    torch.float16: (4e-3, 2e-3),
    torch.float32: (2e-5, 5e-6),
}


def gradient_of(work: Work) -> Tensor:
    """The gradient of out: the same values every time."""
    generator = torch.Generator(gpu_calls.DEVICE).manual_seed(1)
    size = (work.batch, work.heads, work.q_len, work.dim)
    return torch.randn(size, generator=generator, device=gpu_calls.DEVICE).to(work.dtype)


def out_and_gradients(call: Call, inputs: list[Tensor], grad_out: Tensor) -> list[Tensor]:
    out = call(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]


def step_of(work: Work, call: Call, inputs: list[Tensor]) -> Callable[[], list[Tensor]]:
    """The timed step: forward without gradients, or backward alone."""
    if not work.backward:
        inputs = [x.detach() for x in inputs]

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [call(*inputs)]

        return forward
    out, grad_out = call(*inputs), gradient_of(work)
    return lambda: [
        out.detach(), *torch.autograd.grad(out, inputs, grad_out, retain_graph=True)
    ]  # fmt: skip


def sampled(work: Work, x: Tensor, place: int) -> Tensor:
    """What belongs to the last key head of every batch entry; place is one of NAMES."""
    group = work.heads // work.k_heads
    if place == 4:
        return x[-group:]
    return x[:, -(1 if place in (2, 3) else group) :]


def truth_of(work: Work, inputs: list[Tensor], grad_out: Tensor | None) -> list[Tensor]:
    """out and, where it has a gradient, the inputs' by the float64 reference, over chunks of
    queries."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    q, k, v, *tables = wide
    rows = max(1, REFERENCE_ELEMENTS // (q.shape[0] * q.shape[1] * work.k_len))
    outs = []
    for start in range(0, work.q_len, rows):
        part = slice(start, start + rows)
        with torch.set_grad_enabled(grad_out is not None):
            out, _ = reference.attention(
                q[:, :, part], k, v, work.geometry, work.score(tables), work.dim**-0.5,
                work.lengths(), work.offset + start,
            )  # fmt: skip
        if grad_out is not None:
            out.backward(grad_out[:, :, part].double())
        outs.append(out.detach())
    return [torch.cat(outs, 2), *(x.grad for x in wide if grad_out is not None)]


def sampled_truth(work: Work, inputs: list[Tensor], both_ways: bool) -> list[Tensor]:
    """truth_of for the last key head."""
    some = [sampled(work, x, place) for place, x in enumerate(inputs, 1)]
    return truth_of(work, some, sampled(work, gradient_of(work), 0) if both_ways else None)


def error_of(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The largest and the mean error, relative to the largest and the mean value."""
    error, y = (x.double() - y.double()).abs(), y.double().abs()
    if not error.isfinite().all():
        return math.inf, math.inf
    largest, mean = error.max() / y.max().clamp_min(1e-9), error.mean() / y.mean().clamp_min(1e-9)
    return float(largest), float(mean)


def errors(results: list[Tensor], truth: list[Tensor]) -> tuple[float, float]:
    """The worst of all."""
    found = [error_of(x, y) for x, y in zip(results, truth, strict=True)]
    return max(x for x, _ in found), max(x for _, x in found)


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


def kernel_milliseconds(step: Callable[[], Any], calls: int = 5) -> dict[str, float]:
    """What each of our kernels takes of a step, as torch's profiler sees it."""
    step()
    synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            step()
        synchronize()
    found = {e.key: e.self_device_time_total / calls / 1e3 for e in profile.key_averages()}
    return {name: ms for name, ms in found.items() if re.fullmatch(r"[a-z_]+_kernel", name)}


def clocks() -> str:
    """Clocks, power and temperature as nvidia-smi tells them; or nothing."""
    asked = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
