"""Reports: the header that says where and with what, the tables, and the JSON file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

import attn_kernels

from . import machine
from .common import OURS, Entry, Result

FORMAT = 1  # of the JSON file
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
        "peaks": {n: asdict(p) for n, p in peaks.items() if p is not None},
    }


def header(found: dict) -> str:
    """The environment for a reader."""
    lines = [
        f"{found['device']}, {found['cores']} cores usable, {found['system']}, {found['date']}",
        f"attn_kernels {found['attn_kernels']} ({found['commit']}), torch {found['torch']},"
        f" Python {found['python']}",
        f"backend {found['backend']}: {found['cpu_backend'] or 'not built'}",
    ]
    for n, peaks in found["peaks"].items():
        lines.append(
            f"{n} threads at best: {peaks['fma_flops'] / 1e9:.0f} GFLOP/s float32 FMA,"
            f" {peaks['bf16_flops'] / 1e9:.0f} native bfloat16,"
            f" read {peaks['read_bytes'] / 1e9:.1f} GB/s, copy {peaks['copy_bytes'] / 1e9:.1f} GB/s"
        )
    if found["load"] > 0.5:
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


def rate(result: Result) -> tuple[str, str]:
    """Our rate, GFLOP/s or GB/s, and its part of what the machine could do meanwhile."""
    reads = result.case.reads_only
    backward = result.direction == "backward"
    amount = result.shape.input_bytes(result.dtype) if reads else result.shape.flops(backward)
    speed = amount / result.entries[OURS].median
    if not result.limits:
        return f"{speed / 1e9:.1f}", "-"
    limit = statistics.median(result.limits)
    if result.dtype == torch.float64 and not reads:
        limit /= 2
    return f"{speed / 1e9:.1f}", f"{100 * speed / limit:.0f}%"


def mebibytes(entry: Entry | None) -> str:
    """Extra memory, or "-"."""
    if entry is None or entry.extra_bytes is None:
        return "-"
    return f"{entry.extra_bytes / 2**20:.1f}"


def table(results: list[Result]) -> str:
    """One row per shape, for results of one case, dtype, direction and number of threads."""
    first = results[0]
    others = [name for name in first.entries if name != OURS]
    notes: list[str] = []

    def cell(entry: Entry) -> str:
        if entry.seconds:
            return timing(entry)
        if entry.skipped not in notes:
            notes.append(entry.skipped)
        return f"- ({notes.index(entry.skipped) + 1})"

    speed = "GB/s" if first.case.reads_only else "GFLOP/s"
    rows = [
        ["shape", "ours", *others, "vs best peer", speed, "of peak", "extra MiB", "best peer's"]
    ]
    for r in results:
        speedup = "-" if r.speedup is None else f"{r.speedup:.2f}x {r.best_peer}"
        best = mebibytes(r.entries[r.best_peer] if r.best_peer else None)
        memory = [mebibytes(r.entries[OURS]), best]
        times = [cell(r.entries[name]) for name in (OURS, *others)]
        rows.append([r.shape.label, *times, speedup, *rate(r), *memory])
    direction = {"forward": "forward", "backward": "forward + backward"}[first.direction]
    lines = [f"{first.case.title}, {dtype_name(first.dtype)}, {direction}, {first.threads} threads"]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines += [f"({i}) {note}" for i, note in enumerate(notes, 1)]
    if summary := speedup_summary(results):
        lines.append(summary)
    return "\n".join(lines)


def speedup_summary(results: list[Result]) -> str:
    """The geometric mean over shapes, and the worst."""
    known = [r for r in results if r.speedup is not None]
    if len(known) < 2:
        return ""
    worst = min(known, key=lambda r: r.speedup)
    mean = statistics.geometric_mean(r.speedup for r in known)
    return f"geometric mean {mean:.2f}x, lowest {worst.speedup:.2f}x at {worst.shape.label}"


def dtype_name(dtype: torch.dtype) -> str:
    """float32 and so on."""
    return str(dtype).removeprefix("torch.")


def as_data(result: Result) -> dict:
    """One result for the JSON file."""
    return {
        "op": result.case.name,
        "shape": result.shape.label,
        "sizes": {name: list(size) for name, size in result.shape.sizes().items()},
        "source": result.shape.source,
        "dtype": dtype_name(result.dtype),
        "direction": result.direction,
        "threads": result.threads,
        "visible_pairs": result.shape.visible_pairs(),
        "flops": result.shape.flops(result.direction == "backward"),
        "input_bytes": result.shape.input_bytes(result.dtype),
        "best_peer": result.best_peer,
        "speedup": result.speedup,
        "limits": result.limits,
        "entries": {name: asdict(entry) for name, entry in result.entries.items()},
    }


def save(folder: Path, found: dict, results: list[Result]) -> Path:
    """Write everything to a JSON file named by device and date."""
    device = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
    date = re.sub(r"[^0-9T]", "", found["date"].split("+")[0])
    path = folder / f"{device}-{date}.json"
    folder.mkdir(parents=True, exist_ok=True)
    data = {"format": FORMAT, "environment": found, "results": [as_data(r) for r in results]}
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path
