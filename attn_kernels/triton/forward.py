"""Forward attention in Triton: one kernel for every (geometry, score), whole or split over keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .geometry import FARTHEST, clamp, has_low, query_tile, sees, step_keys
from .score import (
    band_step,
    band_whole,
    earlier_products,
    edge_product,
    edge_row,
    in_current,
    load_rows,
    rotate,
    store_rows,
    table_chunk,
)
from .softmax import LN_2, LOG2_E, softmax_finish, softmax_step

NO_SPECIALIZATION = ("q_len", "k_len", "query_offset", "n_tiles", "n_rows")


@triton.jit
def row_offsets(index, member, stride_seq, stride_head, PACKED: tl.constexpr):
    """Where the tile's rows start, in elements, int64."""
    offset = index.to(tl.int64) * stride_seq
    if PACKED:
        offset += member.to(tl.int64) * stride_head
    return offset


@triton.jit
def heads_of(home, heads, group):
    """(batch entry, head, key head) of the home-th head of all. int64, as strides are multiplied
    with them, but divided as int32: wide divisions cost registers."""
    head = home % heads
    return (home // heads).to(tl.int64), head.to(tl.int64), (head // group).to(tl.int64)


@triton.jit
def entry_sizes(batch, k_len, query_offset, key_lengths_ptr, query_offsets_ptr):
    """The batch entry's number of keys (int32) and query offset (int64)."""
    if key_lengths_ptr is not None:
        length = tl.load(key_lengths_ptr + batch)
        k_len = tl.minimum(tl.maximum(length, 0), k_len).to(tl.int32)
    if query_offsets_ptr is not None:
        query_offset = clamp(tl.load(query_offsets_ptr + batch).to(tl.int64), -FARTHEST, FARTHEST)
    return k_len, tl.cast(query_offset, tl.int64)


@triton.constexpr_function
def phase_exists(phase, geometry, rel, causal):
    """Phases of key_phases that may hold keys."""
    if rel == "none":
        return phase in (2, 4) or (phase == 0 and has_low(geometry))
    return phase == 0 or (geometry != "pattern" and (phase == 3 or (phase == 1 and not causal)))


@triton.constexpr_function
def phase_masked(phase, geometry, rel):
    """Phases of key_phases whose pairs are not all visible."""
    return phase in (0, 4) if rel == "none" else phase != 3 or has_low(geometry)


@triton.constexpr_function
def values_wait(late, phase, rel):
    """LATE; with a table only in its phase 3, as the band's shear leaves no registers."""
    return late and (rel == "none" or phase == 3)


@triton.jit
def key_phases(
    start, stop, full_start, full_stop, first, centre, n_rows,
    GEOMETRY: tl.constexpr, REL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Cuts the keys [start, stop) in whole steps of BLOCK_K where the loop's body changes.

    Without a table: 0 masked | 2 all pairs visible | 4 masked. With one, phases differ in its
    reach: 0 within | 1 far above | 3 far below. The band is first: behind another loop ptxas
    serialises its products (sm_90, C7515). Each body is there once, as they are large.
    """
    if REL == "none":
        begin = start
        if phase_exists(0, GEOMETRY, REL, True):
            steps = (tl.maximum(full_start - start, 0) + BLOCK_K - 1) // BLOCK_K
            begin = tl.minimum(start + steps * BLOCK_K, stop)
        full = tl.maximum(tl.minimum(full_stop, stop) - begin, 0) // BLOCK_K * BLOCK_K
        return start, begin, begin, begin + full, begin + full, stop
    elif GEOMETRY == "pattern":
        return start, stop, stop, stop, stop, stop
    else:
        # keys before far_stop are before the table for every row; strictly, as its first row is
        # left to grad_table.py
        far_stop = first - centre
        far = tl.minimum(tl.maximum(far_stop - start, 0), stop - start).to(tl.int32)
        far_end = start + far // BLOCK_K * BLOCK_K
        high_begin = stop
        if GEOMETRY == "full" or GEOMETRY == "local_1d" or GEOMETRY == "window_both":
            high_start = first + BLOCK_Q - 1 + n_rows - centre
            near = tl.minimum(tl.maximum(high_start - start, 0), stop - start).to(tl.int32)
            high_begin = tl.minimum(start + (near + BLOCK_K - 1) // BLOCK_K * BLOCK_K, stop)
            high_begin = tl.maximum(high_begin, far_end)
        return far_end, high_begin, stop, start, far_end, far_end


@triton.jit
def split_keys(start, stop, split, n_splits, BLOCK_K: tl.constexpr):
    """The keys of one of n_splits parts, in whole steps."""
    steps = (stop - start + BLOCK_K - 1) // BLOCK_K
    per_split = (steps + n_splits - 1) // n_splits * BLOCK_K
    begin = tl.minimum(start + split * per_split, stop)
    return begin, tl.minimum(begin + per_split, stop)


@triton.jit
def load_step(
    rows, batch, head, first, ptr, stride, index, valid, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A step's rows; a descriptor, if there is one, gives those from first on, zeros behind the
    last."""
    if rows is None:
        return load_rows(ptr, stride, index, valid, DIM, BLOCK_D, MASKED)
    else:
        tile = rows.load([batch.to(tl.int32), head.to(tl.int32), first, 0])
        return tl.reshape(tile, (BLOCK, BLOCK_D))


@triton.jit
def add_values(acc, weights, rescale, v, PRECISION: tl.constexpr):
    """acc * rescale + weights V."""
    acc *= rescale[:, None]
    return tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=NO_SPECIALIZATION)
def attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, rel_k_ptr, rel_v_ptr, q_rel_ptr, key_lengths_ptr, query_offsets_ptr,
    pattern_ptr, k_rows, v_rows, out_ptr, lse_ptr,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh,
    stride_vs, stride_rb, stride_rh, stride_rs, stride_ob, stride_oh, stride_os, stride_rel_kh,
    stride_rel_vh, stride_out_split, stride_lse_split, heads, group, q_len, k_len, query_offset,
    extent, n_tiles, n_rows, scale, rel_scale,
    DIM: tl.constexpr, V_DIM: tl.constexpr, GEOMETRY: tl.constexpr, REL: tl.constexpr,
    CAUSAL: tl.constexpr, FOLDED: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr,
    LATE: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, PITCH_K: tl.constexpr,
    PITCH_V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One tile of queries, and one part of its keys if SPLIT.

    PACKED: a tile holds all heads of a group, so few queries still fill it. FOLDED: one positive
    scale for both terms, applied inside exp2. SPLIT: out is float32, normalised within the part.
    LATE: a step's weights wait, as float32, for the next step to multiply them with their values
    while its own softmax runs (wgmma is asynchronous; on sm_90 both products then have one wait);
    with a table only where all keys use its first row.
    WHOLE: with a table, a step's band is computed whole; else its previous chunk is what the step
    before had as current (not under a pattern, whose steps leave gaps).
    k_rows, v_rows: descriptors of keys and values, tiles [1, 1, BLOCK_K, *]; or None.
    PITCH_K, PITCH_V: elements from row to row of rel_k and rel_v; constants save instructions.
    """
    HAS_HIGH: tl.constexpr = REL != "none" and not CAUSAL
    CARRIED: tl.constexpr = REL != "none" and GEOMETRY != "pattern" and not WHOLE
    # else values between an entry's end and a descriptor's may be NaN
    ONE_END: tl.constexpr = key_lengths_ptr is None and query_offsets_ptr is None
    tile = tl.program_id(0) % n_tiles
    if CAUSAL:
        tile = n_tiles - 1 - tile  # the longest first
    home = tl.program_id(0) // n_tiles
    if PACKED:
        batch, k_head, head = heads_of(home, heads // group, 1)
        head = k_head * group
    else:
        batch, head, k_head = heads_of(home, heads, group)
    scale = tl.cast(scale, tl.float32) * LOG2_E
    rel_scale = tl.cast(rel_scale, tl.float32) * LOG2_E
    factor = scale if FOLDED else 1.0

    k_end, offset = entry_sizes(batch, k_len, query_offset, key_lengths_ptr, query_offsets_ptr)
    (
        index, exists, member, first, shift, low, high, start, stop, full_start, full_stop, places
    ) = query_tile(
        tile, q_len, k_end, offset, extent, group, pattern_ptr, GEOMETRY, PACKED, BLOCK_Q
    )  # fmt: skip
    if SPLIT:
        start, stop = split_keys(start, stop, tl.program_id(1), tl.num_programs(1), BLOCK_K)
        high = tl.minimum(high, stop)

    q_ptr += batch * stride_qb + head * stride_qh
    k_ptr += batch * stride_kb + k_head * stride_kh
    v_ptr += batch * stride_vb + k_head * stride_vh
    q_rows = row_offsets(index, member, stride_qs, stride_qh, PACKED)
    q = load_rows(q_ptr, 1, q_rows, exists, DIM, BLOCK_D, True)  # [BLOCK_Q, BLOCK_D]
    centre = 0
    if REL != "none":
        tl.static_assert(BLOCK_Q <= 2 * BLOCK_K, "a tile's band is at most three chunks")
        tl.static_assert(rel_v_ptr is None or BLOCK_Q <= BLOCK_K, "weights are sheared into two")
        centre = n_rows - 1 if CAUSAL else (n_rows - 1) // 2
        q_rel = q
        if q_rel_ptr is not None:
            q_rel_ptr += batch * stride_rb + head * stride_rh
            q_rel_rows = row_offsets(index, member, stride_rs, stride_rh, PACKED)
            q_rel = load_rows(q_rel_ptr, 1, q_rel_rows, exists, DIM, BLOCK_D, True)
        rel_k_ptr += head * stride_rel_kh
        if rel_v_ptr is not None:
            rel_v_ptr += head * stride_rel_vh
        if REL == "clip":
            edge_low = rel_scale * edge_product(q_rel, rel_k_ptr, PITCH_K, 0, DIM, BLOCK_D)
            edge_high = edge_low
            if HAS_HIGH:
                last = n_rows - 1
                edge = edge_product(q_rel, rel_k_ptr, PITCH_K, last, DIM, BLOCK_D)
                edge_high = rel_scale * edge

    acc = tl.zeros((BLOCK_Q, BLOCK_DV), tl.float32)
    row_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_Q,), tl.float32)
    far_low = tl.zeros((BLOCK_Q,), tl.float32)  # weights of the keys that use the table's first row
    far_high = tl.zeros((BLOCK_Q,), tl.float32)
    bounds = key_phases(
        start, stop, full_start, full_stop, first, centre, n_rows, GEOMETRY, REL, BLOCK_Q, BLOCK_K
    )
    tl.static_assert(not LATE or GEOMETRY != "pattern", "steps are not in the order of the keys")
    if LATE:  # of the step before, until its values come; of none they are
        waiting = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
        waiting_rescale = tl.full((BLOCK_Q,), 1.0, tl.float32)
    for phase in tl.static_range(5):
        if phase_exists(phase, GEOMETRY, REL, CAUSAL):
            if phase == 0 and CARRIED:
                previous, rest = earlier_products(
                    q_rel, rel_k_ptr, PITCH_K, bounds[phase] - first + centre, n_rows, shift,
                    REL == "clip", PRECISION, BLOCK_D <= 64, DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
                )  # fmt: skip
            if (phase == 1 or phase == 3) and REL == "clip":
                # all keys of a row have one term: it is left out of logits and of row_max
                edge = edge_low if phase == 3 else edge_high
                max_before = row_max
                row_max -= edge
            for number in range(bounds[phase], bounds[phase + 1], BLOCK_K):
                begin, key, valid, who = step_keys(number, stop, places, extent, GEOMETRY, BLOCK_K)
                k = load_step(
                    k_rows, batch, k_head, number, k_ptr, stride_ks, key, valid, DIM, BLOCK_D,
                    BLOCK_K, phase_masked(phase, GEOMETRY, REL),
                )  # fmt: skip
                logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_Q, BLOCK_K]
                if values_wait(LATE, phase, REL):
                    before = tl.maximum(number - BLOCK_K, start)
                    _, key, valid, _ = step_keys(before, stop, places, extent, GEOMETRY, BLOCK_K)
                    # the first step has none before it: a descriptor gives zeros behind the keys
                    before = tl.where(number > start, before, k_len)
                    v = load_step(
                        v_rows, batch, k_head, before, v_ptr, stride_vs, key, valid, V_DIM,
                        BLOCK_DV, BLOCK_K, phase_masked(phase, GEOMETRY, REL),
                    )  # fmt: skip
                    acc = add_values(acc, waiting, waiting_rescale, v, PRECISION)
                if not FOLDED:
                    logits *= scale
                if phase == 0 and REL != "none":
                    row = begin - first + centre
                    if CARRIED:
                        term, previous, rest = band_step(
                            q_rel, rel_k_ptr, PITCH_K, row, n_rows, shift, previous, rest,
                            REL == "clip", PRECISION, BLOCK_D <= 64, DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
                        )  # fmt: skip
                    else:
                        term = band_whole(
                            q_rel, rel_k_ptr, PITCH_K, row, n_rows, shift,
                            REL == "clip", False, PRECISION, DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
                        )  # fmt: skip
                    logits += term if FOLDED else term * rel_scale
                if phase_masked(phase, GEOMETRY, REL):
                    seen = sees(who, low, high, GEOMETRY, BLOCK_K)
                    logits = tl.where(seen, logits, float("-inf"))
                weights, rescale, row_max, row_sum = softmax_step(
                    logits, row_max, row_sum, factor, phase_masked(phase, GEOMETRY, REL)
                )
                if values_wait(LATE, phase, REL):
                    waiting, waiting_rescale = weights, rescale
                else:
                    v = load_step(
                        v_rows if ONE_END else None, batch, k_head, number, v_ptr, stride_vs, key,
                        valid, V_DIM, BLOCK_DV, BLOCK_K, phase_masked(phase, GEOMETRY, REL),
                    )  # fmt: skip
                    acc = add_values(acc, weights, rescale, v, PRECISION)
                if rel_v_ptr is not None:
                    far_low *= rescale
                    far_high *= rescale
                    if phase == 3:
                        far_low += tl.sum(weights, 1)
                    if phase == 1:
                        far_high += tl.sum(weights, 1)
                    if phase == 0 and REL != "none":
                        sheared = rotate(
                            weights.to(v_ptr.dtype.element_ty), shift[:, None], 1, False,
                            BLOCK_Q, BLOCK_K,
                        )  # fmt: skip
                        current_part = in_current(shift[:, None], False, BLOCK_K)
                        chunk = table_chunk(
                            rel_v_ptr, PITCH_V, row, n_rows, REL == "clip",
                            V_DIM, BLOCK_DV, BLOCK_K,
                        )  # fmt: skip
                        part = tl.where(current_part, sheared, 0.0).to(v_ptr.dtype.element_ty)
                        acc = tl.dot(part, chunk, acc, input_precision=PRECISION)
                        chunk = table_chunk(
                            rel_v_ptr, PITCH_V, row - BLOCK_K, n_rows, REL == "clip",
                            V_DIM, BLOCK_DV, BLOCK_K,
                        )  # fmt: skip
                        part = tl.where(current_part, 0.0, sheared).to(v_ptr.dtype.element_ty)
                        acc = tl.dot(part, chunk, acc, input_precision=PRECISION)

            if (phase == 1 or phase == 3) and REL == "clip":
                raised = row_max > max_before - edge
                row_max = tl.where(raised, row_max + edge, max_before)

    if LATE:
        late_stop = stop if REL == "none" else bounds[4]
        last = tl.maximum(start + (late_stop - start - 1) // BLOCK_K * BLOCK_K, start)
        _, key, valid, _ = step_keys(last, stop, places, extent, GEOMETRY, BLOCK_K)
        v = load_rows(v_ptr, stride_vs, key, valid, V_DIM, BLOCK_DV, True)
        acc = add_values(acc, waiting, waiting_rescale, v, PRECISION)
    if rel_v_ptr is not None and REL == "clip":
        acc += far_low[:, None] * edge_row(rel_v_ptr, PITCH_V, 0, V_DIM, BLOCK_DV)[None, :]
        if HAS_HIGH:
            last_row = edge_row(rel_v_ptr, PITCH_V, n_rows - 1, V_DIM, BLOCK_DV)
            acc += far_high[:, None] * last_row[None, :]
    out, lse = softmax_finish(acc, row_max, row_sum)
    out_ptr += batch * stride_ob + head * stride_oh
    lse_ptr += (batch * heads + head) * q_len
    if SPLIT:
        out_ptr += tl.program_id(1).to(tl.int64) * stride_out_split
        lse_ptr += tl.program_id(1).to(tl.int64) * stride_lse_split
    out_rows = row_offsets(index, member, stride_os, stride_oh, PACKED)
    store_rows(out_ptr, 1, out_rows, exists, out, V_DIM, BLOCK_DV)
    tl.store(lse_ptr + row_offsets(index, member, 1, q_len, PACKED), lse, mask=exists)


@triton.jit
def merge_splits_kernel(
    part_ptr, part_lse_ptr, out_ptr, lse_ptr,
    stride_ob, stride_oh, stride_os, stride_part_split, stride_lse_split,
    heads, q_len, n_splits,
    V_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """out and lse of one query from its parts: a part weighs exp(lse of the part - lse)."""
    row = tl.program_id(0).to(tl.int64)  # of [batch, heads, q_len]
    index = row % q_len
    head = row // q_len % heads
    batch = row // q_len // heads
    split = tl.arange(0, BLOCK_SPLITS)
    part_lse = tl.load(
        part_lse_ptr + split.to(tl.int64) * stride_lse_split + row,
        mask=split < n_splits, other=float("-inf"),
    )  # fmt: skip
    top = tl.max(part_lse, 0)
    pivot = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2((part_lse - pivot) * LOG2_E)  # [BLOCK_SPLITS]
    total = tl.sum(weights, 0)
    divisor = tl.where(top == float("-inf"), 1.0, total)
    parts = load_rows(
        part_ptr + row * V_DIM, stride_part_split, split, split < n_splits, V_DIM, BLOCK_DV, True
    )
    out = tl.sum(parts * weights[:, None], 0) / divisor
    col = tl.arange(0, BLOCK_DV)
    out_ptr += batch * stride_ob + head * stride_oh + index * stride_os
    tl.store(out_ptr + col, out.to(out_ptr.dtype.element_ty), mask=col < V_DIM)
    lse = tl.where(top == float("-inf"), float("-inf"), top + tl.log2(divisor) * LN_2)
    tl.store(lse_ptr + row, lse)
