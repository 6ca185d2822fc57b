"""Geometries in Triton: which keys a tile of queries visits, which queries a tile of keys, who sees
whom.

The rules are those of core/geometry.py and csrc/geometry.h; a test holds them together. Keys
of a query tile are numbered: by position in one dimension, in the order they are gathered on a
canvas, tile by tile under a Pattern. But for the last, every query sees one span of keys in that
order and spans only move forward, so two comparisons are the only mask there is; a Pattern has a
word of bits per row (core/pattern_tiles.py). Numbers are int32; positions are int64, as a query's
offset may be anything.

GEOMETRY is a geometry's name, with what a mask must know at compile time: see `kind`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..core import geometry as rules
from ..core.pattern_tiles import TILE

# On the host triton's own of these take 4 us a call.


def cdiv(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def power_of_2(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def kind(name: str, extent: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """GEOMETRY, and the numbers that its functions below unpack."""
    if name == "causal":
        return ("window", (extent[0],)) if extent[0] else ("causal", (0,))
    if name == "window":
        return "window_both", extent
    if name == "local_1d":
        return ("local_1d_causal" if extent[3] else "local_1d"), extent[:3]
    if name == "local_2d":
        return ("local_2d_causal" if extent[6] else "local_2d"), extent[:6]
    if name == "pattern":
        return "pattern", extent[:2]
    if name == "full":
        return "full", (0,)
    known = "full, causal, window, local_1d, local_2d or pattern"
    raise ValueError(f"geometry must be {known} in Triton, got {name!r}")


class Facts(NamedTuple):
    """What a GEOMETRY is.

    causal: no key behind the query is seen, and a relative table ends at distance 0. low: spans
    have a start as well as an end. canvas: keys lie in boxes.
    """

    causal: bool = False
    low: bool = False
    canvas: bool = False


FACTS = {
    "full": Facts(),
    "causal": Facts(causal=True),
    "window": Facts(causal=True, low=True),
    "window_both": Facts(low=True),
    "local_1d": Facts(low=True),
    "local_1d_causal": Facts(causal=True, low=True),
    "local_2d": Facts(canvas=True),
    "local_2d_causal": Facts(causal=True, canvas=True),
    "pattern": Facts(),
}


@triton.constexpr_function
def facts_of(geometry: str) -> Facts:
    """A geometry that is not listed is an error everywhere, never another one."""
    if geometry not in FACTS:
        raise ValueError(f"GEOMETRY must be one of {', '.join(FACTS)}, got {geometry!r}")
    return FACTS[geometry]


def is_causal(geometry: str) -> bool:
    """Whether a relative table ends at distance 0."""
    return facts_of(geometry).causal


def keys_end(geometry: str, extent: tuple[int, ...], last: int, k_len: int) -> int:
    """Behind the keys that the query at position `last` or one before it sees."""
    facts = facts_of(geometry)
    if facts.causal and not facts.canvas:
        k_len = min(k_len, last + 1)
    elif geometry == "window_both":
        k_len = min(k_len, last + 1 + extent[1])
    elif geometry == "local_1d":
        block, _, look_ahead = extent
        k_len = min(k_len, (last // block + 1) * block + look_ahead)
    return max(k_len, 0)


def query_tiles(geometry: str, extent: tuple[int, ...], q_rows: int, block_q: int) -> int:
    """Tiles of one head; q_rows counts packed rows."""
    if geometry == "pattern":
        return cdiv(q_rows + block_q - 1, block_q)  # the first may hold one query
    if not facts_of(geometry).canvas:
        return cdiv(q_rows, block_q)
    rows, cols, block_rows, block_cols, _, _ = extent
    blocks = cdiv(rows, block_rows) * cdiv(cols, block_cols)
    return blocks * cdiv(block_rows * block_cols, block_q)


def key_tiles(geometry: str, extent: tuple[int, ...], k_len: int, block_k: int) -> int:
    """Tiles of one head's keys. On a canvas they are cells: blocks, shifted as `key_cell` tells."""
    if not facts_of(geometry).canvas:
        return cdiv(k_len, block_k)
    rows, cols, block_rows, block_cols, halo_rows, halo_cols = extent
    down = cdiv(rows + -halo_rows % block_rows, block_rows)
    across = cdiv(cols + -halo_cols % block_cols, block_cols)
    return down * across * cdiv(block_rows * block_cols, block_k)


def block_room(geometry: str, extent: tuple[int, ...]) -> int:
    """Rows that a block's queries take where they lie block by block (`block_place`): whole steps
    of at most 128. 0 in one dimension."""
    if not facts_of(geometry).canvas:
        return 0
    area = extent[2] * extent[3]
    step = max(16, min(128, power_of_2(area)))
    return cdiv(area, step) * step


def cells_are_dense(geometry: str, extent: tuple[int, ...]) -> bool:
    """Whether every query that sees one key of a cell sees them all."""
    if geometry != "local_2d":
        return False
    _, _, block_rows, block_cols, halo_rows, halo_cols = extent
    return 2 * halo_rows % block_rows == 0 and 2 * halo_cols % block_cols == 0


PATTERN_TILE = tl.constexpr(TILE)
FARTHEST = tl.constexpr(rules.FARTHEST)


@triton.constexpr_function
def is_canvas(geometry):
    """Whether keys lie in boxes."""
    return facts_of(geometry).canvas


@triton.constexpr_function
def has_low(geometry):
    """Whether spans have a start."""
    return facts_of(geometry).low


@triton.jit
def clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def floor_div(x, y):
    """x // y rounded down, y > 0: Triton rounds towards zero."""
    return tl.where(x >= 0, x // y, -((y - 1 - x) // y))


# --- One dimension ---


@triton.jit
def block_start(first, shift, block):
    """The block boundary at or before first + shift, int64; first is a scalar, shift >= 0."""
    # one division of a scalar in 64 bits, the tile's in 32
    start = floor_div(first, block) * block
    return start + ((first - start).to(tl.int32) + shift) // block * block


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
    elif GEOMETRY == "window_both":
        start = pos - extent[0]
        stop = pos + 1 + extent[1]
    elif GEOMETRY == "local_1d" or GEOMETRY == "local_1d_causal":
        block, look_back, look_ahead = extent
        own_block = block_start(first, shift, block)
        start = own_block - look_back
        stop = own_block + block + look_ahead
        if GEOMETRY == "local_1d_causal":
            stop = pos + 1
    else:
        tl.static_assert(GEOMETRY == "full", "key_spans has no rule for this geometry")
    start = clamp(start, 0, k_len).to(tl.int32)
    return start, tl.maximum(clamp(stop, 0, k_len).to(tl.int32), start)


@triton.jit
def queries_of(first, shift, offset, q_len, extent, GEOMETRY: tl.constexpr):
    """The queries [start, stop) that see the keys first + shift. shift >= 0."""
    key = first.to(tl.int64) + shift
    start = key * 0
    stop = start + q_len
    if GEOMETRY == "causal":
        start = key - offset
    elif GEOMETRY == "window":
        start = key - offset
        stop = key + extent[0] - offset
    elif GEOMETRY == "window_both":
        start = key - extent[1] - offset
        stop = key + extent[0] + 1 - offset
    elif GEOMETRY == "local_1d" or GEOMETRY == "local_1d_causal":
        block, look_back, look_ahead = extent
        start = key - offset
        if GEOMETRY == "local_1d":
            start = block_start(first.to(tl.int64) - look_ahead, shift, block) - offset
        stop = block_start(first.to(tl.int64) + look_back, shift, block) + block - offset
    else:
        tl.static_assert(GEOMETRY == "full", "queries_of has no rule for this geometry")
    return clamp(start, 0, q_len).to(tl.int32), clamp(stop, 0, q_len).to(tl.int32)


@triton.jit
def query_range(key_start, key_stop, offset, q_len, extent, GEOMETRY: tl.constexpr):
    """The queries [start, stop) that see some key of the tile, and those that see all of it."""
    start, full_stop = queries_of(key_start, 0, offset, q_len, extent, GEOMETRY)
    full_start, stop = queries_of(key_stop - 1, 0, offset, q_len, extent, GEOMETRY)
    return start, stop, full_start, full_stop


# --- A canvas ---


@triton.jit
def inverse(by):
    """What `divide` wants of its divisor, 0 < by < 2^31: 2^31 / by, rounded up."""
    return tl.cast((1 << 31) - 1, tl.uint32) // tl.cast(by, tl.uint32) + 1


@triton.jit
def divide(n, by, inverse_of_by):
    """(n // by, n % by), 0 <= n < 2^30, in a third of a division's instructions."""
    quotient = tl.umulhi(tl.cast(2 * n, tl.uint32), inverse_of_by).to(tl.int32)
    rest = n - quotient * by
    above = rest < 0  # at most by one, as the inverse is less than one above
    return tl.where(above, quotient - 1, quotient), tl.where(above, rest + by, rest)


@triton.jit
def make_box(top, bottom, left, right, cols, k_len):
    """(top, left, width, count, inverse of the width): a rectangle in raster order, as far as the
    keys go."""
    width = right - left
    last_row = k_len // cols
    whole_rows = clamp(last_row - top, 0, bottom - top)
    rest = tl.where(
        (last_row >= top) & (last_row < bottom), clamp(k_len % cols - left, 0, width), 0
    )
    return top, left, width, whole_rows * width + rest, inverse(tl.maximum(width, 1))


@triton.jit
def box_position(n, box, cols):
    """Position of the box's n-th cell, n >= 0."""
    top, left, width, _, inverse_of_width = box
    row, col = divide(n, width, inverse_of_width)
    return (top + row) * cols + left + col


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
def either(first, x, y):
    """The box x where `first`, else y."""
    return (
        tl.where(first, x[0], y[0]), tl.where(first, x[1], y[1]), tl.where(first, x[2], y[2]),
        tl.where(first, x[3], y[3]), tl.where(first, x[4], y[4]),
    )  # fmt: skip


@triton.jit
def key_position(n, places, extent, GEOMETRY: tl.constexpr):
    """Position of the tile's n-th key."""
    if GEOMETRY == "local_2d":
        return box_position(n, places[0], extent[1])
    elif GEOMETRY == "local_2d_causal":
        above, beside, inside = places
        n_above = above[3]
        n_before = n_above + beside[3]
        first = tl.where(n < n_above, 0, tl.where(n < n_before, n_above, n_before))
        box = either(n < n_above, above, either(n < n_before, beside, inside))
        return box_position(n - first, box, extent[1])
    else:
        return n


@triton.jit
def key_cell(tile, k_len, extent, GEOMETRY: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tile of keys on a canvas: (box of its cell, first key in it, blocks of the queries that see
    it).

    Cells are blocks shifted by the halo. Where twice the halo is a multiple of the block, all keys
    of a cell are then seen by the same queries; without the shift a block's corners have different
    ones. Blocks: (first row, first column, blocks across, how many), in units of blocks.
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
    first_row = tl.maximum(top - halo_rows, 0) // block_rows
    if GEOMETRY == "local_2d_causal":
        first_row = top // block_rows
    first_col = tl.maximum(left - halo_cols, 0) // block_cols
    last_row = tl.minimum(bottom - 1 + halo_rows, rows - 1) // block_rows
    last_col = tl.minimum(right - 1 + halo_cols, cols - 1) // block_cols
    q_across = last_col - first_col + 1
    blocks = first_row, first_col, q_across, (last_row - first_row + 1) * q_across
    return own, tile % parts * BLOCK_K, blocks


@triton.jit
def block_steps(extent, BLOCK_Q: tl.constexpr):
    """Steps of BLOCK_Q queries that a block takes."""
    return (extent[2] * extent[3] + BLOCK_Q - 1) // BLOCK_Q


@triton.jit
def blocks_across(extent):
    """Columns of blocks on a canvas. Blocks are numbered in raster order."""
    return (extent[1] + extent[3] - 1) // extent[3]


@triton.jit
def block_box(row, col, extent):
    """Box of the block in this row and column of blocks."""
    rows, cols, block_rows, block_cols, _, _ = extent
    top, left = row * block_rows, col * block_cols
    whole = left + block_cols <= cols
    rest = tl.maximum(cols % block_cols, 1)
    width = tl.where(whole, block_cols, rest)
    count = tl.minimum(block_rows, rows - top) * width
    return top, left, width, count, tl.where(whole, inverse(block_cols), inverse(rest))


@triton.jit
def block_queries(number, blocks, extent, BLOCK_Q: tl.constexpr):
    """A step of queries: (row and column of its block, first query in it)."""
    first_row, first_col, across, _ = blocks
    steps = block_steps(extent, BLOCK_Q)
    block, step = divide(number // BLOCK_Q, steps, inverse(steps))
    row, col = divide(block, across, inverse(tl.maximum(across, 1)))
    return first_row + row, first_col + col, step * BLOCK_Q


@triton.jit
def block_place(tile, extent, room, BLOCK_Q: tl.constexpr):
    """First row of a tile of a block's queries where they lie block by block."""
    steps = block_steps(extent, BLOCK_Q)
    return (tile // steps * room + tile % steps * BLOCK_Q) // 16 * 16


@triton.jit
def seen_within(block, row, col, extent, GEOMETRY: tl.constexpr):
    """From which of the block's queries on the keys at (row, col) are seen; far behind if never."""
    _, _, block_rows, block_cols, halo_rows, halo_cols = extent
    top, left, width, _, _ = block
    inside = (row >= top - halo_rows) & (row < top + block_rows + halo_rows)
    inside = inside & (col >= left - halo_cols) & (col < left + block_cols + halo_cols)
    start = row * 0
    if GEOMETRY == "local_2d_causal":
        down = row // block_rows * block_rows - top  # of the key's block, from the queries'
        across = col // block_cols * block_cols - left
        same = (down == 0) & (across == 0)
        start = tl.where(same, (row - top) * width + col - left, 0)
        inside = inside & ((down < 0) | ((down == 0) & (across <= 0)))
    return tl.where(inside, start, 1 << 30)


# --- A pattern ---


@triton.jit
def pattern_line(table_ptr, line, there):
    """(address of a line's first tile, tiles seen in full, tiles); none if it is not there."""
    bounds = table_ptr + 5 * tl.where(there, line, 0)
    begin = tl.load(bounds)
    n_full = tl.where(there, (tl.load(bounds + 1) - begin) // 2, 0)
    n_tiles = tl.where(there, (tl.load(bounds + 2) - begin) // 2, 0)
    return table_ptr + begin, n_full.to(tl.int32), n_tiles.to(tl.int32)


@triton.jit
def pattern_reach(places):
    """Keys [start, stop) that hold all of a query tile's; for a tile that has some."""
    bounds = places[0] + 5 * places[4]
    start, stop = tl.load(bounds + 3), tl.load(bounds + 4)
    return start.to(tl.int32) * PATTERN_TILE, stop.to(tl.int32) * PATTERN_TILE


@triton.jit
def pattern_entry(entries, number):
    """Of a line's row or column with this number: (its tile, the tile's words, where in it)."""
    number = tl.cast(number, tl.int32)
    entry = entries + number // PATTERN_TILE * 2
    return tl.load(entry), tl.load(entry + 1), number % PATTERN_TILE


@triton.jit
def pattern_words(table_ptr, place, column):
    """A tile's words of keys: all ones where place is -1."""
    at = place + column
    return tl.load(table_ptr + at, mask=at >= column, other=-1)


@triton.jit
def bits_between(start, stop):
    """int64 with the bits [start, stop) set; stop <= 64."""
    start = clamp(start, 0, 63).to(tl.int64)
    n = clamp(stop - start, 0, 64)
    one = tl.cast(1, tl.int64)
    return tl.where(n >= 64, tl.cast(-1, tl.int64), (one << n % 64) - 1) << start


@triton.jit
def bit(word, n):
    """Whether bit n is set; they broadcast against each other."""
    return ((word >> n) & 1) != 0


@triton.jit
def group_tile(tile, q_len, k_len, offset, extent, table_ptr, BLOCK_Q: tl.constexpr):
    """A tile of a group's queries: (first position, place of row 0 in q, keys that all rows see,
    keys that some row sees, where they are).

    Tiles lie as the groups do, so a call's first and last tile may hold less.
    """
    tl.static_assert(PATTERN_TILE % BLOCK_Q == 0, "a tile of queries lies in one group")
    rows, cols = extent
    first = (floor_div(offset, BLOCK_Q) + tile) * BLOCK_Q
    index = (first - offset).to(tl.int32)
    there = (first >= 0) & (first < rows) & (index < q_len)
    line = tl.where(there, first // PATTERN_TILE, 0)
    entries, n_full, n_tiles = pattern_line(table_ptr, line, there)
    n_full = tl.where(k_len < cols, 0, n_full)
    row = (first % PATTERN_TILE).to(tl.int32)
    own = bits_between(row + tl.maximum(-index, 0), row + tl.minimum(q_len - index, BLOCK_Q))
    places = (table_ptr, entries, row + tl.arange(0, BLOCK_Q), own, line, k_len)
    return first, index, n_full * PATTERN_TILE, n_tiles * PATTERN_TILE, places


@triton.jit
def pattern_keys(number, places, BLOCK_K: tl.constexpr):
    """A step's first key, which of its keys some row sees, and a word per row: bit j is key j."""
    tl.static_assert(PATTERN_TILE % BLOCK_K == 0, "a step of keys lies in one tile")
    table_ptr, entries, rows, own, _, k_len = places
    tile, place, column = pattern_entry(entries, number)
    begin = tile.to(tl.int32) * PATTERN_TILE + column
    step = tl.arange(0, BLOCK_K)
    seen_by = pattern_words(table_ptr, place, column + step) & own
    sees = pattern_words(table_ptr + PATTERN_TILE, place, rows) >> column
    there = bits_between(0, k_len - begin)
    return begin, (seen_by != 0) & (begin + step < k_len), sees & there


# --- A tile of queries, whatever the geometry ---


@triton.jit
def query_tile(
    tile, q_len, k_len, offset, extent, group, pattern_ptr,
    GEOMETRY: tl.constexpr, PACKED: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One tile of queries and the keys it visits.

    Returns, with a row per query (PACKED: per query and head of its group, heads fastest):
        index, exists: [BLOCK_Q] the query's place in q, and whether there is one.
        member: [BLOCK_Q] the head's place in its group.
        first, shift: rows stand at position first + shift, 0 <= shift < BLOCK_Q.
        low, high: [BLOCK_Q] the row's keys, by number; all of the tile's under a pattern.
        start, stop, full_start, full_stop: keys of some row, and of all rows.
        places: where numbered keys lie on a canvas or in a pattern.
    """
    row = tl.arange(0, BLOCK_Q)
    member = row * 0
    if GEOMETRY == "local_2d" or GEOMETRY == "local_2d_causal":
        own, part, places = query_block(tile, k_len, extent, GEOMETRY, BLOCK_Q)
        exists = part + row < own[3]
        count = clamp(own[3] - part, 0, BLOCK_Q)
        index = box_position(part + row, own, extent[1])
        first = tl.cast(part, tl.int64)
        shift = row
        n_keys = places[0][3]
        low = row * 0
        if GEOMETRY == "local_2d_causal":
            n_before = n_keys + places[1][3]
            n_inside = places[2][3]
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
    elif GEOMETRY == "pattern":
        first, place, full_stop, stop, places = group_tile(
            tile, q_len, k_len, offset, extent, pattern_ptr, BLOCK_Q
        )
        index = place + row
        exists = (index >= 0) & (index < q_len)
        shift = row
        start = 0
        full_start = 0
        low = row * 0
        high = low + stop
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
        places = (0, 0, 0)
        low, high = key_spans(first, shift, k_len, extent, GEOMETRY)
        start, full_stop = key_spans(first, 0, k_len, extent, GEOMETRY)
        full_start, stop = key_spans(first, last, k_len, extent, GEOMETRY)
    return (
        index, exists, member, first, shift, low, high, start, stop, full_start, full_stop, places
    )  # fmt: skip


@triton.jit
def step_keys(
    number, stop, places, extent,
    GEOMETRY: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The keys numbered from `number` on.

    Returns the position of the first in one dimension, positions, which of them some row sees, and
    what tells `sees` who: the first number, or under a pattern a word per row.
    """
    numbers = number + tl.arange(0, BLOCK_K)
    if GEOMETRY == "pattern":
        begin, seen, words = pattern_keys(number, places, BLOCK_K)
        return begin, begin + tl.arange(0, BLOCK_K), seen, words
    else:
        return number, key_position(numbers, places, extent, GEOMETRY), numbers < stop, number


@triton.jit
def sees(who, low, high, GEOMETRY: tl.constexpr, BLOCK_K: tl.constexpr):
    """[BLOCK_Q, BLOCK_K]: which rows see which keys of a step."""
    if GEOMETRY == "pattern":
        return bit(who[:, None], tl.arange(0, BLOCK_K)[None, :])
    else:
        column = tl.arange(0, BLOCK_K)[None, :]
        seen = column < (high - who)[:, None]
        if has_low(GEOMETRY):
            seen = seen & (column >= (low - who)[:, None])
        return seen
