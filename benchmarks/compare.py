"""What changed between two recordings, beyond the noise of both."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from .report import duration, threads_text
from .results import DIRECTIONS, OURS, Recording, Result

LEAST = 0.03  # a smaller change is noise however little the rounds differ


@dataclass(frozen=True)
class Change:
    """One result in both recordings."""

    before: Result
    after: Result

    @property
    def ratio(self) -> float:
        """Our time afterwards, relative to before."""
        return self.after.entries[OURS].median / self.before.entries[OURS].median

    @property
    def noise(self) -> float:
        """What rounds of unchanged code may differ by: twice both spreads together."""
        spreads = (r.entries[OURS].spread for r in (self.before, self.after))
        return max(LEAST, 2 * math.hypot(*spreads))

    @property
    def peers_ratio(self) -> float | None:
        """How the peers' times changed, whose code did not: the machine itself."""
        pairs = [
            (self.before.entries[name].median, self.after.entries[name].median)
            for name in self.before.peers
            if name in self.after.entries
            and self.before.entries[name].seconds
            and self.after.entries[name].seconds
        ]
        return statistics.geometric_mean(new / old for old, new in pairs) if pairs else None

    @property
    def beyond_noise(self) -> bool:
        """Whether the change is one."""
        return abs(math.log(self.ratio)) > math.log1p(self.noise)


def changes(before: Recording, after: Recording) -> list[Change]:
    """What both recordings hold."""
    known = {result.key: result for result in before.results}
    both = [(known[r.key], r) for r in after.results if r.key in known]
    return [Change(a, b) for a, b in both if a.entries[OURS].seconds and b.entries[OURS].seconds]


def describe(change: Change) -> str:
    """One line: what, from, to, and how the peers changed meanwhile."""
    r, peers = change.after, change.peers_ratio
    times = [duration(x.entries[OURS].median) for x in (change.before, r)]
    words = "slower" if change.ratio > 1 else "faster"
    factor = max(change.ratio, 1 / change.ratio)
    machine = "" if peers is None else f", peers {100 * (peers - 1):+.0f}%"
    what = f"{r.op} {r.shape} {r.dtype} {DIRECTIONS[r.direction]} {threads_text(r.threads)}"
    return (
        f"{what}: {times[0]} -> {times[1]}, {factor:.2f}x {words}"
        f" (noise {100 * change.noise:.0f}%{machine})"
    )


def comparison(before: Recording, after: Recording) -> str:
    """Every change beyond noise, the largest first, and what could not be compared."""
    both = changes(before, after)
    found = sorted(
        (c for c in both if c.beyond_noise), key=lambda c: abs(math.log(c.ratio)), reverse=True
    )
    lines = []
    for name in ("device", "torch", "commit", "cpu_backend"):
        old, new = before.environment.get(name), after.environment.get(name)
        if old != new:
            lines.append(f"{name}: {old} -> {new}")
    lines += map(describe, found)
    counts = [len(x.results) - len(both) for x in (before, after)]
    lines.append(
        f"{len(found)} of {len(both)} changed beyond noise;"
        f" only in the first: {counts[0]}, only in the second: {counts[1]}"
    )
    return "\n".join(lines)
