"""Backward of attention in Triton, with queries at home: delta, grad_q and grad_q_rel.

    P = exp(S - lse)          dP = dO V^T (+ dO rel_v)         delta_i = out_i . dO_i - dlse_i
    dS = P * (dP - delta)     dQ = dS K (+ dS rel_k)

The weights are computed again from lse. With a table, dS (and P, for rel_v) is left behind by table
row, for grad_table.py to multiply; and far holds, for every query, what falls beyond a clipped
table's first and last row. There S and dP have one term e of the table for all keys of a query, so

    P = exp(S - (lse - e))    dP - delta = dO V^T - (delta - e')

and lse and delta come in three sorts: for keys within the table, before and behind it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import (
    NO_SPECIALIZATION,
    entry_sizes,
    heads_of,
    key_phases,
    load_step,
    phase_exists,
    phase_masked,
)
from .geometry import (
    block_box,
    block_place,
    blocks_across,
    box_position,
    clamp,
    is_canvas,
    pattern_reach,
    query_tile,
    sees,
    step_keys,
)
from .score import (
    band_step,
    band_whole,
    earlier_products,
    edge_product,
    edge_row,
    load_rows,
    store_rows,
    table_chunk,
)
from .softmax import LOG2_E


@triton.constexpr_function
def key_side(phase, rel):
    """Which sort of lse and delta a phase of key_phases takes."""
    return {3: 1, 1: 2}.get(phase, 0) if rel == "clip" else 0


@triton.jit
def load_sums(
    lse_ptr, delta_ptr, stride, home, index, valid, SIDE: tl.constexpr, VALUES: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """lse and delta as prepare_kernel left them, also of a step's rows behind the last query;
    MASKED: of any rows. VALUES: delta has sorts as well."""
    lse_ptr += SIDE * stride + home
    delta_ptr += home
    if VALUES:
        delta_ptr += SIDE * stride
    if MASKED:
        lse = tl.load(lse_ptr + index, mask=valid, other=float("inf"))
        return lse, tl.load(delta_ptr + index, mask=valid, other=0.0)
    else:
        return tl.load(lse_ptr + index), tl.load(delta_ptr + index)


@triton.jit
def store_sides(
    x, ptr, stride, index, stop, rows, table_ptr, stride_row, n_rows, rel_scale,
    SIDES: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """x for keys within the table, before it and behind it, where each row's product with the
    table's first or last row is subtracted."""
    tl.store(ptr + index, x, mask=index < stop)
    for side in tl.static_range(1, SIDES):
        table_row = 0 if side == 1 else n_rows - 1
        edge = edge_product(rows, table_ptr, stride_row, table_row, DIM, BLOCK_D) * rel_scale
        tl.store(ptr + side * stride + index, x - edge, mask=index < stop)


@triton.jit(do_not_specialize=NO_SPECIALIZATION)
def prepare_kernel(
    q_ptr, out_ptr, lse_ptr, grad_out_ptr, grad_lse_ptr, rel_k_ptr, rel_v_ptr,
    lse_2_ptr, delta_ptr,
    stride_qb, stride_qh, stride_qs, stride_ob, stride_oh, stride_os, stride_gb, stride_gh,
    stride_gs, stride_rel_kh, stride_rel_vh, stride_sums, sum_rows, room, heads, q_len, extent,
    n_tiles, n_rows, rel_scale,
    DIM: tl.constexpr, V_DIM: tl.constexpr, GEOMETRY: tl.constexpr, SIDES: tl.constexpr,
    PITCH_K: tl.constexpr, PITCH_V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """lse in powers of two and delta, of SIDES sorts: 1 without a clipped table, 2 if no key lies
    behind it, or 3. q_ptr is what rel_k is multiplied with.

    lse of a row without keys, or of no row, is inf, so that its weights are 0: 2^(s - inf). A head
    has sum_rows: more than q_len, as grad_kv's last step is whole; on a canvas block by block, with
    `room` for each, so that a step's are neighbours.
    """
    tile = tl.program_id(0) % n_tiles
    batch, head, _ = heads_of(tl.program_id(0) // n_tiles, heads, 1)
    home = (tl.program_id(0) // n_tiles).to(tl.int64)
    place = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    index = place
    exists = index < q_len
    if is_canvas(GEOMETRY):
        block = place // room
        box = block_box(block // blocks_across(extent), block % blocks_across(extent), extent)
        index = box_position(place % room, box, extent[1])
        exists = (place < sum_rows) & (place % room < box[3])
    out_ptr += batch * stride_ob + head * stride_oh
    grad_out_ptr += batch * stride_gb + head * stride_gh
    out = load_rows(out_ptr, stride_os, index, exists, V_DIM, BLOCK_DV, True)
    grad_out = load_rows(grad_out_ptr, stride_gs, index, exists, V_DIM, BLOCK_DV, True)
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1)
    at = home * q_len + index
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + at, mask=exists, other=0.0)
    lse = tl.load(lse_ptr + at, mask=exists, other=float("-inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E)
    lse_2_ptr += home * sum_rows
    delta_ptr += home * sum_rows
    q = grad_out  # no table is multiplied with it
    if SIDES > 1:
        q_ptr += batch * stride_qb + head * stride_qh
        rel_k_ptr += head * stride_rel_kh
        q = load_rows(q_ptr, stride_qs, index, exists, DIM, BLOCK_D, True)
    store_sides(
        lse, lse_2_ptr, stride_sums, place, sum_rows, q, rel_k_ptr, PITCH_K, n_rows,
        tl.cast(rel_scale, tl.float32) * LOG2_E, SIDES, DIM, BLOCK_D,
    )  # fmt: skip
    if rel_v_ptr is not None:
        rel_v_ptr += head * stride_rel_vh
    store_sides(
        delta, delta_ptr, stride_sums, place, sum_rows, grad_out, rel_v_ptr, PITCH_V,
        n_rows, 1.0, 1 if rel_v_ptr is None else SIDES, V_DIM, BLOCK_DV,
    )  # fmt: skip


@triton.constexpr_function
def margin(block_q, block_k):
    """Columns of sheared scores before table row 0, and as many behind the last: whole chunks."""
    return ((block_q + block_k - 1) // block_k + 1) * block_k


@triton.jit
def load_chunk(ptr, stride, chunk, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Sheared scores of BLOCK_K table rows: [BLOCK_Q, BLOCK_K]."""
    line = ptr + tl.arange(0, BLOCK_Q)[:, None] * stride
    return tl.load(line + chunk * BLOCK_K + tl.arange(0, BLOCK_K)[None, :])


@triton.jit
def sum_beyond(
    ptr, stride, low, high, n_rows, HIGH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums of sheared scores before the table or, HIGH, behind it; over chunks [low, high)."""
    total = tl.zeros((BLOCK_Q,), tl.float32)
    first = low
    if HIGH:
        first = tl.maximum(low, n_rows // BLOCK_K)
    for chunk in range(first, high):
        x = load_chunk(ptr, stride, chunk, BLOCK_Q, BLOCK_K).to(tl.float32)
        if HIGH:
            table_row = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
            x = tl.where((table_row >= n_rows)[None, :], x, 0.0)
        total += tl.sum(x, 1)
    return total


@triton.jit
def store_skewed(ptr, stride, row, x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """x[a, b] to ptr[a, row + b - a]: a tile of scores by table row."""
    line = ptr + row + tl.arange(0, BLOCK_K)[None, :]
    tl.store(line + tl.arange(0, BLOCK_Q)[:, None] * (stride - 1), x)


@triton.jit
def fill(ptr, stride, low, high, GAPS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Zeros in a tile's chunks of rows; only the first and last, whose corners skewed tiles leave,
    if there are no GAPS between them."""
    ENDS: tl.constexpr = (BLOCK_Q + BLOCK_K - 1) // BLOCK_K + 1
    zeros = tl.zeros((BLOCK_Q, BLOCK_K), ptr.dtype.element_ty)
    line = ptr + tl.arange(0, BLOCK_Q)[:, None] * stride + tl.arange(0, BLOCK_K)[None, :]
    if GAPS:
        for chunk in range(low, high):
            tl.store(line + chunk * BLOCK_K, zeros)
    else:
        for i in tl.static_range(2 * ENDS):
            chunk = low + i if i < ENDS else high - 2 * ENDS + i
            tl.store(line + chunk * BLOCK_K, zeros, mask=(chunk >= low) & (chunk < high))


@triton.jit(do_not_specialize=(*NO_SPECIALIZATION, "first_program"))
def grad_q_kernel(
    q_ptr, k_ptr, v_ptr, rel_k_ptr, rel_v_ptr, q_rel_ptr, key_lengths_ptr, query_offsets_ptr,
    pattern_ptr, grad_out_ptr, lse_ptr, delta_ptr, k_rows, v_rows,
    grad_q_ptr, grad_q_rel_ptr, far_ptr, sheared_ptr, v_sheared_ptr, reach_ptr,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh,
    stride_vs, stride_rb, stride_rh, stride_rs, stride_gb, stride_gh, stride_gs, stride_dqb,
    stride_dqh, stride_dqs, stride_drb, stride_drh, stride_drs, stride_rel_kh, stride_rel_vh,
    stride_sums, sum_rows, room, stride_far, heads, group, q_len, k_len, query_offset, extent,
    n_tiles, n_rows, scale, rel_scale, first_program,
    DIM: tl.constexpr, V_DIM: tl.constexpr, GEOMETRY: tl.constexpr, REL: tl.constexpr,
    CAUSAL: tl.constexpr, FOLDED: tl.constexpr, WHOLE: tl.constexpr, PITCH: tl.constexpr,
    PITCH_K: tl.constexpr, PITCH_V: tl.constexpr, PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One tile of queries against its keys.

    lse_ptr, delta_ptr, sum_rows, room: see prepare_kernel. WHOLE, PITCH_K, PITCH_V: see forward.py.
    k_rows, v_rows: descriptors of keys and values, tiles [1, 1, BLOCK_K, *]; or None.
    far_ptr (REL == "clip"): [2 or 4, batch, heads, q_len], the sums of dS before and behind the
    table, and those of P if there is rel_v. sheared_ptr (v_sheared_ptr) if there is a table:
    [programs * BLOCK_Q, PITCH], dS (P) by query and table row, MARGIN columns before row
    0; reach_ptr: [programs, 3], the chunks of BLOCK_K rows [low, high) that a program has written
    and its first query. Programs count from first_program.
    """
    HAS_HIGH: tl.constexpr = REL != "none" and not CAUSAL
    JUMPS: tl.constexpr = GEOMETRY == "pattern"  # steps leave gaps
    CARRIED: tl.constexpr = REL != "none" and not (JUMPS or WHOLE)  # see forward.py
    # otherwise both terms of grad_q have one scale and share an accumulator
    SEPARATE: tl.constexpr = REL != "none" and (q_rel_ptr is not None or not FOLDED)
    program = tl.program_id(0) + first_program
    tile = program % n_tiles
    if CAUSAL:
        tile = n_tiles - 1 - tile  # the longest first
    batch, head, k_head = heads_of(program // n_tiles, heads, group)
    home = (program // n_tiles).to(tl.int64)
    scale = tl.cast(scale, tl.float32)
    rel_scale = tl.cast(rel_scale, tl.float32)
    factor = scale * LOG2_E if FOLDED else LOG2_E

    k_end, offset = entry_sizes(batch, k_len, query_offset, key_lengths_ptr, query_offsets_ptr)
    (
        index, exists, _, first, shift, low, high, start, stop, full_start, full_stop, places
    ) = query_tile(
        tile, q_len, k_end, offset, extent, group, pattern_ptr, GEOMETRY, False, BLOCK_Q
    )  # fmt: skip
    place = index  # in lse and delta
    if is_canvas(GEOMETRY):
        place = block_place(tile, extent, room, BLOCK_Q) + tl.arange(0, BLOCK_Q)
    q_ptr += batch * stride_qb + head * stride_qh
    k_ptr += batch * stride_kb + k_head * stride_kh
    v_ptr += batch * stride_vb + k_head * stride_vh
    grad_out_ptr += batch * stride_gb + head * stride_gh
    q = load_rows(q_ptr, stride_qs, index, exists, DIM, BLOCK_D, True)
    grad_out = load_rows(grad_out_ptr, stride_gs, index, exists, V_DIM, BLOCK_DV, True)
    centre = 0
    if REL != "none":
        tl.static_assert(BLOCK_Q <= 2 * BLOCK_K, "a tile's band is at most three chunks")
        centre = n_rows - 1 if CAUSAL else (n_rows - 1) // 2
        q_rel = q
        if q_rel_ptr is not None:
            q_rel_ptr += batch * stride_rb + head * stride_rh
            q_rel = load_rows(q_rel_ptr, stride_rs, index, exists, DIM, BLOCK_D, True)
        rel_k_ptr += head * stride_rel_kh
        if rel_v_ptr is not None:
            rel_v_ptr += head * stride_rel_vh
        MARGIN: tl.constexpr = margin(BLOCK_Q, BLOCK_K)
        slot = tl.program_id(0).to(tl.int64)
        sheared_ptr += slot * BLOCK_Q * PITCH + MARGIN
        if rel_v_ptr is not None:
            v_sheared_ptr += slot * BLOCK_Q * PITCH + MARGIN

    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    far_low = tl.zeros((BLOCK_Q,), tl.float32)
    far_high = tl.zeros((BLOCK_Q,), tl.float32)
    v_far_low = tl.zeros((BLOCK_Q,), tl.float32)
    v_far_high = tl.zeros((BLOCK_Q,), tl.float32)
    bounds = key_phases(
        start, stop, full_start, full_stop, first, centre, n_rows, GEOMETRY, REL, BLOCK_Q, BLOCK_K
    )
    if REL != "none":
        steps = (bounds[1] - bounds[0] + BLOCK_K - 1) // BLOCK_K
        row_0 = clamp(centre - first, -(1 << 30), 1 << 30).to(tl.int32)  # of row 0's key 0
        if not JUMPS:  # where all keys are before the table, a last step of few is left to the band
            row_0 = tl.maximum(row_0, -BLOCK_K - bounds[0])
        row = row_0 + bounds[0] + MARGIN
        end_row = row + steps * BLOCK_K
        if GEOMETRY == "pattern":  # steps may leave gaps, and lie far beyond the table
            begin, end = pattern_reach(places)
            row = clamp(row_0 + begin, -BLOCK_K, n_rows + BLOCK_Q) + MARGIN
            end_row = clamp(row_0 + end, -BLOCK_K, n_rows + BLOCK_Q + BLOCK_K) + MARGIN
        chunk_low = (row - BLOCK_Q + 1) // BLOCK_K - MARGIN // BLOCK_K
        chunk_high = (end_row + BLOCK_K - 1) // BLOCK_K - MARGIN // BLOCK_K
        chunk_low = tl.where(steps > 0, chunk_low, 0)
        chunk_high = tl.where(steps > 0, chunk_high, 0)
        tl.store(reach_ptr + 3 * slot, chunk_low)
        tl.store(reach_ptr + 3 * slot + 1, chunk_high)
        tl.store(reach_ptr + 3 * slot + 2, (first - offset).to(tl.int32))
        fill(sheared_ptr, PITCH, chunk_low, chunk_high, JUMPS, BLOCK_Q, BLOCK_K)
        if rel_v_ptr is not None:
            fill(v_sheared_ptr, PITCH, chunk_low, chunk_high, JUMPS, BLOCK_Q, BLOCK_K)
        tl.debug_barrier()  # before other threads write there
    for phase in tl.static_range(5):
        if phase_exists(phase, GEOMETRY, REL, CAUSAL):
            if phase == 0 and CARRIED:
                row = bounds[phase] + row_0
                previous, rest = earlier_products(
                    q_rel, rel_k_ptr, PITCH_K, row, n_rows, shift, REL == "clip", PRECISION,
                    True, DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
                )  # fmt: skip
                if rel_v_ptr is not None:
                    v_previous, v_rest = earlier_products(
                        grad_out, rel_v_ptr, PITCH_V, row, n_rows, shift, REL == "clip",
                        PRECISION, True, V_DIM, BLOCK_Q, BLOCK_K, BLOCK_DV,
                    )  # fmt: skip
            lse, delta = load_sums(
                lse_ptr, delta_ptr, stride_sums, home * sum_rows, place, exists,
                key_side(phase, REL), rel_v_ptr is not None, True,
            )  # fmt: skip
            for number in range(bounds[phase], bounds[phase + 1], BLOCK_K):
                begin, key, valid, who = step_keys(number, stop, places, extent, GEOMETRY, BLOCK_K)
                k = load_step(
                    k_rows, batch, k_head, number, k_ptr, stride_ks, key, valid, DIM, BLOCK_D,
                    BLOCK_K, phase_masked(phase, GEOMETRY, REL),
                )  # fmt: skip
                v = load_step(
                    v_rows, batch, k_head, number, v_ptr, stride_vs, key, valid, V_DIM, BLOCK_DV,
                    BLOCK_K, phase_masked(phase, GEOMETRY, REL),
                )  # fmt: skip
                if phase == 0 and REL != "none":
                    row = begin + row_0
                    if CARRIED:
                        logits, previous, rest = band_step(
                            q_rel, rel_k_ptr, PITCH_K, row, n_rows, shift, previous, rest,
                            REL == "clip", PRECISION, True, DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
                        )  # fmt: skip
                    else:
                        logits = band_whole(
                            q_rel, rel_k_ptr, PITCH_K, row, n_rows, shift, REL == "clip",
                            False, PRECISION, DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
                        )  # fmt: skip
                    if FOLDED:
                        logits += tl.dot(q, tl.trans(k), input_precision=PRECISION)
                    else:
                        logits *= rel_scale
                        logits += tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
                else:
                    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
                    if not FOLDED:
                        logits *= scale
                grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
                if phase == 0 and REL != "none":  # noqa: SIM102
                    if rel_v_ptr is not None:
                        if CARRIED:
                            term, v_previous, v_rest = band_step(
                                grad_out, rel_v_ptr, PITCH_V, row, n_rows, shift, v_previous,
                                v_rest, REL == "clip", PRECISION, True, V_DIM, BLOCK_Q, BLOCK_K,
                                BLOCK_DV,
                            )  # fmt: skip
                        else:
                            term = band_whole(
                                grad_out, rel_v_ptr, PITCH_V, row, n_rows, shift,
                                REL == "clip", False, PRECISION, V_DIM, BLOCK_Q, BLOCK_K, BLOCK_DV,
                            )  # fmt: skip
                        grad_weights += term
                weights = tl.exp2(logits * factor - lse[:, None])
                MASKED: tl.constexpr = phase_masked(phase, GEOMETRY, REL)
                if MASKED and REL != "none":
                    seen = sees(who, low, high, GEOMETRY, BLOCK_K)
                    weights = tl.where(seen, weights, 0.0)
                grad_logits = weights * (grad_weights - delta[:, None])
                if MASKED and REL == "none":  # first it would take 151 instead of 128 registers
                    seen = sees(who, low, high, GEOMETRY, BLOCK_K)
                    grad_logits = tl.where(seen, grad_logits, 0.0)
                grads = grad_logits.to(k.dtype)
                acc = tl.dot(grads, k, acc, input_precision=PRECISION)
                if phase == 0 and REL != "none":
                    # where steps jump, one may lie beyond the table
                    far_below = JUMPS and row + BLOCK_K <= 0
                    far_above = JUMPS and row - BLOCK_Q >= n_rows - 1
                    if not (far_below or far_above):
                        store_skewed(sheared_ptr, PITCH, row, grads, BLOCK_Q, BLOCK_K)
                        if rel_v_ptr is not None:
                            store_skewed(
                                v_sheared_ptr, PITCH, row, weights.to(v.dtype),
                                BLOCK_Q, BLOCK_K,
                            )  # fmt: skip
                else:
                    far_below = phase == 3
                    far_above = phase == 1
                if REL == "clip":
                    if far_below:
                        far_low += tl.sum(grad_logits, 1)
                        if rel_v_ptr is not None:
                            v_far_low += tl.sum(weights, 1)
                    if far_above:
                        far_high += tl.sum(grad_logits, 1)
                        if rel_v_ptr is not None:
                            v_far_high += tl.sum(weights, 1)

    if REL != "none":
        rel_acc = acc
        if SEPARATE:
            acc *= scale
            rel_acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
        tl.debug_barrier()  # dS is there, whoever stored it
        chunk_low = tl.load(reach_ptr + 3 * slot)  # not kept: the band needs the registers
        chunk_high = tl.load(reach_ptr + 3 * slot + 1)
        inside_low = tl.maximum(chunk_low, 0)
        inside_high = tl.minimum(chunk_high, (n_rows + BLOCK_K - 1) // BLOCK_K)
        for chunk in range(inside_low, inside_high):
            grads = load_chunk(sheared_ptr, PITCH, chunk, BLOCK_Q, BLOCK_K)
            rows = table_chunk(
                rel_k_ptr, PITCH_K, chunk * BLOCK_K, n_rows, False, DIM, BLOCK_D, BLOCK_K
            )
            rel_acc = tl.dot(grads, rows, rel_acc, input_precision=PRECISION)
        if REL == "clip":
            far_low += sum_beyond(
                sheared_ptr, PITCH, chunk_low, inside_low, n_rows, False, BLOCK_Q, BLOCK_K
            )
            if HAS_HIGH:
                far_high += sum_beyond(
                    sheared_ptr, PITCH, inside_low, chunk_high, n_rows, True,
                    BLOCK_Q, BLOCK_K,
                )  # fmt: skip
            if rel_v_ptr is not None:
                v_far_low += sum_beyond(
                    v_sheared_ptr, PITCH, chunk_low, inside_low, n_rows, False,
                    BLOCK_Q, BLOCK_K,
                )  # fmt: skip
                if HAS_HIGH:
                    v_far_high += sum_beyond(
                        v_sheared_ptr, PITCH, inside_low, chunk_high, n_rows, True,
                        BLOCK_Q, BLOCK_K,
                    )  # fmt: skip
        if REL == "clip":
            rel_acc += far_low[:, None] * edge_row(rel_k_ptr, PITCH_K, 0, DIM, BLOCK_D)
            if HAS_HIGH:
                last_row = edge_row(rel_k_ptr, PITCH_K, n_rows - 1, DIM, BLOCK_D)
                rel_acc += far_high[:, None] * last_row
            at = far_ptr + home * q_len + index
            tl.store(at, far_low, mask=exists)
            tl.store(at + stride_far, far_high, mask=exists)
            if rel_v_ptr is not None:
                tl.store(at + 2 * stride_far, v_far_low, mask=exists)
                tl.store(at + 3 * stride_far, v_far_high, mask=exists)
        rel_acc *= rel_scale
        if q_rel_ptr is not None:
            grad_q_rel_ptr += batch * stride_drb + head * stride_drh
            store_rows(grad_q_rel_ptr, stride_drs, index, exists, rel_acc, DIM, BLOCK_D)
        elif SEPARATE:
            acc += rel_acc
        else:
            acc = rel_acc
    else:
        acc *= scale
    grad_q_ptr += batch * stride_dqb + head * stride_dqh
    store_rows(grad_q_ptr, stride_dqs, index, exists, acc, DIM, BLOCK_D)
