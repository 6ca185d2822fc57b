"""Plots of recorded results. Needs matplotlib, which nothing else of the suite does."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from .report import grouped, threads_text
from .results import DIRECTIONS, OURS, Recording, Result, trusted
from .sweeps import fits, power, series, swept

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install matplotlib"
OURS_COLOUR, GREY = "#b5302a", "#5f6b76"
COLOURS = (
    "#2f6690", "#6a994e", "#8d6a9f", "#c98a2b", "#4d908e", "#7f5539", "#3a3a3a", "#a3b18a",
)  # fmt: skip
MARKERS = {"float32": "o", "bfloat16": "^", "float64": "s", "float16": "D"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "attn_kernels",  # the same file for the same data
}


class NoMatplotlib(RuntimeError):
    """There is nothing to draw with; the message says what to install."""


def figure(columns: int, width: float = 4.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many plots side by side, made without pyplot and its global state."""
    require()
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width * columns, height), layout="constrained")
    return drawn, list(drawn.subplots(1, columns, squeeze=False)[0])


def require() -> None:
    """Raise unless matplotlib can be imported, and set its style."""
    try:
        import matplotlib
    except ImportError as error:
        raise NoMatplotlib(f"plots need matplotlib ({error}): {INSTALL}") from None
    matplotlib.rcParams.update(STYLE)


def colour(name: str, names: list[str]) -> str:
    """One colour for each provider of a plot, the same one for ours everywhere."""
    others = [other for other in names if other != OURS]
    return OURS_COLOUR if name == OURS else COLOURS[others.index(name) % len(COLOURS)]


def scaling(results: list[Result]) -> Figure:
    """One sweep: time and memory along its axis on logarithmic axes, with the fitted powers."""
    first = results[0]
    drawn, (time, memory) = figure(2)
    found = fits(results)
    names = list(found)
    for axes, what, unit, scale in (
        (time, "time", "ms", 1e3),
        (memory, "memory", "MiB", 2**-20),
    ):
        for name in names:
            points = [(x, scale * y) for x, y in sorted(series(results, name, what))]
            if not points:
                continue
            fitted = power(first.axis, found[name][what == "memory"])
            line = {"color": colour(name, names), "linewidth": 2 if name == OURS else 1.2}
            axes.plot(*zip(*points, strict=True), "o-", label=f"{name} ~ {fitted}", **line)
        axes.set(xscale="log", yscale="log", xlabel=first.axis, ylabel=f"{what}, {unit}")
        values = sorted({r.value for r in results})
        axes.set_xticks(values, [str(v) for v in values])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.25)
        if axes.lines:
            axes.legend()
    threads = "" if first.axis == "threads" else f", {threads_text(first.threads)}"
    drawn.suptitle(f"{first.title}, {first.dtype}, {DIRECTIONS[first.direction]}{threads}")
    return drawn


def ratios(groups: list[list[Result]]) -> Figure:
    """Times faster than the best peer, a bar for each shape, the tables of one operation."""
    shapes = list(dict.fromkeys(r.shape for results in groups for r in results))
    drawn, (axes,) = figure(
        1, 8.4, 1.2 + 0.15 * len(groups) + 0.13 * len(shapes) * (len(groups) + 1)
    )
    thick = 1 / (len(groups) + 1)
    for i, results in enumerate(groups):
        known = [r for r in results if r.speedup is not None]
        where = [shapes.index(r.shape) + (i - (len(groups) - 1) / 2) * thick for r in known]
        first = results[0]
        label = f"{first.dtype}, {DIRECTIONS[first.direction]}, {threads_text(first.threads)}"
        bars = axes.barh(
            where,
            [r.speedup for r in known],
            height=thick,
            color=COLOURS[i % len(COLOURS)],
            label=label,
        )
        axes.bar_label(
            bars, [f" {r.speedup:.2f}{' in doubt' if r.doubt else ''}" for r in known], fontsize=6
        )
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(range(len(shapes)), shapes)
    axes.invert_yaxis()
    axes.set(xlabel="times faster than the best peer", title=groups[0][0].title)
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn


def overview(groups: list[list[Result]]) -> Figure:
    """Times faster than the best peer, a bar for each table: the geometric mean and the range."""
    drawn, (axes,) = figure(1, 8.4, 0.9 + 0.2 * len(groups))
    labels = []
    for i, results in enumerate(groups):
        first, known = results[0], [r.speedup for r in trusted(results)]
        mean = statistics.geometric_mean(known)
        kind = COLOURS[("float32", "bfloat16", "float16", "float64").index(first.dtype)]
        alpha = 1 if first.direction == "forward" else 0.7
        axes.barh(i, mean - 1, left=1, color=kind, alpha=alpha)
        axes.plot([min(known), max(known)], [i, i], color=GREY, linewidth=1.2)
        axes.annotate(f" {mean:.2f}", (max(known), i), va="center", fontsize=7)
        direction, threads = DIRECTIONS[first.direction], threads_text(first.threads)
        labels.append(f"{first.op}, {first.dtype}, {direction}, {threads}")
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set(
        xscale="log", xlabel="times faster than the best peer: geometric mean, range of shapes"
    )
    every = [r.speedup for results in groups for r in trusted(results)]
    axes.set_xlim(min(0.9, *every) / 1.1, max(1.1, *every) * 1.3)
    ticks = [2.0**n for n in range(-6, 10) if min(1, *every) <= 2.0**n <= max(1, *every)]
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xticks([], minor=True)
    return drawn


def roofline(recording: Recording, threads: int) -> Figure:
    """Our rates against what one byte of inputs and results is used for, under the limits."""
    peaks = recording.environment["peaks"][str(threads)]
    drawn, (axes,) = figure(1, 8.4, 4)
    chosen = [r for r in recording.results if r.threads == threads and not r.axis]
    ops = list(dict.fromkeys(r.op for r in chosen))
    points = [
        (r.flops / (r.input_bytes + r.result_bytes), r.flops / r.entries[OURS].median / 1e9, r)
        for r in chosen
    ]
    for op in ops:
        for dtype, marker in (
            ("float32", "o"),
            ("bfloat16", "^"),
            ("float64", "s"),
            ("float16", "D"),
        ):
            own = [(x, y) for x, y, r in points if (r.op, r.dtype) == (op, dtype)]
            if own:
                axes.plot(
                    *zip(*own, strict=True),
                    marker,
                    color=COLOURS[ops.index(op) % len(COLOURS)],
                    label=f"{op}, {dtype}",
                    alpha=0.8,
                )
    ridge = peaks["fma_flops"] / peaks["read_bytes"]  # to its left reading is the limit
    lowest = min([ridge / 4, *(x / 2 for x, _, _ in points)])
    highest = max([ridge * 4, *(x * 2 for x, _, _ in points)])
    xs = [lowest * (highest / lowest) ** (i / 99) for i in range(100)]
    for name, key in (("float32 FMA", "fma_flops"), ("bfloat16 products", "bf16_flops")):
        if peaks[key]:
            limit = [min(peaks[key], x * peaks["read_bytes"]) / 1e9 for x in xs]
            axes.plot(xs, limit, color=GREY, linewidth=1)
            axes.annotate(name, (xs[-1], limit[-1]), fontsize=7, ha="right", va="bottom")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations on visible pairs per byte of inputs and results",
        ylabel="GFLOP/s",
        title=f"{recording.device}, {threads_text(threads)}",
    )
    axes.legend(ncols=2, fontsize=6)
    return drawn


def figures(recording: Recording) -> dict[str, Figure]:
    """Every plot of a recording by the name of its file."""
    drawn: dict[str, Figure] = {}
    for key, results in swept(recording.results).items():
        if len({r.value for r in results}) > 1:
            name = "-".join(str(part) for part in key if part)
            drawn[f"scaling-{name}".replace(" ", "-")] = scaling(results)
    groups = list(grouped(recording.results).values())
    for op in dict.fromkeys(results[0].op for results in groups):
        own = [g for g in groups if g[0].op == op and any(r.speedup for r in g)]
        if own:
            drawn[f"ratio-{op}"] = ratios(own)
    for threads in recording.environment.get("peaks", {}):
        if any(str(r.threads) == threads and not r.axis for r in recording.results):
            drawn[f"roofline-{threads}"] = roofline(recording, int(threads))
    return drawn


def as_svg(drawn: Figure) -> str:
    """The figure as text, the same for the same data."""
    require()  # its settings, also for figures made elsewhere
    text = io.StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def write_pngs(drawn: dict[str, Figure], folder: Path) -> list[Path]:
    """One PNG for each figure."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, one in drawn.items():
        paths.append(folder / f"{name}.png")
        one.savefig(paths[-1], dpi=150)
    return paths
