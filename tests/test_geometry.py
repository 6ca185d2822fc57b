"""Geometries by brute force: every rule against its definition, one pair of positions at a time."""

from __future__ import annotations

import sys
from itertools import product

import pytest
import torch
from common import scan_key, sees

from attn_kernels import Causal, Full, Local1d, Local2d, Window
from attn_kernels.core.geometry import Geometry

ONE_DIMENSIONAL = [
    Full(),
    *(Causal(window) for window in (None, 1, 2, 5, 16, 100)),
    *(Window(*sides) for sides in ((0, 0), (3, 0), (None, 0), (None, None), (0, None), (None, 2))),
    *(Window(*sides) for sides in ((0, 5), (4, 1), (7, 100), (sys.maxsize, 3))),
    *(Local1d(block, look_back) for block, look_back in ((1, 0), (1, 3), (4, 0), (4, 4), (7, 2))),
    *(Local1d(block, look_back) for block, look_back in ((5, 11), (16, 16), (64, 3))),
    *(
        Local1d(block, look_back, look_ahead, causal=False)
        for block, look_back, look_ahead in (
            (1, 0, 0), (1, 2, 3), (4, 0, 0), (4, 4, 4), (5, 0, 7), (7, 9, 0), (64, 3, 3),
        )
    ),
]  # fmt: skip
GRIDS = [(1, 1), (1, 9), (9, 1), (3, 7), (7, 3), (6, 6), (5, 8), (8, 5)]
BLOCKS = [(1, 1), (2, 2), (2, 3), (3, 2), (4, 1), (1, 5), (16, 16)]
HALOS = [(0, 0), (1, 1), (0, 2), (2, 0), (1, 3), (4, 1), (20, 20)]
TWO_DIMENSIONAL = [
    Local2d(grid, block, halo, causal)
    for grid, block, halo, causal in product(GRIDS, BLOCKS, HALOS, (False, True))
]
LENGTHS = [(1, 1), (7, 7), (20, 20), (1, 20), (9, 20), (20, 9)]


def scan_order(geometry: Local2d) -> list[int]:
    """Positions in the order of the block raster scan."""
    return sorted(range(geometry.grid[0] * geometry.grid[1]), key=lambda p: scan_key(geometry, p))


@pytest.mark.parametrize("geometry", ONE_DIMENSIONAL, ids=repr)
def test_visible(geometry: Geometry) -> None:
    """visible() is the definition, for ints and for tensors, before and behind the sequence too."""
    q_pos = torch.arange(-20, 40).view(-1, 1)
    k_pos = torch.arange(30)
    visible = geometry.visible(q_pos, k_pos)
    for (i, p), j in product(enumerate(q_pos.flatten().tolist()), range(30)):
        assert bool(geometry.visible(p, j)) == bool(visible[i, j]) == sees(geometry, p, j)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_visible_2d(grid: tuple[int, int]) -> None:
    """visible() is the definition on canvases that are not square, both ways."""
    positions = torch.arange(grid[0] * grid[1])
    for geometry in (x for x in TWO_DIMENSIONAL if x.grid == grid):
        visible = geometry.visible(positions.view(-1, 1), positions)
        expected = [[sees(geometry, p, j) for j in positions.tolist()] for p in positions.tolist()]
        assert visible.tolist() == expected, geometry


def test_rows_and_columns_are_not_swapped() -> None:
    """A canvas of 2 x 6 with a halo of 0 rows and 2 columns, by hand: # sees, . does not."""
    geometry = Local2d(grid=(2, 6), block=(1, 2), halo=(0, 2))
    seen = ["".join(".#"[geometry.visible(p, j)] for j in range(12)) for p in (0, 2, 5, 8)]
    assert seen == ["####........", "######......", "..####......", "......######"]
    causal = Local2d(grid=(2, 6), block=(2, 2), halo=(1, 2), causal=True)
    seen = ["".join(".#"[causal.visible(p, j)] for j in range(12)) for p in (0, 6, 3, 8)]
    assert seen == ["#...........", "##....#.....", "####..##....", "####..###..."]


def test_order() -> None:
    """order() ranks positions by the block raster scan, blocks cut at the edge included."""
    for geometry in TWO_DIMENSIONAL:
        ranks = [geometry.order(position) for position in scan_order(geometry)]
        assert ranks == list(range(len(ranks))), geometry
        tensor = geometry.order(torch.tensor(scan_order(geometry)))
        assert tensor.tolist() == ranks, geometry


def test_order_by_hand() -> None:
    """A 3 x 5 canvas in blocks of 2 x 3."""
    geometry = Local2d(grid=(3, 5), block=(2, 3), halo=(0, 0))
    ranks = [[geometry.order(row * 5 + col) for col in range(5)] for row in range(3)]
    assert ranks == [[0, 1, 2, 6, 7], [3, 4, 5, 8, 9], [10, 11, 12, 13, 14]]


@pytest.mark.parametrize("geometry", [x for x in ONE_DIMENSIONAL if x != Full()], ids=repr)
def test_span(geometry: Geometry) -> None:
    """A query sees the keys of its span that exist, all of them, and spans only move forward."""
    before = geometry.span(-20)
    for p in range(-20, 40):
        first, stop = geometry.span(p)
        assert [j for j in range(30) if sees(geometry, p, j)] == [
            *range(max(first, 0), min(stop, 30))
        ]
        assert first >= before[0]
        assert stop >= before[1]
        before = first, stop


@pytest.mark.parametrize("geometry", ONE_DIMENSIONAL, ids=repr)
def test_visible_pairs(geometry: Geometry) -> None:
    """The count that speed is measured by."""
    for (q_len, k_len), extra in product(LENGTHS, (0, -25, -3, 4)):
        offset = k_len - q_len + extra
        pairs = product(range(offset, offset + q_len), range(k_len))
        expected = sum(sees(geometry, p, j) for p, j in pairs)
        assert geometry.visible_pairs(q_len, k_len, offset) == expected


def test_visible_pairs_2d() -> None:
    """The count that speed is measured by, on canvases."""
    for geometry in TWO_DIMENSIONAL:
        cells = geometry.grid[0] * geometry.grid[1]
        expected = sum(sees(geometry, p, j) for p, j in product(range(cells), repeat=2))
        assert geometry.visible_pairs(cells, cells, 0) == expected, geometry


def test_pairs_may_be_lists() -> None:
    """However a pair is written, the geometry is the same: equal, hashable, of tuples."""
    geometry = Local2d((6, 8), (2, 3), (1, 2))
    canvas = torch.empty(6, 8)
    for other in (Local2d([6, 8], [2, 3], [1, 2]), Local2d(canvas.shape, [2, 3], (1, 2))):
        assert other == geometry
        assert hash(other) == hash(geometry)
        assert str(other) == str(geometry)
        assert other.extent() == geometry.extent()


@pytest.mark.parametrize("grid", [(0, 0), (0, 5), (5, 0)], ids=str)
def test_empty_canvas(grid: tuple[int, int]) -> None:
    """A canvas without cells has no blocks and no pairs."""
    geometry = Local2d(grid, (2, 2), (1, 1))
    assert list(geometry.blocks()) == []
    assert geometry.visible_pairs(0, 0, 0) == 0
