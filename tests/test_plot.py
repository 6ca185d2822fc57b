"""plot(): pictures show what geometries say, as SVG that parses."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, Relative, plot
from attn_kernels.core.plot import LINE, OWN, SEEN, WIDTH, mixed

CHECKERS = Pattern.from_function(lambda q, k: (q + k) % 2 == 0, 6, 9)


def cells(svg: str, rows: int, cols: int) -> dict[tuple[int, int], str]:
    """The colour of every drawn cell by (row, column)."""
    root = ElementTree.fromstring(svg)
    cell = WIDTH / max(rows, cols)
    found = {}
    for path in root.findall("{http://www.w3.org/2000/svg}path")[1:]:
        for x, y, width in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v", path.get("d")):
            for i in range(max(1, round(float(width) / cell))):
                found[round(float(y) / cell), round(float(x) / cell) + i] = path.get("fill")
    return found


@pytest.mark.parametrize(
    ("geometry", "sizes"),
    [
        (Full(), (5, 7)),
        (Causal(), (16, 16)),
        (Causal(3), (4, 16)),
        (Local1d(4, 2, 2, causal=False), (10, 10)),
        (CHECKERS, (6, 9)),
    ],
    ids=str,
)
def test_cells_are_the_visible_pairs(geometry, sizes):
    q_len, k_len = sizes
    q_pos = torch.arange(q_len).view(-1, 1) + geometry.default_offset(q_len, k_len)
    seen = geometry.visible(q_pos, torch.arange(k_len)).expand(q_len, k_len)
    expected = {tuple(pair): SEEN for pair in seen.nonzero().tolist()}
    assert cells(plot(geometry, q_len, k_len).svg, q_len, k_len) == expected


def test_defaults():
    """16 queries and as many keys; a pattern in its own size; query_offset moves queries."""
    assert plot(Causal()).svg == plot(Causal(), 16, 16).svg
    assert plot(CHECKERS).svg == plot(CHECKERS, 6, 9).svg
    assert len(cells(plot(Causal(), 4, 16, query_offset=0).svg, 4, 16)) == 1 + 2 + 3 + 4


@pytest.mark.parametrize("causal", [False, True])
def test_a_canvas_shows_one_query(causal):
    """With blocks that are cut at the edge; large canvases have no gaps between cells."""
    for grid in ((5, 7), (40, 50)):
        geometry = Local2d(grid, (2, 3), (1, 2), causal)
        query = (3, 4)
        found = cells(plot(geometry, query=query).svg, *grid)
        position = torch.tensor(query[0] * grid[1] + query[1])
        seen = geometry.visible(position, torch.arange(grid[0] * grid[1])).view(grid)
        assert set(found) == {tuple(pair) for pair in seen.nonzero().tolist()}
        assert [cell for cell, colour in found.items() if colour == OWN] == [query]
    assert plot(geometry).svg == plot(geometry, query=(21, 25)).svg


def test_colours_tell_the_row_of_a_table():
    """Distance 0 is dark, the farthest row light, and what a "zero" table does not reach grey."""
    table = torch.zeros(1, 4, 2)
    found = cells(plot(Causal(), 6, score=Relative(table, beyond="zero")).svg, 6, 6)
    assert {found[i, i] for i in range(6)} == {mixed(0)}
    assert found[3, 0] == found[5, 2] == mixed(1)
    assert found[4, 0] == LINE
    clipped = cells(plot(Causal(), 6, score=Relative(table)).svg, 6, 6)
    assert clipped[4, 0] == mixed(1)
    both = cells(plot(Full(), 6, score=Relative(torch.zeros(1, 5, 2))).svg, 6, 6)
    assert both[0, 1] == both[1, 0] == mixed(0.5)
    assert (mixed(0), mixed(1)) == ("#2f6690", "#c9dce8")


def test_saving_and_notebooks(tmp_path):
    picture = plot(Full())
    picture.save(tmp_path / "full.svg")
    assert (tmp_path / "full.svg").read_text() == picture.svg == picture._repr_svg_()


LOCAL = Local2d((4, 4), (2, 2), (1, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot("causal"), TypeError, "geometry must be a Geometry, got str"),
        (lambda: plot(Full(), score=3), TypeError, "score must be None or a Relative, got int"),
        (lambda: plot(Full(), 0), ValueError, "plot: q_len must be at least 1, got 0"),
        (lambda: plot(Full(), 2, 2.5), TypeError, "plot: k_len must be an int, got float"),
        (
            lambda: plot(Full(), query=(1, 1)),
            ValueError,
            r"query must be None in one dimension, got \(1, 1\)",
        ),
        (
            lambda: plot(Full(), query_offset=1.5),
            TypeError,
            "query_offset must be an int, got float",
        ),
        (lambda: plot(LOCAL, 4), ValueError, "q_len must be None under Local2d, got 4"),
        (lambda: plot(LOCAL, query=3), TypeError, "query must be a tuple of two ints, got 3"),
        (
            lambda: plot(LOCAL, query=(4, 0)),
            ValueError,
            r"query must lie on the canvas of 4 x 4, got \(4, 0\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
