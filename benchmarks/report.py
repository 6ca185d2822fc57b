"""Reports: the header that says where and with what, and the tables."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import attn_kernels

from . import machine
from .results import DIRECTIONS, MOST_OF_PEAK, MOST_SPREAD, OURS, Entry, Result, trusted

LEGEND = f"""\
Times are medians per call, with half the distance of the quartiles. GFLOP/s count visible pairs.
Peak is what these threads reach, measured between the rounds: float32 FMA, half of it for float64,
native bfloat16 products where the CPU has them; for decoding the bandwidth of reading memory.
Extra MiB is memory beyond inputs and results, ours and the best peer's.
A shape is left out of the means, and marked, if rounds of ours or of the best peer are spread by
more than ±{MOST_SPREAD:.0%}, or if our rate is more than {MOST_OF_PEAK:.0%} of the peak."""


def commit() -> str:
    """The commit that is measured, and whether files differ from it."""
    folder = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(backend: str | None, threads: list[int]) -> dict:
    """What the figures depend on."""
    peaks = {n: machine.measure(n) for n in threads}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": machine.cpu_name(),
        "cores": machine.usable_cores(),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "attn_kernels": attn_kernels.__version__,
        "commit": commit(),
        "backend": backend,
        "cpu_backend": attn_kernels.backends()["cpu"].detail,
        "peaks": {str(n): asdict(p) for n, p in peaks.items() if p is not None},
    }


def header(found: dict) -> str:
    """The environment for a reader, as far as it is known."""
    names = (
        ("", "device"), ("", "system"), ("cores usable", "cores"), ("", "date"),
        ("attn_kernels", "attn_kernels"), ("commit", "commit"), ("torch", "torch"),
        ("Python", "python"), ("backend", "backend"), ("", "cpu_backend"),
        ("interrupted", "interrupted"),
        ("CUDA", "cuda"), ("Triton", "triton"),
    )  # fmt: skip
    known = [f"{name} {found[key]}".strip() for name, key in names if found.get(key)]
    lines = [", ".join(known[:4]), ", ".join(known[4:])]
    for n, peaks in found.get("peaks", {}).items():
        lines.append(
            f"{threads_text(int(n))} at best: {peaks['fma_flops'] / 1e9:.0f} GFLOP/s float32 FMA,"
            f" {peaks['bf16_flops'] / 1e9:.0f} native bfloat16,"
            f" read {peaks['read_bytes'] / 1e9:.1f} GB/s, copy {peaks['copy_bytes'] / 1e9:.1f} GB/s"
        )
    if found.get("load", 0) > 0.5:
        lines.append(
            f"load average {found['load']:.1f}: other work on this machine disturbs the figures"
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            value = seconds / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError


def timing(entry: Entry) -> str:
    """Median and spread, which a single round does not tell."""
    spread = f" ±{entry.spread:.0%}" if entry.seconds[1:] else ""
    return duration(entry.median) + spread


def ratio(result: Result) -> str:
    """How much faster than the best peer, and which that is."""
    return "-" if result.speedup is None else f"{result.speedup:.2f}x {result.best_peer}"


def title_of(title: str, dtype: str, direction: str, threads: int) -> str:
    """What a table holds: an operation's title, a dtype, a direction, a number of threads."""
    return f"{title}, {dtype}, {DIRECTIONS[direction]}, {threads_text(threads)}"


def mebibytes(entry: Entry | None) -> str:
    """Extra memory, or "-"."""
    if entry is None or entry.extra_bytes is None:
        return "-"
    return f"{entry.extra_bytes / 2**20:.1f}"


def threads_text(threads: int) -> str:
    """1 thread, 2 threads; nothing on a GPU."""
    return f"{threads} thread{'s' * (threads != 1)}" if threads else "GPU"


@dataclass(frozen=True)
class Table:
    """One row per shape, for results of one operation, dtype, direction and number of threads."""

    title: str
    rows: list[list[str]]  # the first one names the columns
    notes: list[str]
    summary: str


def table(results: list[Result]) -> Table:
    """The table of results that share a group."""
    first = results[0]
    others = list(dict.fromkeys(name for r in results for name in r.entries if name != OURS))
    notes: list[str] = []

    def noted(text: str, note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f"{text} ({notes.index(note) + 1})"

    def cell(entry: Entry | None) -> str:
        if entry is None:
            return "-"
        return timing(entry) if entry.seconds else noted("-", entry.skipped)

    speed = "GB/s" if first.reads_only else "GFLOP/s"
    rows = [
        [
            "shape",
            "ours",
            *others,
            "vs best peer",
            speed,
            "of peak",
            "extra MiB",
            "best peer's",
            "from",
        ]
    ]
    for r in results:
        speedup = ratio(r)
        if r.doubt:
            speedup = noted(speedup, f"left out of the means: {r.doubt}")
        peak = "-" if r.part_of_peak is None else f"{100 * r.part_of_peak:.0f}%"
        best = mebibytes(r.entries[r.best_peer] if r.best_peer else None)
        times = [cell(r.entries.get(name)) for name in (OURS, *others)]
        memory = [mebibytes(r.entries[OURS]), best]
        rows.append([r.shape, *times, speedup, f"{r.rate / 1e9:.1f}", peak, *memory, r.source])
    title = title_of(first.title, first.dtype, first.direction, first.threads)
    notes = [f"({i}) {note}" for i, note in enumerate(notes, 1)]
    return Table(title, rows, notes, speedup_summary(results))


def as_text(found: Table) -> str:
    """A table for the terminal."""
    widths = [max(map(len, column)) for column in zip(*found.rows, strict=True)]
    lines = [found.title]
    for row in found.rows:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{text:>{width}}" for text, width in zip(row[1:-1], widths[1:-1], strict=True)]
        cells.append(row[-1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *found.notes, *filter(None, [found.summary])])


def speedup_summary(results: list[Result]) -> str:
    """The geometric mean over shapes, and the worst, without those that are in doubt."""
    known = trusted(results)
    if len(known) < 2:
        return ""
    worst = min(known, key=lambda r: r.speedup)
    mean = statistics.geometric_mean(r.speedup for r in known)
    return f"geometric mean {mean:.2f}x, lowest {worst.speedup:.2f}x at {worst.shape}"


def grouped(results: list[Result]) -> dict[tuple, list[Result]]:
    """The results of each table, sweeps left out, in the order they were measured."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        if not result.axis:
            groups.setdefault(result.group, []).append(result)
    return groups
