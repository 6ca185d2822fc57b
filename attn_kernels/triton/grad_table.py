"""Backward of attention in Triton, with table rows at home: grad_rel_k and grad_rel_v.

    d rel_k[r] = sum of dS_ij q_rel_i     d rel_v[r] = sum of P_ij dO_i     over row(j - p_i) = r

A program owns a chunk of BLOCK_K rows, hence of offsets from `row_start - centre` on, and walks
along that diagonal of the scores: no atomics, so the sums are the same in every run. For the
queries from position `first` on it reads two tiles of keys, from key `base` = first + row_start -
centre on. Column b of row a's merged tile is key base + b if b >= s_a, else base + BLOCK_K + b; its
offset is that of table row row_start + (b - s_a) mod BLOCK_K.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward import load_lse
from .forward import NO_SPECIALIZATION, entry_sizes
from .geometry import PATTERN_TILE, bit, clamp, floor_div, key_spans, pattern_line, pattern_words
from .score import load_rows, rotate, store_rows, table_chunk
from .softmax import LOG2_E


@triton.jit
def chunk_queries(
    row_start, centre, n_rows, offset, q_len, k_end, extent,
    GEOMETRY: tl.constexpr, REL: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The queries [start, stop) that may see a key at an offset of this chunk."""
    low = tl.cast(row_start - centre, tl.int64)  # the chunk's offsets are [low, high)
    high = low + BLOCK_K
    start = clamp(1 - high - offset, 0, q_len).to(tl.int32)
    stop = clamp(k_end - low - offset, 0, q_len).to(tl.int32)
    if GEOMETRY == "window":
        stop = tl.where(high <= 1 - extent[0], start, stop)
    elif GEOMETRY == "local_1d" or GEOMETRY == "local_1d_causal":
        block, look_back, look_ahead = extent
        reached = (high > 1 - block - look_back) & (low < block + look_ahead)
        stop = tl.where(reached, stop, start)
    if REL == "clip":
        # every query may have keys beyond the table, which count for its first or last row
        at_edge = row_start == 0
        if not CAUSAL:
            at_edge = at_edge | (row_start + BLOCK_K >= n_rows)
        start = tl.where(at_edge, 0, start)
        stop = tl.where(at_edge, q_len, stop)
    return start, stop


@triton.jit
def find_words(table_ptr, first, key, here, extent, search_steps):
    """Words of any keys, [BLOCK_K], of the group that holds the row `first`: 0 where it sees none.

    Both parts of the group's line, tiles seen in full and in part, are in order: the last tile that
    does not lie behind the key's is looked for in each.
    """
    rows, cols = extent
    there = (first >= 0) & (first < rows)
    entries, n_full, n_tiles = pattern_line(table_ptr, first // PATTERN_TILE, there)
    block = key // PATTERN_TILE
    word = tl.zeros(key.shape, tl.int64)
    for part in tl.static_range(2):
        low = key * 0 + (0 if part == 0 else n_full)
        stop = n_full if part == 0 else n_tiles
        high = low * 0 + stop
        for _ in range(search_steps):
            middle = (low + high) // 2
            before = (middle < high) & here
            other = tl.load(entries + 2 * middle, mask=before, other=cols)
            low = tl.where(before & (other < block), middle + 1, low)
            high = tl.where(before & (other < block), high, middle)
        found = here & (low < stop)
        found = found & (tl.load(entries + 2 * low, mask=found, other=cols) == block)
        place = tl.load(entries + 2 * low + 1, mask=found, other=-1)
        words = pattern_words(table_ptr, place, key % PATTERN_TILE)
        word = tl.where(found, words, word)
    return word


@triton.jit
def add_beyond(sheared, far_ptr, stride_far, valid, table_row, n_rows, CAUSAL: tl.constexpr):
    """Adds each query's sums beyond the table to the first and last row: [BLOCK_K, BLOCK_Q]."""
    low = tl.load(far_ptr, mask=valid, other=0.0)
    sheared += tl.where((table_row == 0)[:, None], low[None, :], 0.0)
    if not CAUSAL:
        high = tl.load(far_ptr + stride_far, mask=valid, other=0.0)
        sheared += tl.where((table_row == n_rows - 1)[:, None], high[None, :], 0.0)
    return sheared


@triton.jit(do_not_specialize=(*NO_SPECIALIZATION, "search_steps"))
def grad_table_kernel(
    q_ptr, k_ptr, v_ptr, rel_k_ptr, rel_v_ptr, q_rel_ptr, key_lengths_ptr, query_offsets_ptr,
    pattern_ptr, grad_out_ptr, lse_ptr, delta_ptr, far_ptr,
    grad_rel_k_ptr, grad_rel_v_ptr,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh,
    stride_vs, stride_rb, stride_rh, stride_rs, stride_gb, stride_gh, stride_gs, stride_rel_kh,
    stride_rel_kr, stride_rel_vh, stride_rel_vr, stride_far, batches, heads, group, q_len, k_len,
    query_offset, extent, n_tiles, n_rows, search_steps, scale, rel_scale,
    DIM: tl.constexpr, V_DIM: tl.constexpr, GEOMETRY: tl.constexpr, REL: tl.constexpr,
    CAUSAL: tl.constexpr, FOLDED: tl.constexpr, PER_HEAD: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One chunk of rows, of one head if PER_HEAD, over every n-th (batch entry, head).

    Grid: (chunks * table heads, slices). Outputs: [slices, table heads, n_rows, dim], float32.
    """
    tl.static_assert(BLOCK_Q <= BLOCK_K, "a tile's band is two chunks")
    tl.static_assert(GEOMETRY != "pattern" or PATTERN_TILE % BLOCK_Q == 0)
    chunk_id = tl.program_id(0) % n_tiles
    table_head = (tl.program_id(0) // n_tiles).to(tl.int64)
    table_heads = tl.num_programs(0) // n_tiles
    row_start = chunk_id * BLOCK_K
    table_row = row_start + tl.arange(0, BLOCK_K)
    centre = n_rows - 1 if CAUSAL else (n_rows - 1) // 2
    scale = tl.cast(scale, tl.float32)
    rel_scale = tl.cast(rel_scale, tl.float32)
    factor = scale * LOG2_E if FOLDED else LOG2_E
    shift = tl.arange(0, BLOCK_Q)
    column = tl.arange(0, BLOCK_K)
    in_first = column[:, None] >= shift[None, :]  # [BLOCK_K, BLOCK_Q]
    # the table's end may lie inside the chunk
    in_table = row_start + ((column[:, None] - shift[None, :]) & (BLOCK_K - 1)) < n_rows

    grad_rel_k = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    grad_rel_v = tl.zeros((BLOCK_K, BLOCK_DV), tl.float32)
    pairs = batches if PER_HEAD else batches * heads
    for pair in range(tl.program_id(1), pairs, tl.num_programs(1)):
        if PER_HEAD:
            batch, head = tl.cast(pair, tl.int64), table_head
        else:
            batch, head = tl.cast(pair, tl.int64) // heads, tl.cast(pair, tl.int64) % heads
        k_head = head // group
        home = (batch * heads + head) * q_len
        k_end, offset = entry_sizes(batch, k_len, query_offset, key_lengths_ptr, query_offsets_ptr)
        rel_k = table_chunk(
            rel_k_ptr + head * stride_rel_kh, stride_rel_kr, row_start, n_rows, False,
            DIM, BLOCK_D, BLOCK_K,
        )  # fmt: skip
        if rel_v_ptr is not None:
            rel_v = table_chunk(
                rel_v_ptr + head * stride_rel_vh, stride_rel_vr, row_start, n_rows, False,
                V_DIM, BLOCK_DV, BLOCK_K,
            )  # fmt: skip
        k_at = k_ptr + batch * stride_kb + k_head * stride_kh
        v_at = v_ptr + batch * stride_vb + k_head * stride_vh
        start, stop = chunk_queries(
            row_start, centre, n_rows, offset, q_len, k_end, extent, GEOMETRY, REL, CAUSAL, BLOCK_K
        )
        if GEOMETRY == "pattern":  # a tile of queries lies in one group
            start -= (offset + start - floor_div(offset + start, BLOCK_Q) * BLOCK_Q).to(tl.int32)
        for number in range(start, stop, BLOCK_Q):
            index = number + shift
            valid = (index >= 0) & (index < stop)
            q = load_rows(
                q_ptr + batch * stride_qb + head * stride_qh, stride_qs, index, valid,
                DIM, BLOCK_D, True,
            )  # fmt: skip
            q_rel = q
            if q_rel_ptr is not None:
                q_rel = load_rows(
                    q_rel_ptr + batch * stride_rb + head * stride_rh, stride_rs, index, valid,
                    DIM, BLOCK_D, True,
                )  # fmt: skip
            grad_out = load_rows(
                grad_out_ptr + batch * stride_gb + head * stride_gh, stride_gs, index, valid,
                V_DIM, BLOCK_DV, True,
            )  # fmt: skip
            lse = load_lse(lse_ptr + home, index, valid)
            delta = tl.load(delta_ptr + home + index, mask=valid, other=0.0)
            first = offset + number
            key = first + row_start - centre + column  # int64
            here = (key >= 0) & (key < k_end)
            next_key = key + BLOCK_K
            next_here = (next_key >= 0) & (next_key < k_end)

            k = load_rows(k_at, stride_ks, key, here, DIM, BLOCK_D, True)
            logits = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            k = load_rows(k_at, stride_ks, next_key, next_here, DIM, BLOCK_D, True)
            next_logits = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            logits = tl.where(in_first, logits, next_logits)
            term = tl.dot(rel_k, tl.trans(q_rel), input_precision=PRECISION)
            term = rotate(term, shift[None, :], -1, True, BLOCK_Q, BLOCK_K)
            if FOLDED:
                logits += term
            else:
                logits = logits * scale + term * rel_scale
            v = load_rows(v_at, stride_vs, key, here, V_DIM, BLOCK_DV, True)
            grad_weights = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
            v = load_rows(v_at, stride_vs, next_key, next_here, V_DIM, BLOCK_DV, True)
            next_grads = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
            grad_weights = tl.where(in_first, grad_weights, next_grads)
            if rel_v_ptr is not None:
                term = tl.dot(rel_v, tl.trans(grad_out), input_precision=PRECISION)
                grad_weights += rotate(term, shift[None, :], -1, True, BLOCK_Q, BLOCK_K)

            if GEOMETRY == "pattern":
                word = find_words(pattern_ptr, first, key, here, extent, search_steps)
                next_word = find_words(
                    pattern_ptr, first, next_key, next_here, extent, search_steps
                )
                row = (first % PATTERN_TILE).to(tl.int32) + shift
                seen = bit(tl.where(in_first, word[:, None], next_word[:, None]), row[None, :])
            else:
                low, high = key_spans(first, shift, k_end, extent, GEOMETRY)
                pair_key = tl.where(in_first, key[:, None], next_key[:, None])
                seen = (pair_key >= low[None, :]) & (pair_key < high[None, :])
            seen = seen & in_table & valid[None, :]
            weights = tl.exp2(logits * factor - lse[None, :])
            grad_logits = tl.where(seen, weights * (grad_weights - delta[None, :]), 0.0)
            sheared = rotate(grad_logits, shift[None, :], 1, True, BLOCK_Q, BLOCK_K)
            if REL == "clip":
                sheared = add_beyond(
                    sheared, far_ptr + home + index, stride_far, valid, table_row, n_rows, CAUSAL
                )
            grad_rel_k = tl.dot(sheared.to(q.dtype), q_rel, grad_rel_k, input_precision=PRECISION)
            if rel_v_ptr is not None:
                weights = tl.where(seen, weights, 0.0)
                sheared = rotate(weights, shift[None, :], 1, True, BLOCK_Q, BLOCK_K)
                if REL == "clip":
                    sheared = add_beyond(
                        sheared, far_ptr + 2 * stride_far + home + index, stride_far, valid,
                        table_row, n_rows, CAUSAL,
                    )  # fmt: skip
                grad_rel_v = tl.dot(
                    sheared.to(v.dtype), grad_out, grad_rel_v, input_precision=PRECISION
                )

    part = (tl.program_id(1).to(tl.int64) * table_heads + table_head) * n_rows
    inside = table_row < n_rows
    store_rows(
        grad_rel_k_ptr + part * DIM, DIM, table_row, inside, grad_rel_k * rel_scale, DIM, BLOCK_D
    )
    if rel_v_ptr is not None:
        store_rows(
            grad_rel_v_ptr + part * V_DIM, V_DIM, table_row, inside, grad_rel_v, V_DIM, BLOCK_DV
        )
