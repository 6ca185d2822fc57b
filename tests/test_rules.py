"""The C++ rules and primitives against their Python originals, by brute force.

`attn_kernels._testing` is built for tests only (ATTN_KERNELS_TESTING=1); the primitives it calls are those
of the library itself, once per instruction set.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attn_kernels import Causal, Full, Local1d, Local2d, Relative, Window
from attn_kernels import _testing as testing
from attn_kernels.core.backends import cpu_library

KINDS = {"full": 0, "causal": 1, "local_1d": 2, "local_2d": 3, "window": 5}
GEOMETRIES_1D = [
    Full(),
    Causal(),
    Causal(1),
    Causal(5),
    Window(3, 2),
    Window(0, 40),
    Window(None, 1),
    Window(4, 0),
    Local1d(4, 4),
    Local1d(3, 7),
    Local1d(5, 0, 2, causal=False),
    Local1d(16, 1, 20, causal=False),
]
GEOMETRIES_2D = [
    Local2d(grid, block, halo, causal)
    for grid in [(3, 7), (7, 3), (8, 8), (5, 1)]
    for block in [(2, 3), (1, 1), (4, 4), (9, 9)]
    for halo in [(1, 2), (0, 3), (2, 0), (3, 8)]
    for causal in (False, True)
]


def tiles_of(geometry, tile_size, q_len, k_len, query_offset):
    extent = list(geometry.extent())
    return testing.tiles(
        KINDS[geometry.name], geometry.causal, extent, tile_size, q_len, k_len, query_offset
    )


def check_tiles(geometry, tiles, q_len, k_len, query_offset):
    """Each query is in one tile; its span of the gathered keys is exactly what it sees."""
    assert sorted(query for tile in tiles for query in tile.queries) == list(range(q_len))
    for tile in tiles:
        assert len(set(tile.keys)) == len(tile.keys)
        assert all(0 <= key < k_len for key in tile.keys)
        spans = list(tile.visible)
        assert spans == sorted(spans), "spans must only move forward"
        for query, (start, stop) in zip(tile.queries, spans, strict=True):
            seen = {key for key in range(k_len) if geometry.visible(query + query_offset, key)}
            assert set(tile.keys[start:stop]) == seen
        used = {n for start, stop in spans for n in range(start, stop)}
        assert used == set(range(len(tile.keys))), "a key that nobody sees must not be gathered"


@pytest.mark.parametrize("geometry", GEOMETRIES_1D, ids=str)
@pytest.mark.parametrize("tile_size", [1, 4, 16])
def test_tiles_1d(geometry, tile_size):
    for q_len, k_len in [(11, 11), (5, 17), (17, 5), (1, 9)]:
        for offset in (-3, 0, k_len - q_len, 4):
            tiles = tiles_of(geometry, tile_size, q_len, k_len, offset)
            check_tiles(geometry, tiles, q_len, k_len, offset)


@pytest.mark.parametrize("geometry", GEOMETRIES_2D, ids=str)
def test_tiles_2d(geometry):
    n = geometry.grid[0] * geometry.grid[1]
    for tile_size in (1, 4, 16):
        for k_len in (n, n * 2 // 3, 1, 0):
            tiles = tiles_of(geometry, tile_size, n, k_len, 0)
            check_tiles(geometry, tiles, n, k_len, 0)


@pytest.mark.parametrize("geometry", GEOMETRIES_2D, ids=str)
def test_tiles_2d_follow_the_scan(geometry):
    """The kernels' scan order is Local2d.order."""
    n = geometry.grid[0] * geometry.grid[1]
    scanned = [query for tile in tiles_of(geometry, 4, n, n, 0) for query in tile.queries]
    assert [geometry.order(query) for query in scanned] == list(range(n))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 9])
def test_band_rows(causal, n_rows):
    """Offsets are cut at the ends of the table as Relative.rows clips them."""
    relative = Relative(torch.zeros(1, n_rows, 1), beyond="zero")
    for first in range(-15, 15):
        for count in (0, 1, 4, 20):
            rows, inside = relative.rows(torch.arange(first, first + count), causal)
            below, in_table, above, row = testing.band_rows(first, count, n_rows, causal)
            assert below + in_table + above == count
            assert inside.tolist() == [False] * below + [True] * in_table + [False] * above
            got = [0] * below + list(range(row, row + in_table)) + [n_rows - 1] * above
            assert rows.tolist() == got


@pytest.fixture(params=cpu_library.isas)
def isa_set(request):
    """Address of an instruction set's table of functions."""
    cpu_library.use_isa(request.param)
    yield cpu_library.c.attn_kernels_cpu_set()
    cpu_library.use_isa("")


DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2(isa_set, dtype):
    """2^x within 1.5 units in the last place, exactly 0 for what is masked, exactly 1 at 0."""
    x = np.concatenate([np.linspace(-140, 126, 20011), -np.logspace(-8, 2, 5000)]).astype(dtype)
    lowest = -125 if dtype == np.float32 else -1000
    x = x[x > lowest]
    truth = np.exp2(x.astype(np.longdouble))
    error = np.abs(testing.exp2(isa_set, x).astype(np.longdouble) - truth) / truth
    assert error.max() < 1.5 * np.finfo(dtype).eps
    special = np.array([0, -np.inf, -1e30, -5000, np.nan], dtype)
    assert testing.exp2(isa_set, special).tolist()[:4] == [1, 0, 0, 0]
    assert np.isnan(testing.exp2(isa_set, special)[4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose(isa_set, dtype):
    lanes = testing.lanes(isa_set, np.zeros(1, dtype))
    x = np.random.default_rng(0).standard_normal((3 * lanes, 3 * lanes)).astype(dtype)
    assert np.array_equal(testing.transpose(isa_set, x), x.T)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shear(isa_set, dtype, sign):
    """to[j, i] += from[j + sign * i, i] for the lanes i of one vector, and nothing else moves."""
    lanes, pitch = testing.lanes(isa_set, np.zeros(1, dtype)), 256 // np.dtype(dtype).itemsize
    random = np.random.default_rng(0)
    for n in (1, 2, lanes, lanes + 3, 40):
        source = random.standard_normal((n + 2 * lanes, pitch)).astype(dtype)
        target = random.standard_normal((n, pitch)).astype(dtype)
        want = target.copy()
        for j in range(n):
            for i in range(lanes):
                want[j, i] += source[lanes + j + sign * i, i]
        assert np.array_equal(testing.shear(isa_set, sign, source, lanes, target), want)
