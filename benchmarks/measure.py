"""Measuring one call: its time over interleaved rounds, its values."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .case import Call, Inputs

MIN_SECONDS = 0.02  # each round repeats a call for at least so long

# The largest and the mean error allowed, relative to the largest and the mean value. Half types:
# a peer may round its sums to the input's dtype at every step.
TOLERANCE = {
    torch.float64: (1e-9, 1e-10),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 3e-3),
    torch.bfloat16: (5e-2, 2e-2),
}
# What a result is compared with is at least this part of the largest: one of nearly zero, and one
# that is zero but for rounding, below ZERO of the largest. With one key the gradients of q and k
# are; in float32 their error is 0.03 (torch) and 0.07 (ours) of what the largest is allowed.
FLOOR, ZERO_FLOOR = 0.01, 0.1
ZERO = 1e-5

Step = Callable[[], list[Tensor]]


def forward_step(call: Call, inputs: list[Inputs]) -> Step:
    """Call it on the next of the inputs, without gradients."""
    turn = cycle(inputs)

    def step() -> list[Tensor]:
        with torch.no_grad():
            return [call(next(turn))]

    return step


def training_step(call: Call, inputs: list[Inputs], grad_out: Tensor) -> Step:
    """Forward and backward together, with the gradient of every input."""
    for x in inputs:
        for tensor in vars(x).values():
            tensor.requires_grad_()
    turn = cycle(inputs)

    def step() -> list[Tensor]:
        x = next(turn)
        out = call(x)
        gradients = torch.autograd.grad(out, list(vars(x).values()), grad_out, allow_unused=True)
        return [out.detach(), *(g for g in gradients if g is not None)]

    return step


def cycle(inputs: list[Inputs]) -> Iterator[Inputs]:
    """The inputs over and over."""
    while True:
        yield from inputs


def errors(results: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """The worst of the largest and of the mean errors, relative to the largest and mean value.

    A gradient that is nearly zero, where others are not, is only rounding: see FLOOR.
    """
    truths = [truth.to(torch.float64) for truth in expected]
    tops = [truth.abs().max().item() for truth in truths]
    means = [truth.abs().mean().item() for truth in truths]
    largest = mean = 0.0
    for result, truth, top, average in zip(results, truths, tops, means, strict=True):
        error = (result.to(torch.float64) - truth).abs()
        if not torch.isfinite(error).all():
            return math.inf, math.inf
        floor = FLOOR if top > ZERO * max(tops) else ZERO_FLOOR
        largest = max(largest, error.max().item() / max(top, floor * max(tops)))
        mean = max(mean, error.mean().item() / max(average, floor * max(means)))
    return largest, mean


def agree(found: tuple[float, float], dtype: torch.dtype) -> bool:
    """Whether these errors are rounding."""
    return all(error <= bound for error, bound in zip(found, TOLERANCE[dtype], strict=True))


def seconds_per_call(step: Step, calls: int) -> float:
    """Mean time of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def interleaved(
    steps: dict[str, Step],
    gauge: Callable[[], float] | None,
    rounds: int,
    budget: float,
    progress: Callable[[str], None],
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds per call, round by round, and what the gauge told before each round.

    Steps take turns, each round in another order, so that a slow minute of the machine hits all.
    One that exceeds its budget of seconds takes fewer rounds, but 3 unless fewer are asked for.
    """
    calls, left = {}, {}
    for name, step in steps.items():
        progress(f"{name} warm-up")
        once = min(seconds_per_call(step, 1) for _ in range(2))
        calls[name] = max(1, math.ceil(MIN_SECONDS / max(once, 1e-7)))
        left[name] = min(rounds, max(3, int(budget / (once * calls[name]))))
    times: dict[str, list[float]] = {name: [] for name in steps}
    limits = []
    names = list(steps)
    for turn in range(max(left.values(), default=0)):
        if gauge is not None:
            limits.append(gauge())
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if len(times[name]) < left[name]:
                progress(f"{name} round {turn + 1}/{rounds}")
                times[name].append(seconds_per_call(steps[name], calls[name]))
    return times, limits
