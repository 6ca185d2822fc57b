"""plot(): which keys a query sees, as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .core.geometry import Geometry, Local2d, check_count, check_geometry, check_pair
from .core.pattern import CELL, GROUP, Pattern, on_cpu

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTH = 32  # queries and keys of a picture, unless the geometry or the caller says
SMALL_TILE = (8, 8)  # up to 64 queries and keys; else those of the CPU kernels
MOST_PIXELS = 2**22  # more pairs are drawn tile by tile

# What a pixel is: of a tile that nobody sees, of one that is seen in part, of one seen in full.
EMPTY, HIDDEN, PARTIAL, FULL = range(4)
COLOURS = ("#ffffff", "#fdebd3", "#e58f3c", "#3f73ad")
QUERY, LINE = "#b3202a", "#a0a0a0"
MOST_LINES = 128  # more tiles than that in a row are not outlined


@on_cpu
def plot(
    geometry: Geometry,
    q_len: int | None = None,
    k_len: int | None = None,
    *,
    query: int | tuple[int, int] | None = None,
    query_offset: int | None = None,
    tile: tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw what the queries of a geometry see.

    In one dimension: queries downwards, keys to the right, and the kinds of tiles. A tile that is
    seen in full needs no mask, an empty one is never visited. On a canvas (Local2d, or a sequence
    that is laid out on `grid`): the cells that one query sees.

    Args:
        q_len, k_len: of the sequences. Default 32; a Pattern's own; the canvas.
        query: the query to mark, as an index or as (row, col) of a canvas. Default: none in one
            dimension, the middle cell of a canvas.
        query_offset: query i stands at i + query_offset; default as in attention().
        tile: queries and keys of a tile, in one dimension. Default (8, 8), or for more than 64
            queries or keys (64, 16), which the CPU kernels have.
        grid: rows and columns of the canvas that a sequence's keys are laid out on.
        path: where to save the picture; its ending says as what (.png, .svg, .pdf).

    Returns:
        a matplotlib Figure. It needs no display.

    Example:
        >>> figure = plot(Local1d(16, 16), 64, query=40)
        >>> figure.axes[0].get_xlabel()
        'key'
    """
    check_geometry(geometry)
    q_len, k_len, grid = lengths(geometry, q_len, k_len, grid)
    if query_offset is None:
        query_offset = 0 if geometry.two_dimensional else geometry.default_offset(q_len, k_len)
    query = index_of_query(query, q_len, grid)
    figure, axes = new_figure(str(geometry))
    if grid is None:
        if tile is None:
            tile = SMALL_TILE if max(q_len, k_len) <= 64 else (GROUP, CELL)
        check_pair("plot", "tile", tile, 1)
        draw_pairs(axes, geometry, q_len, k_len, query_offset, tile, query)
    else:
        assert query is not None  # a canvas has one by default
        draw_canvas(axes, geometry, k_len, grid, query, query_offset)
    if path is not None:
        save(figure, Path(path))
    return figure


def lengths(
    geometry: Geometry, q_len: Any, k_len: Any, grid: Any
) -> tuple[int, int, tuple[int, int] | None]:
    """The lengths to draw, and the canvas if there is one."""
    if isinstance(geometry, Local2d):
        if any(x is not None for x in (q_len, k_len, grid)):
            raise ValueError(
                "q_len, k_len and grid must be None under Local2d, which has its own,"
                f" got {q_len}, {k_len} and {grid}"
            )
        cells = geometry.grid[0] * geometry.grid[1]
        if cells == 0:
            raise ValueError(f"plot: grid must have at least one cell, got {geometry.grid}")
        return cells, cells, geometry.grid
    if grid is not None:
        check_pair("plot", "grid", grid, 1)
        k_len = grid[0] * grid[1] if k_len is None else k_len
    if isinstance(geometry, Pattern):
        q_len = geometry.q_len if q_len is None else q_len
        k_len = geometry.k_len if k_len is None else k_len
    q_len = (LENGTH if k_len is None else k_len) if q_len is None else q_len
    k_len = q_len if k_len is None else k_len
    check_count("plot", "q_len", q_len, 1)
    check_count("plot", "k_len", k_len, 1)
    if grid is not None and grid[0] * grid[1] < k_len:
        raise ValueError(f"grid must have a cell for each of {k_len} keys, got {grid}")
    return q_len, k_len, grid


def index_of_query(query: Any, q_len: int, grid: tuple[int, int] | None) -> int | None:
    """The query to mark as an index."""
    if query is None:
        return None if grid is None else min(grid[0] // 2 * grid[1] + grid[1] // 2, q_len - 1)
    if isinstance(query, (tuple, list)):
        check_pair("plot", "query", query, 0)
        if grid is None or query[0] >= grid[0] or query[1] >= grid[1]:
            raise ValueError(f"query must be an index or a cell of the canvas {grid}, got {query}")
        query = query[0] * grid[1] + query[1]
    check_count("plot", "query", query, 0)
    if query >= q_len:
        raise ValueError(f"query must be less than {q_len}, got {query}")
    return query


def new_figure(title: str) -> tuple[Figure, Axes]:
    """Without pyplot, which would look for a display and keep the figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot() needs matplotlib: run `pip install matplotlib`") from None
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, wrap=True)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    for axis in (axes.xaxis, axes.yaxis):
        locator: Any = axis.get_major_locator()
        locator.set_params(integer=True)
    return figure, axes


def tile_rows(
    geometry: Geometry, q_len: int, k_len: int, query_offset: int, tile: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Row by row of tiles: which pairs are seen, [queries, k_len], and the kind of every tile."""
    k_pos = torch.arange(k_len)
    for start in range(0, q_len, tile[0]):
        q_pos = torch.arange(start, min(start + tile[0], q_len)).unsqueeze(1)
        seen = geometry.visible(q_pos + query_offset, k_pos)
        kinds = [
            FULL if part.all() else PARTIAL if part.any() else EMPTY
            for part in seen.split(tile[1], 1)
        ]
        yield seen, torch.tensor(kinds)


def draw_pairs(
    axes: Axes,
    geometry: Geometry,
    q_len: int,
    k_len: int,
    query_offset: int,
    tile: tuple[int, int],
    query: int | None,
) -> None:
    """A pixel for each pair, or for each tile where pairs are too many."""
    kinds, pixels = [], []
    for seen, row in tile_rows(geometry, q_len, k_len, query_offset, tile):
        kinds.append(row)
        if q_len * k_len <= MOST_PIXELS:
            around = row.repeat_interleave(tile[1])[:k_len]
            pixels.append(torch.where(seen, around, torch.where(around == PARTIAL, HIDDEN, EMPTY)))
    of_tiles = torch.stack(kinds)
    draw_pixels(axes, torch.cat(pixels) if pixels else of_tiles, q_len, k_len)
    draw_lines(axes, range(0, q_len, tile[0]), range(0, k_len, tile[1]))
    if query is not None:
        draw_box(axes, query, 0, 1, k_len, edgecolor=QUERY)
    axes.set(xlabel="key", ylabel="query")
    names = {FULL: "full", PARTIAL: "partial", EMPTY: "empty"}
    counts = {name: int((of_tiles == kind).sum()) for kind, name in names.items()}
    legend(axes, {f"{counts[name]} {name} tiles": COLOURS[kind] for kind, name in names.items()})


def draw_canvas(
    axes: Axes,
    geometry: Geometry,
    k_len: int,
    grid: tuple[int, int],
    query: int,
    query_offset: int,
) -> None:
    """The canvas's cells; those that the query sees, the query, and its block if there are any."""
    rows, cols = grid
    cells = torch.arange(rows * cols)
    seen = geometry.visible(torch.tensor(query + query_offset), cells) & (cells < k_len)
    draw_pixels(axes, torch.where(seen, FULL, EMPTY).view(rows, cols), rows, cols)
    draw_lines(axes, range(rows), range(cols))
    row, col = divmod(query, cols)
    shown = {"seen": COLOURS[FULL], "not seen": COLOURS[EMPTY]}
    if isinstance(geometry, Local2d):
        block = next(b for b in geometry.blocks() if row < b.bottom and col < b.right)
        draw_box(axes, block.top, block.left, block.bottom - block.top, block.width)
    if query < rows * cols:
        draw_box(axes, row, col, 1, 1, facecolor=QUERY, fill=True)
        shown["query"] = QUERY
    axes.set(xlabel="column", ylabel="row")
    legend(axes, shown)


def draw_pixels(axes: Axes, pixels: Tensor, rows: int, cols: int) -> None:
    """Pixels over an area of rows x cols; row and column n have their middle at n."""
    rgb = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS]
    image = torch.tensor(rgb, dtype=torch.uint8)[pixels]
    area = (-0.5, cols - 0.5, rows - 0.5, -0.5)
    axes.imshow(image.numpy(), extent=area, interpolation="nearest", aspect="equal")


def draw_lines(axes: Axes, rows: range, cols: range) -> None:
    if max(len(rows), len(cols)) > MOST_LINES:
        return
    for row in rows:
        axes.axhline(row - 0.5, color=LINE, linewidth=0.4)
    for col in cols:
        axes.axvline(col - 0.5, color=LINE, linewidth=0.4)


def draw_box(axes: Axes, top: int, left: int, height: int, width: int, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    default: dict[str, Any] = {"fill": False, "linewidth": 1.5, "edgecolor": "black"}
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, **(default | style)))


def legend(axes: Axes, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=c, edgecolor=LINE, label=name) for name, c in colours.items()]
    axes.figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=9)


def save(figure: Figure, path: Path) -> None:
    """The same bytes for the same picture: no date, and names in an SVG that do not change."""
    from matplotlib import rc_context

    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "attn_kernels"}):
        figure.savefig(path, metadata=metadata.get(path.suffix.lower()))
