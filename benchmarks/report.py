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
from .results import DIRECTIONS, OURS, Entry, Result

LEGEND = """\
Times are medians per call, with half the distance of the quartiles. GFLOP/s count visible pairs.
Peak is what these threads reach, measured between the rounds: float32 FMA, half of it for float64,
native bfloat16 products where the CPU has them; for decoding the bandwidth of reading memory.
Extra MiB is memory beyond inputs and results, ours and the best peer's."""


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
    """Median and spread."""
    return f"{duration(entry.median)} ±{100 * entry.spread:.0f}%"


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

    def cell(entry: Entry | None) -> str:
        if entry is None:
            return "-"
        if entry.seconds:
            return timing(entry)
        if entry.skipped not in notes:
            notes.append(entry.skipped)
        return f"- ({notes.index(entry.skipped) + 1})"

    speed = "GB/s" if first.reads_only else "GFLOP/s"
    rows = [
        ["shape", "ours", *others, "vs best peer", speed, "of peak", "extra MiB", "best peer's"]
    ]
    for r in results:
        speedup = "-" if r.speedup is None else f"{r.speedup:.2f}x {r.best_peer}"
        peak = "-" if r.part_of_peak is None else f"{100 * r.part_of_peak:.0f}%"
        best = mebibytes(r.entries[r.best_peer] if r.best_peer else None)
        times = [cell(r.entries.get(name)) for name in (OURS, *others)]
        memory = [mebibytes(r.entries[OURS]), best]
        rows.append([r.shape, *times, speedup, f"{r.rate / 1e9:.1f}", peak, *memory])
    title = f"{first.title}, {first.dtype}, {DIRECTIONS[first.direction]}"
    notes = [f"({i}) {note}" for i, note in enumerate(notes, 1)]
    return Table(f"{title}, {threads_text(first.threads)}", rows, notes, speedup_summary(results))


def as_text(found: Table) -> str:
    """A table for the terminal."""
    widths = [max(map(len, column)) for column in zip(*found.rows, strict=True)]
    lines = [found.title]
    for row in found.rows:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *found.notes, *filter(None, [found.summary])])


def speedup_summary(results: list[Result]) -> str:
    """The geometric mean over shapes, and the worst."""
    known = [r for r in results if r.speedup is not None]
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
