"""Recorded results as README's summary, the page of all tables, and what its pictures show."""

from __future__ import annotations

import re
import statistics

from .report import duration, grouped, mebibytes, threads_text
from .results import DIRECTIONS, OURS, Entry, Recording, Result, trusted
from .sweeps import fits, power, swept

SCALING = (
    "Powers fitted over the three largest sizes. Memory is all that a call takes: inputs, results,"
    " and what is allocated besides. Times are at the highest rate that the machine showed."
)
SHOWN_SWEEPS = ("relative", "local_1d")  # along length, forward and backward, in float32


def merged(files: list[Recording]) -> Recording:
    """The files of one device, oldest first, as one: a newer result replaces an older."""
    newest: dict[tuple, tuple[Result, Recording]] = {}
    for one in files:
        newest |= {result.key: (result, one) for result in one.results}
    used = [one for one in files if any(owner is one for _, owner in newest.values())]
    dates = sorted(one.environment["date"][:10] for one in used)
    environment = {
        **files[-1].environment,
        "files": [source(one) for one in used],
        "measured": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
    }
    return Recording(environment, sorted((r for r, _ in newest.values()), key=order))


def order(result: Result) -> tuple:
    """Tables by operation, dtype, threads and direction; rows as they were measured."""
    from .cases import CASES

    known = list(CASES)
    place = known.index(result.op) if result.op in known else len(known)
    dtypes = ("float32", "bfloat16", "float16", "float64")
    return (
        place,
        result.op,
        dtypes.index(result.dtype),
        result.threads,
        result.direction == "backward",
    )


def source(one: Recording) -> str:
    """Where a file's figures come from."""
    found = one.environment
    name = f"benchmarks/results/{one.path.name}"
    return f"{name} (torch {found['torch']}, commit {found['commit'][:18]}, {found['date'][:10]})"


def picture_name(kind: str, recording: Recording) -> str:
    """The file of one picture of one device."""
    device = re.sub(r"[^a-z0-9]+", "-", recording.environment["device"].lower()).strip("-")
    return f"results-{device}-{kind}.svg"


def pictures(recording: Recording) -> dict[str, list[list[Result]]]:
    """What the pictures show: every table's ratios, and how time and memory grow."""
    shown = {}
    groups = [g for g in grouped(recording.results).values() if trusted(g)]
    if groups:
        shown["speed"] = groups
    for (op, axis, dtype, direction, _), results in swept(recording.results).items():
        if op in SHOWN_SWEEPS and (axis, dtype, direction) == ("length", "float32", "backward"):
            shown[f"scaling-{op}"] = [results]
    return shown


def ratio_cell(results: list[Result]) -> str:
    """The geometric mean of the ratios, their range, and how many are in doubt and left out."""
    known = [r.speedup for r in trusted(results)]
    doubtful = sum(bool(r.doubt) for r in results)
    left_out = f", {doubtful} left out" if doubtful else ""
    if not known:
        return f"-{left_out}"
    mean = statistics.geometric_mean(known)
    spread = f" ({min(known):.2f} to {max(known):.2f})" if known[1:] else ""
    return f"**{mean:.2f}**{spread}{left_out}"


def peers_cell(results: list[Result]) -> str:
    """Who was the best peer, the most frequent first."""
    best = [r.best_peer for r in results if r.best_peer]
    return ", ".join(sorted(set(best), key=lambda name: (-best.count(name), name))) or "-"


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]


def overview(recording: Recording) -> list[str]:
    """One row per operation, dtype and direction, a column for each number of threads."""
    groups = grouped(recording.results)
    threads = sorted({key[3] for key in groups})
    rows = []
    for op, dtype, direction in dict.fromkeys(key[:3] for key in groups):
        found = [groups.get((op, dtype, direction, n), []) for n in threads]
        every = [r for results in found for r in results]
        cells = [op, dtype, DIRECTIONS[direction], *map(ratio_cell, found), peers_cell(every)]
        rows.append(cells)
    head = ["operation", "dtype", "direction", *map(threads_text, threads), "best peer"]
    return markdown_table(head, rows)


def scaling_table(recording: Recording) -> list[str]:
    """The exponents of every sweep."""
    rows = []
    for results in swept(recording.results).values():
        first = results[0]
        what = f"{first.op}, {first.dtype}, {DIRECTIONS[first.direction]}"
        values = sorted(r.value for r in results)
        for name, (time, memory) in fits(results).items():
            grows = [power(first.axis, time), power(first.axis, memory)]
            rows.append([what, f"{values[0]} to {values[-1]}", name, *grows])
    return markdown_table(["sweep", "from, to", "who", "time", "memory"], rows) if rows else []


def headline(recording: Recording) -> list[str]:
    """One row per operation on one thread: the columns are dtypes and directions."""
    groups = grouped(recording.results)
    columns = [(dtype, way) for dtype in ("float32", "bfloat16") for way in ("forward", "backward")]
    rows = []
    for op in dict.fromkeys(key[0] for key in groups):
        found = [groups.get((op, *column, 1), []) for column in columns]
        every = [r for results in found for r in results]
        rows.append([op, *map(ratio_cell, found), peers_cell(every)])
    head = [f"{dtype}, {DIRECTIONS[way]}" for dtype, way in columns]
    return markdown_table(["operation", *head, "best peer"], rows)


def section(found: list[Recording]) -> str:
    """README's results: a few lines for each device."""
    lines = []
    for recording in found:
        device, measured = (recording.environment[name] for name in ("device", "measured"))
        lines += [f"**{device}**, one thread, measured {measured}.", "", *headline(recording)]
    return "\n".join(lines)


def full_tables(found: list[Recording]) -> str:
    """docs/results.md: every shape."""
    lines = [
        "# All measured results",
        "",
        "Generated by `python -m benchmarks.readme` from benchmarks/results/. Times are medians",
        "per call. GFLOP/s count visible pairs only; *of peak* is relative to what the same",
        "threads reach in fused multiply-adds (bfloat16: native products; decoding: the bandwidth",
        "of reading), measured between the rounds. *Extra* is memory beyond inputs and results.",
        "",
    ]
    for recording in found:
        lines += [f"## {recording.environment['device']}", ""]
        lines += [f"- {text}" for text in recording.environment["files"]]
        lines += ["", "### Summary", "", *overview(recording)]
        for kind in pictures(recording):
            title = f"{kind} on {recording.environment['device']}"
            lines += [f"![{title}](pictures/{picture_name(kind, recording)})", ""]
        for results in grouped(recording.results).values():
            lines += full_table(results)
        if sweeps := scaling_table(recording):
            lines += ["### Scaling", "", SCALING, "", *sweeps]
    return "\n".join(lines)


def full_table(results: list[Result]) -> list[str]:
    """One operation, dtype, direction and number of threads."""
    first = results[0]
    speed = "GB/s" if first.reads_only else "GFLOP/s"
    head = ["shape", "from", "ours", "best peer", "times faster", speed, "of peak", "extra MiB"]
    rows = []
    for r in results:
        best = r.entries[r.best_peer] if r.best_peer else None
        peak = "-" if r.part_of_peak is None else f"{100 * r.part_of_peak:.0f} %"
        rows.append(
            [
                r.shape,
                r.source or "-",
                duration(r.entries[OURS].median),
                f"{duration(best.median)} ({r.best_peer})" if best else "-",
                (f"{r.speedup:.2f}" if r.speedup else "-") + (" (left out)" if r.doubt else ""),
                f"{r.rate / 1e9:.0f}",
                peak,
                f"{mebibytes(r.entries[OURS])}, {r.best_peer or 'peer'} {mebibytes(best)}",
            ]
        )
    beside = [r.entries.get("our causal", Entry()).seconds for r in results]
    if any(beside):  # what the relative term costs
        head.append("times our causal")
        for r, row in zip(results, rows, strict=True):
            row.append(f"{r.entries[OURS].median / r.entries['our causal'].median:.2f}")
    title = f"### {first.op}, {first.dtype}, {DIRECTIONS[first.direction]}, "
    lines = [title + threads_text(first.threads), "", *markdown_table(head, rows)]
    for reason in dict.fromkeys(r.doubt for r in results if r.doubt):
        shapes = ", ".join(r.shape for r in results if r.doubt == reason)
        lines += [f"Left out of the means, because {reason}: {shapes}.", ""]
    return lines
