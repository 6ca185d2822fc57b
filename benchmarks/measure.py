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
# Four units in float32's last place are 5 % of the mean error allowed: with one key torch's own
# gradients of q and k are rounding of that size, and ours exactly zero.
FLOOR = 0.05

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

    A gradient that is nearly zero, where others are not, is only rounding: what it is compared with
    is at least a twentieth of the largest among all results.
    """
    truths = [truth.to(torch.float64) for truth in expected]
    tops = [truth.abs().max().item() for truth in truths]
    means = [truth.abs().mean().item() for truth in truths]
    largest = mean = 0.0
    for result, truth, top, average in zip(results, truths, tops, means, strict=True):
        error = (result.to(torch.float64) - truth).abs()
        if not torch.isfinite(error).all():
            return math.inf, math.inf
        largest = max(largest, error.max().item() / max(top, FLOOR * max(tops)))
        mean = max(mean, error.mean().item() / max(average, FLOOR * max(means)))
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
    One that exceeds its budget of seconds takes fewer rounds, but 3 at least.
    """
    calls, left = {}, {}
    for name, step in steps.items():
        progress(f"{name} warm-up")
        once = min(seconds_per_call(step, 1) for _ in range(2))
        calls[name] = max(1, math.ceil(MIN_SECONDS / max(once, 1e-7)))
        left[name] = max(3, min(rounds, int(budget / (once * calls[name]))))
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
