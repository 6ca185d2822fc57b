"""Backward of attention in Triton, with table rows at home: grad_rel_k and grad_rel_v.

    d rel_k[r] = sum of dS_ij q_rel_i     d rel_v[r] = sum of P_ij dO_i     over row(j - p_i) = r

grad_q_kernel has left dS and P by table row and query: what remains is a product, and the sums for
keys beyond a clipped table, which its first and last row get. There are no atomics, so the sums are
the same in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward import margin
from .forward import heads_of
from .score import load_rows, store_rows


@triton.jit(do_not_specialize=("q_len", "n_tiles", "n_rows", "first_program", "n_programs"))
def grad_table_kernel(
    x_ptr, sheared_ptr, reach_ptr, grad_ptr,
    stride_xb, stride_xh, stride_xs, heads, q_len, n_tiles, n_rows, first_program, n_programs,
    scale, DIM: tl.constexpr, PITCH: tl.constexpr, PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows for one (batch entry, head): scale * sheared^T x, over n_programs' queries.

    x: q_rel, or the gradient of out. Grid: (pairs of batch entry and head that the programs of
    grad_q_kernel from first_program on belong to, chunks of rows): a grid's second number is at
    most 65,535, which would be few pairs. BLOCK_Q, BLOCK_K, PITCH, sheared, reach: see there.
    grad: [batch, heads, n_rows, dim], float32; what earlier programs left there is added to.
    """
    table_row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    home = first_program // n_tiles + tl.program_id(0)
    batch, head, _ = heads_of(home, heads, 1)
    home = home.to(tl.int64)
    x_ptr += batch * stride_xb + head * stride_xh
    inside = table_row < n_rows
    query = tl.arange(0, BLOCK_Q)
    begin = tl.maximum(home * n_tiles, first_program).to(tl.int32)
    end = tl.minimum(home * n_tiles + n_tiles, first_program + n_programs).to(tl.int32)
    line = query[:, None] * PITCH + table_row[None, :] + margin(BLOCK_Q, BLOCK_K)
    grad = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for program in range(begin, end):
        slot = program - first_program
        low = tl.load(reach_ptr + 3 * slot) * BLOCK_K
        high = tl.load(reach_ptr + 3 * slot + 1) * BLOCK_K
        sheared = tl.load(
            sheared_ptr + line + slot.to(tl.int64) * BLOCK_Q * PITCH,
            mask=((table_row >= low) & (table_row < high))[None, :], other=0.0,
        )  # fmt: skip
        index = tl.load(reach_ptr + 3 * slot + 2) + query
        exists = (index >= 0) & (index < q_len)
        x = load_rows(x_ptr, stride_xs, index, exists, DIM, BLOCK_D, True)
        grad = tl.dot(tl.trans(sheared), x, grad, input_precision=PRECISION)
    grad *= scale
    grad_ptr += home * n_rows * DIM
    if home * n_tiles < first_program:
        grad += load_rows(grad_ptr, DIM, table_row, inside, DIM, BLOCK_D, True)
    store_rows(grad_ptr, DIM, table_row, inside, grad, DIM, BLOCK_D)


@triton.jit
def add_to_row(grad_ptr, row, col, more, DIM: tl.constexpr):
    at = grad_ptr + tl.cast(row, tl.int64) * DIM + col
    tl.store(at, tl.load(at, mask=col < DIM, other=0.0) + more, mask=col < DIM)


@triton.jit(do_not_specialize=("far_first", "q_len", "n_rows"))
def grad_edges_kernel(
    x_ptr, far_ptr, grad_ptr, stride_xb, stride_xh, stride_xs, stride_far, far_first,
    heads, q_len, n_rows, scale,
    CAUSAL: tl.constexpr, DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds scale * far x to the first and the last row of grad: what keys beyond the table add.

    Grid: BLOCK_C columns of every pair of batch entry and head. x, grad: see grad_table_kernel.
    far: see grad_q_kernel; far_first: this table's first sort. All in float32: far, a sum over all
    keys beyond the table, may be too large for x's type.
    """
    n_parts = (DIM + BLOCK_C - 1) // BLOCK_C
    col = tl.program_id(0) % n_parts * BLOCK_C + tl.arange(0, BLOCK_C)
    home = tl.program_id(0) // n_parts
    batch, head, _ = heads_of(home, heads, 1)
    home = home.to(tl.int64)
    x_ptr += batch * stride_xb + head * stride_xh
    far_ptr += tl.cast(far_first, tl.int64) * stride_far + home * q_len
    low = tl.zeros((BLOCK_Q, BLOCK_C), tl.float32)
    high = tl.zeros((BLOCK_Q, BLOCK_C), tl.float32)
    for start in tl.range(0, q_len, BLOCK_Q, num_stages=3):
        index = start + tl.arange(0, BLOCK_Q)
        exists = index < q_len
        x = tl.load(
            x_ptr + index.to(tl.int64)[:, None] * stride_xs + col[None, :],
            mask=exists[:, None] & (col < DIM)[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        low += tl.load(far_ptr + index, mask=exists, other=0.0)[:, None] * x
        if not CAUSAL:
            high += tl.load(far_ptr + stride_far + index, mask=exists, other=0.0)[:, None] * x
    grad_ptr += home * n_rows * DIM
    add_to_row(grad_ptr, 0, col, scale * tl.sum(low, 0), DIM)
    if not CAUSAL:
        tl.debug_barrier()  # of a table of one row it is the same
        add_to_row(grad_ptr, n_rows - 1, col, scale * tl.sum(high, 0), DIM)
