"""plot(): what each query sees, as a small SVG picture that notebooks show and files hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .geometry import Geometry, check_count
from .score import Relative

SEEN, HIDDEN, OWN, LINE = "#2f6690", "#eef1f4", "#b5302a", "#5f6b76"
NEAR, FAR = (0x2F, 0x66, 0x90), (0xC9, 0xDC, 0xE8)  # a table's row of distance 0, and its farthest
DEFAULT_LENGTH = 16
WIDTH = 208  # of the drawing, in pixels; cells divide it
MARGIN = 4


@dataclass(frozen=True)
class Picture:
    """An SVG drawing: `svg` is its text, save() writes it, a notebook shows it."""

    svg: str = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write an .svg file."""
        Path(path).write_text(self.svg)

    def _repr_svg_(self) -> str:
        return self.svg


def plot(
    geometry: Geometry,
    q_len: int | None = None,
    k_len: int | None = None,
    *,
    score: Relative | None = None,
    query: tuple[int, int] | None = None,
    query_offset: int | None = None,
) -> Picture:
    """Draw which keys a query may see.

    In one dimension a row is a query, a column a key, and a coloured cell a pair that attends. In
    two dimensions the picture is the canvas: the cells that one query sees, that query, and the
    blocks.

    Args:
        q_len, k_len: how many queries and keys are drawn, in one dimension. Default 16 (a Pattern:
            its own size), and as many keys as queries.
        score: the colour of a pair tells the row of the table that it reads: distance 0 is dark.
        query: (row, column) of the query whose keys are drawn, in two dimensions. Default: one in
            the middle of the canvas.
        query_offset: as for `attention`, an int.
    """
    if not isinstance(geometry, Geometry):
        raise TypeError(f"geometry must be a Geometry, got {type(geometry).__name__}")
    if score is not None and not isinstance(score, Relative):
        raise TypeError(f"score must be None or a Relative, got {type(score).__name__}")
    if geometry.two_dimensional:
        for name, value in (
            ("q_len", q_len),
            ("k_len", k_len),
            ("score", score),
            ("query_offset", query_offset),
        ):
            if value is not None:
                raise ValueError(f"{name} must be None under Local2d, got {value!r}")
        return Picture(canvas(geometry, middle(geometry) if query is None else query))
    if query is not None:
        raise ValueError(f"query must be None in one dimension, got {query!r}")
    q_len = getattr(geometry, "q_len", DEFAULT_LENGTH) if q_len is None else q_len
    k_len = getattr(geometry, "k_len", q_len) if k_len is None else k_len
    check_count("plot", "q_len", q_len, 1)
    check_count("plot", "k_len", k_len, 1)
    if query_offset is None:
        query_offset = geometry.default_offset(q_len, k_len)
    elif not isinstance(query_offset, int):
        raise TypeError(f"query_offset must be an int, got {type(query_offset).__name__}")
    return Picture(pairs(geometry, q_len, k_len, query_offset, score))


# --- Drawing ---


def document(rows: int, cols: int, cell: float, elements: list[str], title: str) -> str:
    """The SVG file around the elements of a grid."""
    width, height = cols * cell + 2 * MARGIN, rows * cell + 2 * MARGIN
    ground = f'<path fill="{HIDDEN}" d="M0 0h{cols * cell:g}v{rows * cell:g}H0z"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
        f' viewBox="{-MARGIN} {-MARGIN} {width:g} {height:g}" shape-rendering="crispEdges">\n'
        f"<title>{title}</title>\n" + "\n".join([ground, *elements]) + "\n</svg>\n"
    )


def runs(colours: list[str | None]) -> Iterator[tuple[int, int, str]]:
    """Neighbours of one colour as (first, count, colour); None is left out."""
    first = 0
    for i in range(1, len(colours) + 1):
        if i == len(colours) or colours[i] != colours[first]:
            if colours[first] is not None:
                yield first, i - first, colours[first]
            first = i


def grid_lines(rows: list[int], cols: list[int], size: tuple[float, float], cell: float) -> str:
    """Lines above these rows and left of these columns."""
    width, height = size
    path = [f"M0 {row * cell:g}H{width:g}" for row in rows]
    path += [f"M{col * cell:g} 0V{height:g}" for col in cols]
    return f'<path d="{"".join(path)}" stroke="{LINE}" stroke-width="1" fill="none"/>'


def coloured(colours: list[list[str | None]], cell: float) -> list[str]:
    """A grid of colours, a path for each colour; where cells are large, with gaps between them."""
    gap = 1 if cell >= 6 else 0
    paths: dict[str, list[str]] = {}
    for row, line in enumerate(colours):
        for first, count, colour in runs(line):
            for col, n in [(first + i, 1) for i in range(count)] if gap else [(first, count)]:
                width, height = n * cell - gap, cell - gap
                outline = f"M{col * cell:g} {row * cell:g}h{width:g}v{height:g}h{-width:g}z"
                paths.setdefault(colour, []).append(outline)
    return [f'<path fill="{colour}" d="{"".join(d)}"/>' for colour, d in paths.items()]


# --- One dimension ---


def pairs(geometry: Geometry, q_len: int, k_len: int, offset: int, score: Relative | None) -> str:
    """Queries down, keys across."""
    q_pos, k_pos = torch.arange(q_len).view(-1, 1) + offset, torch.arange(k_len).view(1, -1)
    seen = (geometry.visible(q_pos, k_pos) & (q_pos == q_pos)).expand(q_len, k_len)
    shades = [[SEEN] * k_len] * q_len
    if score is not None:
        shades = table_rows(score, k_pos - q_pos, geometry.causal)
    colours = [
        [shade if visible else None for shade, visible in zip(*lines, strict=True)]
        for lines in zip(shades, seen.tolist(), strict=True)
    ]
    cell = WIDTH / max(q_len, k_len)
    return document(q_len, k_len, cell, coloured(colours, cell), f"{geometry}: keys of each query")


def table_rows(score: Relative, offset: Tensor, causal: bool) -> list[list[str]]:
    """A colour for each pair: dark at distance 0, lighter by row, grey beyond the table."""
    row, used = score.rows(offset, causal)
    last = score.rel_k.shape[1] - 1
    centre = last if causal else last // 2
    share = (row - centre).abs() / max(centre, 1)
    shades = [
        [mixed(x) if inside else LINE for x, inside in zip(*line, strict=True)]
        for line in zip(share.tolist(), used.tolist(), strict=True)
    ]
    return shades


def mixed(share: float) -> str:
    """From NEAR (0) to FAR (1)."""
    return "#" + "".join(
        f"{round(a + share * (b - a)):02x}" for a, b in zip(NEAR, FAR, strict=True)
    )


# --- Two dimensions ---


def middle(geometry: Geometry) -> tuple[int, int]:
    """A query inside the block at the canvas's middle."""
    (rows, cols), (block_rows, block_cols) = geometry.grid, geometry.block
    top = rows // 2 // block_rows * block_rows
    left = cols // 2 // block_cols * block_cols
    return min(top + block_rows // 2, rows - 1), min(left + block_cols // 2, cols - 1)


def canvas(geometry: Geometry, query: Any) -> str:
    """The cells that one query sees, the query, and the edges of the blocks."""
    rows, cols = geometry.grid
    is_pair = isinstance(query, tuple) and len(query) == 2
    if not is_pair or not all(isinstance(part, int) for part in query):
        raise TypeError(f"query must be a tuple of two ints, got {query!r}")
    if not (0 <= query[0] < rows and 0 <= query[1] < cols):
        raise ValueError(f"query must lie on the canvas of {rows} x {cols}, got {query}")
    position = query[0] * cols + query[1]
    seen = geometry.visible(torch.tensor(position), torch.arange(rows * cols)).view(rows, cols)
    colours = [[SEEN if visible else None for visible in line] for line in seen.tolist()]
    colours[query[0]][query[1]] = OWN
    cell = WIDTH / max(rows, cols)
    edges = list(range(0, rows, geometry.block[0])), list(range(0, cols, geometry.block[1]))
    lines = grid_lines([*edges[0], rows], [*edges[1], cols], (cols * cell, rows * cell), cell)
    title = f"{geometry}: keys of the query at {query}"
    return document(rows, cols, cell, [*coloured(colours, cell), lines], title)
