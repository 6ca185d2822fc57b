"""Scaling: one size grows, everything else stays, and a power law is fitted to time and memory."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from .case import Shape
from .causal import CausalShape
from .local_1d import BlockedShape
from .local_2d import canvas
from .machine import usable_cores
from .relative import RelativeShape
from .report import threads_text
from .results import DIRECTIONS, Result

AXES = ("length", "heads", "window", "threads")
FITTED = 3  # points at the large end: small sizes are overhead
SOURCE = "scaling"


@dataclass(frozen=True)
class Sweep:
    """The shapes of one operation along an axis, and the peers that are timed beside."""

    op: str
    axis: str
    points: tuple[tuple[int, Shape], ...]
    peers: tuple[str, ...]


def relative(length: int, heads: int = 2) -> RelativeShape:
    """One table row for every distance, as Music Transformer has."""
    return RelativeShape(1, heads, length, 64, source=SOURCE)


def blocked(length: int, block: int = 256) -> BlockedShape:
    """A query sees its block and the one before."""
    return BlockedShape(1, 2, length, 64, block=block, source=SOURCE)


def square(side: int):
    """A square canvas with HaloNet's blocks."""
    return canvas((side, side), (8, 8), (4, 4), heads=2, source=SOURCE)


def thread_counts() -> tuple[int, ...]:
    """Powers of two up to the cores that this process may use, and all of them."""
    cores = usable_cores()
    return tuple(sorted({2**i for i in range(cores.bit_length())} | {cores}))


LENGTHS = (512, 1024, 2048, 4096, 8192)
HEADS = (1, 2, 4, 8, 16)
SKEW, UNFOLD = ("skew+sdpa",), ("unfold+sdpa", "mask+sdpa")
SWEEPS = (
    Sweep("causal", "length", tuple((n, CausalShape(1, 2, n, 64)) for n in LENGTHS), ("sdpa",)),
    Sweep("relative", "length", tuple((n, relative(n)) for n in LENGTHS), SKEW),
    Sweep("local_1d", "length", tuple((2 * n, blocked(2 * n)) for n in LENGTHS), UNFOLD),
    Sweep("local_2d", "length", tuple((s * s, square(s)) for s in (16, 32, 64, 96, 128)), UNFOLD),
    Sweep("relative", "heads", tuple((h, relative(1024, h)) for h in HEADS), SKEW),
    Sweep("local_1d", "heads", tuple((h, BlockedShape(1, h, 2048, 64)) for h in HEADS), UNFOLD),
    Sweep(
        "local_1d",
        "window",
        tuple((2 * w, blocked(8192, w)) for w in (64, 128, 256, 512, 1024)),
        UNFOLD[:1],
    ),
    *(
        Sweep(op, "threads", tuple((n, shape) for n in thread_counts()), peers)
        for op, shape, peers in (
            ("causal", CausalShape(1, 8, 2048, 64), ("sdpa",)),
            ("relative", relative(2048, 8), SKEW),
            ("local_2d", canvas((64, 64), (8, 8), (4, 4)), UNFOLD[:1]),
        )
    ),
)


def exponent(points: list[tuple[float, float]]) -> float | None:
    """p of y ~ x^p, by least squares on logarithms over the largest points; None below two."""
    known = [(math.log(x), math.log(y)) for x, y in sorted(points) if x > 0 and y > 0][-FITTED:]
    if len(known) < 2:
        return None
    mean_x, mean_y = (sum(part) / len(known) for part in zip(*known, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in known)
    return over / sum((x - mean_x) ** 2 for x, _ in known)


def series(results: list[Result], name: str, what: str) -> list[tuple[float, float]]:
    """(value along the axis, seconds or bytes) of one provider.

    Seconds are at the highest rate that the machine showed in this sweep: a point that was measured
    while other work halved its peak counts half, and one that is in doubt not at all. Bytes are all
    that a call takes.
    """
    points = []
    highest = max((statistics.median(r.limits) for r in results if r.limits), default=1.0)
    for result in results:
        entry = result.entries.get(name)
        if entry is None or not entry.seconds:
            continue
        if what == "memory":
            y = result.total_bytes(name)
        elif result.doubt:
            continue
        elif result.limits and result.axis != "threads":
            y = entry.median * statistics.median(result.limits) / highest
        else:
            y = entry.median
        if y is not None:
            points.append((result.value, y))
    return points


def swept(results: list[Result]) -> dict[tuple, list[Result]]:
    """The results of each sweep: by operation, axis, dtype, direction and number of threads."""
    groups: dict[tuple, list[Result]] = {}
    for r in results:
        if r.axis:
            threads = 0 if r.axis == "threads" else r.threads
            groups.setdefault((r.op, r.axis, r.dtype, r.direction, threads), []).append(r)
    return groups


def fits(results: list[Result]) -> dict[str, tuple[float | None, float | None]]:
    """The exponents of time and memory of every provider of one sweep."""
    names = dict.fromkeys(name for r in results for name in r.entries)
    return {
        name: tuple(exponent(series(results, name, what)) for what in ("time", "memory"))
        for name in names
        if series(results, name, "time")
    }


def power(axis: str, found: float | None) -> str:
    """length^1.02"""
    return "-" if found is None else f"{axis}^{found:.2f}"


def fit_text(results: list[Result]) -> str:
    """What a sweep found, a line for each provider."""
    first = results[0]
    values = sorted(r.value for r in results)
    threads = "" if first.axis == "threads" else f", {threads_text(first.threads)}"
    title = (
        f"{first.title}, {first.axis} {values[0]} to {values[-1]}, {first.dtype},"
        f" {DIRECTIONS[first.direction]}{threads}"
    )
    lines = [
        f"  {name:14} time ~ {power(first.axis, time):16} memory ~ {power(first.axis, memory)}"
        for name, (time, memory) in fits(results).items()
    ]
    lines += [f"  left out at {r.value}: {r.doubt}" for r in results if r.doubt]
    return "\n".join([title, *lines])
