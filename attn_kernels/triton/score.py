"""The relative score in Triton: bands of the table, and the shear between offsets and keys.

A tile of queries at positions first + s_a and keys from number n on has offsets delta + b - s_a
with delta = n - first. They lie in two chunks of BLOCK_K table rows: offsets from delta on
("current") and those before ("previous"). The next tile's previous chunk is this one's current
chunk, so a tile needs
one new product of queries and table. Of both chunks row a needs every column u once:

    merged[a, u] = current[a, u] if u < BLOCK_K - s_a else previous[a, u]
    term[a, b] = merged[a, (b - s_a) mod BLOCK_K]

Where the queries stay, current may be rotated first, carried to the next tile, and chosen where
b >= s_a (band_step); if BLOCK_Q is twice BLOCK_K, the one before is carried as well. That saves
products; band_whole carries nothing, which leaves registers for wider tiles. The rotation goes
through shared memory in an order without bank conflicts (gpu_order). Tiles may be transposed,
[keys, queries]; shift then is s_a as [1, BLOCK_Q] instead of [BLOCK_Q, 1].

REL says what is beyond the table: "none" (there is no table), "clip" or "zero".
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    ptr, stride, row, valid, DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """Rows of a matrix [*, DIM], padded with zeros to BLOCK_D; rows that are not valid are zero."""
    col = tl.arange(0, BLOCK_D)
    at = ptr + row.to(tl.int64)[:, None] * stride + col[None, :]  # [rows, BLOCK_D]
    if MASKED:
        if DIM == BLOCK_D:
            return tl.load(at, mask=valid[:, None], other=0.0)
        else:
            return tl.load(at, mask=valid[:, None] & (col < DIM)[None, :], other=0.0)
    else:
        if DIM == BLOCK_D:
            return tl.load(at)
        else:
            return tl.load(at, mask=(col < DIM)[None, :], other=0.0)


@triton.jit
def store_rows(ptr, stride, row, valid, values, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write the valid rows of [rows, BLOCK_D] into a matrix [*, DIM]."""
    col = tl.arange(0, BLOCK_D)
    at = ptr + row.to(tl.int64)[:, None] * stride + col[None, :]
    tl.store(at, values.to(ptr.dtype.element_ty), mask=valid[:, None] & (col < DIM)[None, :])


@triton.jit
def table_chunk(
    ptr, stride, first_row, n_rows,
    CLIP: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_K table rows from first_row on, [BLOCK_K, BLOCK_D]; beyond: the nearest, or zeros."""
    row = first_row + tl.arange(0, BLOCK_K)
    inside = (row >= 0) & (row < n_rows)
    nearest = tl.minimum(tl.maximum(row, 0), n_rows - 1)
    if CLIP:
        return load_rows(ptr, stride, nearest, inside, DIM, BLOCK_D, False)
    else:
        return load_rows(ptr, stride, nearest, inside, DIM, BLOCK_D, True)


@triton.jit
def edge_product(x, ptr, stride, row, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """x . table[row] for every row of x, float32."""
    col = tl.arange(0, BLOCK_D)
    edge = tl.load(ptr + tl.cast(row, tl.int64) * stride + col, mask=col < DIM, other=0.0)
    return tl.sum(x.to(tl.float32) * edge.to(tl.float32)[None, :], 1)


@triton.jit
def edge_row(ptr, stride, row, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """table[row], [BLOCK_D], float32."""
    col = tl.arange(0, BLOCK_D)
    edge = tl.load(ptr + tl.cast(row, tl.int64) * stride + col, mask=col < DIM, other=0.0)
    return edge.to(tl.float32)


@triton.jit
def gpu_order(row, col, COLS: tl.constexpr):
    """Place of (row, col) in a flat tile, for any element order of a matrix unit's accumulator.

    Lanes of a warp hold 8 rows and, 2 apart, 4 columns: they are the fastest here, so both the
    stores and the rotated loads of a warp touch 32 banks.
    """
    outer = (row // 8) * (COLS // 8) + col // 8
    return ((outer * 2 + (col & 1)) * 8 + (row & 7)) * 4 + ((col >> 1) & 3)


@triton.jit
def pick(x, row, col, ROWS: tl.constexpr, COLS: tl.constexpr):
    """x[row, col] of a tile [ROWS, COLS]; row and col broadcast to [ROWS, COLS]."""
    flat = tl.permute(tl.reshape(x, (ROWS // 8, 8, COLS // 8, 4, 2)), (0, 2, 4, 1, 3))
    place = tl.broadcast_to(gpu_order(row, col, COLS), (ROWS, COLS))
    picked = tl.gather(tl.reshape(flat, (ROWS * COLS,)), tl.reshape(place, (ROWS * COLS,)), 0)
    return tl.reshape(picked, (ROWS, COLS))


@triton.jit
def rotate(
    x, shift, sign: tl.constexpr,
    TRANSPOSED: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y[a, b] = x[a, (b + sign * s_a) mod BLOCK_K]; the same of transposed tiles, if TRANSPOSED."""
    if TRANSPOSED:
        key = tl.arange(0, BLOCK_K)[:, None]
        query = tl.arange(0, BLOCK_Q)[None, :]
        return pick(x, (key + sign * shift) & (BLOCK_K - 1), query, BLOCK_K, BLOCK_Q)
    else:
        key = tl.arange(0, BLOCK_K)[None, :]
        query = tl.arange(0, BLOCK_Q)[:, None]
        return pick(x, query, (key + sign * shift) & (BLOCK_K - 1), BLOCK_Q, BLOCK_K)


@triton.jit
def in_current(shift, TRANSPOSED: tl.constexpr, BLOCK_K: tl.constexpr):
    """Which columns of a sheared tile belong to the current chunk."""
    column = tl.arange(0, BLOCK_K)
    if TRANSPOSED:
        return column[:, None] < BLOCK_K - shift
    else:
        return column[None, :] < BLOCK_K - shift


@triton.jit
def product(
    x, ptr, stride, row, n_rows, CLIP: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x's products with BLOCK_K table rows from `row` on."""
    chunk = table_chunk(ptr, stride, row, n_rows, CLIP, DIM, BLOCK_D, BLOCK_K)
    if TRANSPOSED:
        return tl.dot(chunk, tl.trans(x), input_precision=PRECISION)
    else:
        return tl.dot(x, tl.trans(chunk), input_precision=PRECISION)


@triton.jit
def rotated_product(
    x, ptr, stride, row, n_rows, shift, CLIP: tl.constexpr, PRECISION: tl.constexpr,
    DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """product, rotated: column b is for offset (b - s_a) mod BLOCK_K. And as it was."""
    x = product(x, ptr, stride, row, n_rows, CLIP, False, PRECISION, DIM, BLOCK_D, BLOCK_K)
    return rotate(x, shift[:, None], -1, False, BLOCK_Q, BLOCK_K), x


@triton.jit
def behind(
    previous, older, shift, IN_PLACE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr
):
    """What a step takes of the rotated products of the two chunks before its own."""
    key = tl.arange(0, BLOCK_K)[None, :]
    if BLOCK_Q <= BLOCK_K:
        return previous
    elif IN_PLACE:  # two ways to say the same: which takes fewer registers depends on the places
        return tl.where(shift[:, None] - BLOCK_K <= key, previous, older)
    else:
        return tl.where(key - shift[:, None] >= -BLOCK_K, previous, older)


@triton.jit
def earlier_products(
    x, ptr, stride, row, n_rows, shift, CLIP: tl.constexpr, PRECISION: tl.constexpr,
    IN_PLACE: tl.constexpr, DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What band_step carries, before the first: the previous chunk's rotated product, and what a
    step takes of those before its own.

    IN_PLACE: Triton keeps them where a product's elements are, and brings no term there through
    shared memory, as they may be a product. That takes registers.
    """
    previous, plain = rotated_product(
        x, ptr, stride, row - BLOCK_K, n_rows, shift, CLIP, PRECISION,
        DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    if IN_PLACE:
        previous = tl.where(n_rows > 0, previous, plain)
    older = previous
    if BLOCK_Q > BLOCK_K:
        older, plain = rotated_product(
            x, ptr, stride, row - 2 * BLOCK_K, n_rows, shift, CLIP, PRECISION,
            DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        if IN_PLACE:
            older = tl.where(n_rows > 0, older, plain)
    return previous, behind(previous, older, shift, IN_PLACE, BLOCK_Q, BLOCK_K)


@triton.jit
def band_step(
    x, ptr, stride, row, n_rows, shift, previous, rest, CLIP: tl.constexpr,
    PRECISION: tl.constexpr, IN_PLACE: tl.constexpr, DIM: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A step's term, and what the next one carries; see earlier_products.

    Nothing may be handed on as it came: a loop that does is not pipelined, and waits for the memory
    in every step.
    """
    current, _ = rotated_product(
        x, ptr, stride, row, n_rows, shift, CLIP, PRECISION, DIM, BLOCK_Q, BLOCK_K, BLOCK_D
    )
    term = tl.where(tl.arange(0, BLOCK_K)[None, :] >= shift[:, None], current, rest)
    return term, current, behind(current, previous, shift, IN_PLACE, BLOCK_Q, BLOCK_K)


@triton.jit
def band_whole(
    x, ptr, stride, row, n_rows, shift, CLIP: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr, DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A step's term, from all chunks of its band: chosen first, rotated once."""
    tl.static_assert(not TRANSPOSED or BLOCK_Q <= BLOCK_K, "a transposed tile's band is two chunks")
    shift = shift[None, :] if TRANSPOSED else shift[:, None]
    chosen = product(
        x, ptr, stride, row - BLOCK_K, n_rows, CLIP, TRANSPOSED, PRECISION, DIM, BLOCK_D, BLOCK_K
    )
    if BLOCK_Q > BLOCK_K:
        older = product(
            x, ptr, stride, row - 2 * BLOCK_K, n_rows, CLIP, TRANSPOSED, PRECISION, DIM, BLOCK_D,
            BLOCK_K,
        )  # fmt: skip
        chosen = tl.where(in_current(shift - BLOCK_K, TRANSPOSED, BLOCK_K), chosen, older)
    current = product(
        x, ptr, stride, row, n_rows, CLIP, TRANSPOSED, PRECISION, DIM, BLOCK_D, BLOCK_K
    )
    chosen = tl.where(in_current(shift, TRANSPOSED, BLOCK_K), current, chosen)
    return rotate(chosen, shift, -1, TRANSPOSED, BLOCK_Q, BLOCK_K)
