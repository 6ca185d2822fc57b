"""Geometries in Triton: which keys a tile of queries visits, which queries a tile of keys, who sees
whom.

The rules are those of core/geometry.py and csrc/geometry.h; a test holds them together. Keys
of a query tile are numbered: by position in one dimension, in the order they are gathered on a
canvas. In that order every query sees one span of keys and spans only move forward, so two
comparisons are the only mask there is. Numbers are int32; positions are int64, as a query's offset
may be anything.

GEOMETRY is a geometry's name, with what a mask must know at compile time: see `kind`.
"""

from __future__ import annotations

import triton
import triton.language as tl


def kind(name: str, extent: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """GEOMETRY, and the numbers that its functions below unpack."""
    if name == "causal":
        return ("window", (extent[0],)) if extent[0] else ("causal", (0,))
    if name == "local_1d":
        return ("local_1d_causal" if extent[3] else "local_1d"), extent[:3]
    if name == "local_2d":
        return ("local_2d_causal" if extent[6] else "local_2d"), extent[:6]
    return "full", (0,)


def is_causal(geometry: str) -> bool:
    """Whether a relative table ends at distance 0."""
    return geometry not in ("full", "local_1d", "local_2d")


def query_tiles(geometry: str, extent: tuple[int, ...], q_rows: int, block_q: int) -> int:
    """Tiles of one head; q_rows counts packed rows."""
    if not geometry.startswith("local_2d"):
        return triton.cdiv(q_rows, block_q)
    rows, cols, block_rows, block_cols, _, _ = extent
    blocks = triton.cdiv(rows, block_rows) * triton.cdiv(cols, block_cols)
    return blocks * triton.cdiv(block_rows * block_cols, block_q)


def key_tiles(geometry: str, extent: tuple[int, ...], k_len: int, block_k: int) -> int:
    """Tiles of one head's keys. On a canvas they are cells: blocks, shifted as `key_cell` tells."""
    if not geometry.startswith("local_2d"):
        return triton.cdiv(k_len, block_k)
    rows, cols, block_rows, block_cols, halo_rows, halo_cols = extent
    down = triton.cdiv(rows + -halo_rows % block_rows, block_rows)
    across = triton.cdiv(cols + -halo_cols % block_cols, block_cols)
    return down * across * triton.cdiv(block_rows * block_cols, block_k)


def cells_are_dense(geometry: str, extent: tuple[int, ...]) -> bool:
    """Whether every query that sees one key of a cell sees them all."""
    if geometry != "local_2d":
        return False
    _, _, block_rows, block_cols, halo_rows, halo_cols = extent
    return 2 * halo_rows % block_rows == 0 and 2 * halo_cols % block_cols == 0


@triton.jit
def clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def floor_div(x, y):
    """x // y rounded down, y > 0: Triton rounds towards zero."""
    return tl.where(x >= 0, x // y, -((y - 1 - x) // y))


# --- One dimension ---


@triton.jit
def key_spans(first, shift, k_len, extent, GEOMETRY: tl.constexpr):
    """The keys [start, stop) of the queries at first + shift, clipped to [0, k_len]. shift >= 0."""
    pos = first + shift
    start = pos * 0
    stop = start + k_len
    if GEOMETRY == "causal":
        stop = pos + 1
    elif GEOMETRY == "window":
        start = pos + 1 - extent[0]
        stop = pos + 1
    elif GEOMETRY == "local_1d" or GEOMETRY == "local_1d_causal":
        block, look_back, look_ahead = extent
        # one division of a scalar in 64 bits, the tile's in 32
        first_block = floor_div(first, block) * block
        block_start = first_block + ((first - first_block).to(tl.int32) + shift) // block * block
        start = block_start - look_back
        stop = block_start + block + look_ahead
        if GEOMETRY == "local_1d_causal":
            stop = pos + 1
    else:
        tl.static_assert(GEOMETRY == "full")
    start = clamp(start, 0, k_len).to(tl.int32)
    return start, tl.maximum(clamp(stop, 0, k_len).to(tl.int32), start)


@triton.jit
def first_reaching(key, extent, GEOMETRY: tl.constexpr):
    """The first position whose span ends behind `key`. Not for "full"."""
    if GEOMETRY == "local_1d":
        block, _, look_ahead = extent
        return floor_div(key - look_ahead, block) * block
    else:
        return key


@triton.jit
def first_passing(key, extent, GEOMETRY: tl.constexpr):
    """The first position whose span starts behind `key`. Only where spans have a start."""
    if GEOMETRY == "window":
        return key + extent[0]
    else:
        block, look_back, _ = extent
        return (floor_div(key + look_back, block) + 1) * block


@triton.jit
def query_range(key_start, key_stop, offset, q_len, extent, GEOMETRY: tl.constexpr):
    """The queries [start, stop) that see some key of the tile, and those that see all of it."""
    start = 0
    full_start = 0
    stop = q_len
    full_stop = q_len
    if GEOMETRY != "full":
        start = first_reaching(key_start.to(tl.int64), extent, GEOMETRY) - offset
        full_start = first_reaching(key_stop.to(tl.int64) - 1, extent, GEOMETRY) - offset
        start = clamp(start, 0, q_len).to(tl.int32)
        full_start = clamp(full_start, 0, q_len).to(tl.int32)
        if GEOMETRY != "causal":
            stop = first_passing(key_stop.to(tl.int64) - 1, extent, GEOMETRY) - offset
            full_stop = first_passing(key_start.to(tl.int64), extent, GEOMETRY) - offset
            stop = clamp(stop, 0, q_len).to(tl.int32)
            full_stop = clamp(full_stop, 0, q_len).to(tl.int32)
    return start, stop, full_start, full_stop


# --- A canvas ---


@triton.jit
def make_box(top, bottom, left, right, cols, k_len):
    """(top, left, width, count): a rectangle in raster order, as far as the keys go."""
    width = right - left
    last_row = k_len // cols
    whole_rows = clamp(last_row - top, 0, bottom - top)
    rest = tl.where(
        (last_row >= top) & (last_row < bottom), clamp(k_len % cols - left, 0, width), 0
    )
    return top, left, width, whole_rows * width + rest


@triton.jit
def box_position(n, box, cols):
    """Position of the box's n-th cell."""
    top, left, width, _ = box
    width = tl.maximum(width, 1)
    return (top + n // width) * cols + left + n % width


@triton.jit
def query_block(tile, k_len, extent, GEOMETRY: tl.constexpr, BLOCK_Q: tl.constexpr):
    """A tile of a block's queries: (box of its block, first query in it, boxes of its keys)."""
    rows, cols, block_rows, block_cols, halo_rows, halo_cols = extent
    parts = (block_rows * block_cols + BLOCK_Q - 1) // BLOCK_Q
    across = (cols + block_cols - 1) // block_cols
    block = tile // parts
    top = block // across * block_rows
    left = block % across * block_cols
    bottom = tl.minimum(top + block_rows, rows)
    right = tl.minimum(left + block_cols, cols)
    own = make_box(top, bottom, left, right, cols, rows * cols)
    halo_top = tl.maximum(top - halo_rows, 0)
    halo_left = tl.maximum(left - halo_cols, 0)
    halo_right = tl.minimum(right + halo_cols, cols)
    if GEOMETRY == "local_2d_causal":
        above = make_box(halo_top, top, halo_left, halo_right, cols, k_len)
        beside = make_box(top, bottom, halo_left, left, cols, k_len)
        inside = make_box(top, bottom, left, right, cols, k_len)
    else:
        halo_bottom = tl.minimum(bottom + halo_rows, rows)
        above = make_box(halo_top, halo_bottom, halo_left, halo_right, cols, k_len)
        beside = above
        inside = above
    return own, tile % parts * BLOCK_Q, (above, beside, inside)


@triton.jit
def key_position(n, boxes, extent, GEOMETRY: tl.constexpr):
    """Position of the tile's n-th key."""
    if GEOMETRY == "local_2d":
        return box_position(n, boxes[0], extent[1])
    elif GEOMETRY == "local_2d_causal":
        above, beside, inside = boxes
        n_above = above[3]
        n_before = n_above + beside[3]
        pos = box_position(n - n_before, inside, extent[1])
        pos = tl.where(n < n_before, box_position(n - n_above, beside, extent[1]), pos)
        return tl.where(n < n_above, box_position(n, above, extent[1]), pos)
    else:
        return n


@triton.jit
def key_cell(tile, k_len, extent, GEOMETRY: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tile of keys on a canvas: (box of its cell, first key in it, box of the queries that see
    it).

    Cells are blocks shifted by the halo. Where twice the halo is a multiple of the block, all keys
    of a cell are then seen by the same queries; without the shift a block's corners have different
    ones.
    """
    rows, cols, block_rows, block_cols, halo_rows, halo_cols = extent
    shift_rows = (block_rows - halo_rows % block_rows) % block_rows
    shift_cols = (block_cols - halo_cols % block_cols) % block_cols
    parts = (block_rows * block_cols + BLOCK_K - 1) // BLOCK_K
    across = (cols + shift_cols + block_cols - 1) // block_cols
    cell = tile // parts
    top = cell // across * block_rows - shift_rows
    left = cell % across * block_cols - shift_cols
    bottom = tl.minimum(top + block_rows, rows)
    right = tl.minimum(left + block_cols, cols)
    top = tl.maximum(top, 0)
    left = tl.maximum(left, 0)
    own = make_box(top, bottom, left, right, cols, k_len)
    q_top = floor_div(top - halo_rows, block_rows) * block_rows
    if GEOMETRY == "local_2d_causal":
        q_top = top // block_rows * block_rows
    q_left = floor_div(left - halo_cols, block_cols) * block_cols
    q_bottom = ((bottom - 1 + halo_rows) // block_rows + 1) * block_rows
    q_right = ((right - 1 + halo_cols) // block_cols + 1) * block_cols
    queries = make_box(
        tl.maximum(q_top, 0), tl.minimum(q_bottom, rows),
        tl.maximum(q_left, 0), tl.minimum(q_right, cols), cols, rows * cols,
    )  # fmt: skip
    return own, tile % parts * BLOCK_K, queries


@triton.jit
def scan_order(row, col, extent):
    """Rank in the block raster scan."""
    rows, cols, block_rows, block_cols, _, _ = extent
    top = row // block_rows * block_rows
    left = col // block_cols * block_cols
    height = tl.minimum(top + block_rows, rows) - top
    width = tl.minimum(left + block_cols, cols) - left
    return top * cols + left * height + (row - top) * width + (col - left)


@triton.jit
def canvas_visible(q_pos, k_pos, extent, GEOMETRY: tl.constexpr):
    """Which pairs attend: q_pos and k_pos broadcast against each other."""
    _, cols, block_rows, block_cols, halo_rows, halo_cols = extent
    q_row, q_col = q_pos // cols, q_pos % cols
    k_row, k_col = k_pos // cols, k_pos % cols
    top = q_row // block_rows * block_rows
    left = q_col // block_cols * block_cols
    seen = (k_row >= top - halo_rows) & (k_row < top + block_rows + halo_rows)
    seen = seen & (k_col >= left - halo_cols) & (k_col < left + block_cols + halo_cols)
    if GEOMETRY == "local_2d_causal":
        seen = seen & (scan_order(k_row, k_col, extent) <= scan_order(q_row, q_col, extent))
    return seen


# --- A tile of queries, whatever the geometry ---


@triton.jit
def query_tile(
    tile, q_len, k_len, offset, extent, group,
    GEOMETRY: tl.constexpr, PACKED: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One tile of queries and the keys it visits.

    Returns, with a row per query (PACKED: per query and head of its group, heads fastest):
        index, exists: [BLOCK_Q] the query's place in q, and whether there is one.
        member: [BLOCK_Q] the head's place in its group.
        first, shift: rows stand at position first + shift, 0 <= shift < BLOCK_Q.
        low, high: [BLOCK_Q] the row's keys, by number.
        start, stop, full_start, full_stop: keys of some row, and of all rows.
        boxes: where numbered keys lie on a canvas.
    """
    row = tl.arange(0, BLOCK_Q)
    member = row * 0
    if GEOMETRY == "local_2d" or GEOMETRY == "local_2d_causal":
        own, part, boxes = query_block(tile, k_len, extent, GEOMETRY, BLOCK_Q)
        exists = part + row < own[3]
        count = clamp(own[3] - part, 0, BLOCK_Q)
        index = box_position(part + row, own, extent[1])
        first = tl.cast(part, tl.int64)
        shift = row
        n_keys = boxes[0][3]
        low = row * 0
        if GEOMETRY == "local_2d_causal":
            n_before = n_keys + boxes[1][3]
            n_inside = boxes[2][3]
            high = n_before + tl.minimum(part + row + 1, n_inside)
            stop = n_before + tl.minimum(part + count, n_inside)
            full_stop = n_before + tl.minimum(part + 1, n_inside)
        else:
            high = low + n_keys
            stop = n_keys
            full_stop = n_keys
        start = 0
        full_start = 0
        stop = tl.where(count > 0, stop, 0)
    else:
        if PACKED:
            first_index = tile * BLOCK_Q // group
            index = (tile * BLOCK_Q + row) // group
            member = (tile * BLOCK_Q + row) % group
            shift = index - first_index
            last = tl.minimum((tile * BLOCK_Q + BLOCK_Q - 1) // group, q_len - 1) - first_index
        else:
            first_index = tile * BLOCK_Q
            index = first_index + row
            shift = row
            last = tl.minimum(BLOCK_Q, q_len - first_index) - 1
        exists = index < q_len
        first = offset + first_index
        boxes = (0, 0, 0)
        low, high = key_spans(first, shift, k_len, extent, GEOMETRY)
        start, full_stop = key_spans(first, 0, k_len, extent, GEOMETRY)
        full_start, stop = key_spans(first, last, k_len, extent, GEOMETRY)
    return (
        index, exists, member, first, shift, low, high, start, stop, full_start, full_stop, boxes
    )  # fmt: skip
