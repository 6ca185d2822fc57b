"""Backward of attention in Triton, with queries at home: delta, grad_q and grad_q_rel.

    P = exp(S - lse)          dP = dO V^T (+ dO rel_v)         delta_i = out_i . dO_i - dlse_i
    dS = P * (dP - delta)     dQ = dS K (+ dS rel_k)

The weights are computed again from lse. far holds, for every query, what falls beyond a clipped
table's first and last row, so that grad_table.py needs no second look at those keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import NO_SPECIALIZATION, entry_sizes, key_phases, phase_exists, phase_masked
from .geometry import clamp, query_tile, sees, step_keys
from .score import (
    band_term,
    edge_product,
    edge_row,
    in_current,
    load_rows,
    rotate,
    store_rows,
    table_chunk,
)
from .softmax import LOG2_E


@triton.jit
def load_lse(lse_ptr, index, exists):
    """lse in powers of two; a row without keys, or no row, has weight 0 everywhere: 2^(s - inf)."""
    lse = tl.load(lse_ptr + index, mask=exists, other=float("-inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E)


@triton.jit(do_not_specialize=NO_SPECIALIZATION)
def prepare_kernel(
    q_ptr, out_ptr, grad_out_ptr, grad_lse_ptr, rel_k_ptr, rel_v_ptr,
    delta_ptr, edges_ptr,
    stride_qb, stride_qh, stride_qs, stride_ob, stride_oh, stride_os, stride_gb, stride_gh,
    stride_gs, stride_rel_kh, stride_rel_kr, stride_rel_vh, stride_rel_vr, stride_edges, heads,
    q_len, n_tiles, n_rows, DIM: tl.constexpr, V_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D:
    tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """delta, and the products of queries with a clipped table's first and last row (edges_ptr).

    edges: [4, batch, heads, q_len], of rel_k with q_rel (here q_ptr) and of rel_v with grad_out.
    """
    tile = tl.program_id(0) % n_tiles
    home = (tl.program_id(0) // n_tiles).to(tl.int64)
    batch, head = home // heads, home % heads
    index = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    exists = index < q_len
    out_ptr += batch * stride_ob + head * stride_oh
    grad_out_ptr += batch * stride_gb + head * stride_gh
    out = load_rows(out_ptr, stride_os, index, exists, V_DIM, BLOCK_DV, True)
    grad_out = load_rows(grad_out_ptr, stride_gs, index, exists, V_DIM, BLOCK_DV, True)
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1)
    at = home * q_len + index
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + at, mask=exists, other=0.0)
    tl.store(delta_ptr + at, delta, mask=exists)
    if edges_ptr is not None:
        q_ptr += batch * stride_qb + head * stride_qh
        rel_k_ptr += head * stride_rel_kh
        q = load_rows(q_ptr, stride_qs, index, exists, DIM, BLOCK_D, True)
        low = edge_product(q, rel_k_ptr, stride_rel_kr, 0, DIM, BLOCK_D)
        high = edge_product(q, rel_k_ptr, stride_rel_kr, n_rows - 1, DIM, BLOCK_D)
        tl.store(edges_ptr + at, low, mask=exists)
        tl.store(edges_ptr + stride_edges + at, high, mask=exists)
        if rel_v_ptr is not None:
            rel_v_ptr += head * stride_rel_vh
            low = edge_product(grad_out, rel_v_ptr, stride_rel_vr, 0, V_DIM, BLOCK_DV)
            high = edge_product(grad_out, rel_v_ptr, stride_rel_vr, n_rows - 1, V_DIM, BLOCK_DV)
            tl.store(edges_ptr + 2 * stride_edges + at, low, mask=exists)
            tl.store(edges_ptr + 3 * stride_edges + at, high, mask=exists)


@triton.jit
def beyond_sum(x, row, shift, n_rows, HIGH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Row sums of a tile over the offsets before the table (HIGH: behind it); row is offset 0's."""
    row = clamp(row, -(1 << 30), 1 << 30).to(tl.int32)
    table_row = row + tl.arange(0, BLOCK_K)[None, :] - shift[:, None]
    if HIGH:
        return tl.sum(tl.where(table_row >= n_rows, x, 0.0), 1)
    else:
        return tl.sum(tl.where(table_row < 0, x, 0.0), 1)


@triton.jit
def add_chunk(
    acc, rel_acc, sheared, rel_k_ptr, stride_rel_kr, row, n_rows, SEPARATE: tl.constexpr,
    PRECISION: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Adds sheared dS times a chunk of the table to one of (acc, rel_acc)."""
    chunk = table_chunk(rel_k_ptr, stride_rel_kr, row, n_rows, False, DIM, BLOCK_D, BLOCK_K)
    sheared = sheared.to(chunk.dtype)
    if SEPARATE:
        return acc, tl.dot(sheared, chunk, rel_acc, input_precision=PRECISION)
    else:
        return tl.dot(sheared, chunk, acc, input_precision=PRECISION), rel_acc


@triton.jit(do_not_specialize=NO_SPECIALIZATION)
def grad_q_kernel(
    q_ptr, k_ptr, v_ptr, rel_k_ptr, rel_v_ptr, q_rel_ptr, key_lengths_ptr, query_offsets_ptr,
    pattern_ptr, grad_out_ptr, lse_ptr, delta_ptr,
    grad_q_ptr, grad_q_rel_ptr, far_ptr,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh,
    stride_vs, stride_rb, stride_rh, stride_rs, stride_gb, stride_gh, stride_gs, stride_dqb,
    stride_dqh, stride_dqs, stride_drb, stride_drh, stride_drs, stride_rel_kh, stride_rel_kr,
    stride_rel_vh, stride_rel_vr, stride_far, heads, group, q_len, k_len, query_offset, extent,
    n_tiles, n_rows, scale, rel_scale, DIM: tl.constexpr, V_DIM: tl.constexpr, GEOMETRY:
    tl.constexpr, REL: tl.constexpr, CAUSAL: tl.constexpr, FOLDED: tl.constexpr, PRECISION:
    tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV:
    tl.constexpr,
):  # fmt: skip
    """One tile of queries against its keys.

    far_ptr (REL == "clip"): [4, batch, heads, q_len], the sums of dS before and behind the table,
    and those of P if there is rel_v.
    """
    HAS_HIGH: tl.constexpr = REL != "none" and not CAUSAL
    # the next step's previous chunk is this one's current
    CARRIED: tl.constexpr = REL != "none" and GEOMETRY != "pattern"
    # otherwise both terms of grad_q have one scale and share an accumulator
    SEPARATE: tl.constexpr = REL != "none" and (q_rel_ptr is not None or not FOLDED)
    tile = tl.program_id(0) % n_tiles
    if CAUSAL:
        tile = n_tiles - 1 - tile  # the longest first
    home = (tl.program_id(0) // n_tiles).to(tl.int64)
    batch, head = home // heads, home % heads
    k_head = head // group
    scale = tl.cast(scale, tl.float32)
    rel_scale = tl.cast(rel_scale, tl.float32)
    factor = scale * LOG2_E if FOLDED else LOG2_E

    k_end, offset = entry_sizes(batch, k_len, query_offset, key_lengths_ptr, query_offsets_ptr)
    (
        index, exists, _, first, shift, low, high, start, stop, full_start, full_stop, places
    ) = query_tile(
        tile, q_len, k_end, offset, extent, group, pattern_ptr, GEOMETRY, False, BLOCK_Q
    )  # fmt: skip
    q_ptr += batch * stride_qb + head * stride_qh
    k_ptr += batch * stride_kb + k_head * stride_kh
    v_ptr += batch * stride_vb + k_head * stride_vh
    grad_out_ptr += batch * stride_gb + head * stride_gh
    q = load_rows(q_ptr, stride_qs, index, exists, DIM, BLOCK_D, True)
    grad_out = load_rows(grad_out_ptr, stride_gs, index, exists, V_DIM, BLOCK_DV, True)
    lse = load_lse(lse_ptr + home * q_len, index, exists)
    delta = tl.load(delta_ptr + home * q_len + index, mask=exists, other=0.0)
    centre = 0
    if REL != "none":
        tl.static_assert(BLOCK_Q <= BLOCK_K, "a tile's band is two chunks")
        centre = n_rows - 1 if CAUSAL else (n_rows - 1) // 2
        q_rel = q
        if q_rel_ptr is not None:
            q_rel_ptr += batch * stride_rb + head * stride_rh
            q_rel = load_rows(q_rel_ptr, stride_rs, index, exists, DIM, BLOCK_D, True)
        rel_k_ptr += head * stride_rel_kh
        last = n_rows - 1
        if REL == "clip":
            edge_low = edge_product(q_rel, rel_k_ptr, stride_rel_kr, 0, DIM, BLOCK_D)
            edge_high = edge_product(q_rel, rel_k_ptr, stride_rel_kr, last, DIM, BLOCK_D)
        if rel_v_ptr is not None:
            rel_v_ptr += head * stride_rel_vh
            if REL == "clip":
                v_edge_low = edge_product(grad_out, rel_v_ptr, stride_rel_vr, 0, V_DIM, BLOCK_DV)
                v_edge_high = edge_product(
                    grad_out, rel_v_ptr, stride_rel_vr, last, V_DIM, BLOCK_DV
                )
        previous = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
        v_previous = previous
        sheared = tl.zeros((BLOCK_Q, BLOCK_K), q.dtype)  # dS by offset, not yet complete
        in_now = in_current(shift[:, None], False, BLOCK_K)

    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    rel_acc = acc
    far_low = tl.zeros((BLOCK_Q,), tl.float32)
    far_high = tl.zeros((BLOCK_Q,), tl.float32)
    v_far_low = tl.zeros((BLOCK_Q,), tl.float32)
    v_far_high = tl.zeros((BLOCK_Q,), tl.float32)
    bounds = key_phases(
        start, stop, full_start, full_stop, first, centre, n_rows, GEOMETRY, REL, BLOCK_Q, BLOCK_K
    )
    for phase in tl.static_range(5):
        if phase_exists(phase, GEOMETRY, REL, CAUSAL):
            if phase == 2 and CARRIED:
                row = bounds[phase] - first + centre - BLOCK_K
                chunk = table_chunk(
                    rel_k_ptr, stride_rel_kr, row, n_rows, REL == "clip", DIM, BLOCK_D, BLOCK_K
                )
                previous = tl.dot(q_rel, tl.trans(chunk), input_precision=PRECISION)
                if rel_v_ptr is not None:
                    chunk = table_chunk(
                        rel_v_ptr, stride_rel_vr, row, n_rows, REL == "clip",
                        V_DIM, BLOCK_DV, BLOCK_K,
                    )  # fmt: skip
                    v_previous = tl.dot(grad_out, tl.trans(chunk), input_precision=PRECISION)
            for number in range(bounds[phase], bounds[phase + 1], BLOCK_K):
                begin, key, valid, who = step_keys(number, stop, places, extent, GEOMETRY, BLOCK_K)
                k = load_rows(
                    k_ptr, stride_ks, key, valid, DIM, BLOCK_D, phase_masked(phase, GEOMETRY, REL)
                )
                v = load_rows(
                    v_ptr,
                    stride_vs,
                    key,
                    valid,
                    V_DIM,
                    BLOCK_DV,
                    phase_masked(phase, GEOMETRY, REL),
                )
                logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_Q, BLOCK_K]
                grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
                if not FOLDED:
                    logits *= scale
                if phase == 2 and REL != "none":
                    row = begin - first + centre
                    if not CARRIED:
                        chunk = table_chunk(
                            rel_k_ptr, stride_rel_kr, row - BLOCK_K, n_rows, REL == "clip",
                            DIM, BLOCK_D, BLOCK_K,
                        )  # fmt: skip
                        previous = tl.dot(q_rel, tl.trans(chunk), input_precision=PRECISION)
                    chunk = table_chunk(
                        rel_k_ptr, stride_rel_kr, row, n_rows, REL == "clip", DIM, BLOCK_D, BLOCK_K
                    )
                    current = tl.dot(q_rel, tl.trans(chunk), input_precision=PRECISION)
                    term = band_term(previous, current, shift[:, None], False, BLOCK_Q, BLOCK_K)
                    logits += term if FOLDED else term * rel_scale
                    previous = current
                    if rel_v_ptr is not None:
                        if not CARRIED:
                            chunk = table_chunk(
                                rel_v_ptr, stride_rel_vr, row - BLOCK_K, n_rows, REL == "clip",
                                V_DIM, BLOCK_DV, BLOCK_K,
                            )  # fmt: skip
                            v_previous = tl.dot(
                                grad_out, tl.trans(chunk), input_precision=PRECISION
                            )
                        chunk = table_chunk(
                            rel_v_ptr, stride_rel_vr, row, n_rows, REL == "clip",
                            V_DIM, BLOCK_DV, BLOCK_K,
                        )  # fmt: skip
                        current = tl.dot(grad_out, tl.trans(chunk), input_precision=PRECISION)
                        grad_weights += band_term(
                            v_previous, current, shift[:, None], False, BLOCK_Q, BLOCK_K
                        )
                        v_previous = current
                if (phase == 1 or phase == 3) and REL == "clip":
                    edge = edge_low if phase == 1 else edge_high
                    logits += (edge if FOLDED else edge * rel_scale)[:, None]
                    if rel_v_ptr is not None:
                        grad_weights += (v_edge_low if phase == 1 else v_edge_high)[:, None]
                weights = tl.exp2(logits * factor - lse[:, None])
                grad_logits = weights * (grad_weights - delta[:, None])
                if phase_masked(phase, GEOMETRY, REL):
                    seen = sees(who, low, high, GEOMETRY, BLOCK_K)
                    grad_logits = tl.where(seen, grad_logits, 0.0)
                    if rel_v_ptr is not None:
                        weights = tl.where(seen, weights, 0.0)
                grads = grad_logits.to(k.dtype)
                acc = tl.dot(grads, k, acc, input_precision=PRECISION)
                if phase == 2 and REL != "none":
                    now = rotate(grads, shift[:, None], 1, False, BLOCK_Q, BLOCK_K)
                    # of the previous chunk
                    complete = tl.where(in_now, sheared if CARRIED else 0.0, now)
                    acc, rel_acc = add_chunk(
                        acc, rel_acc, complete, rel_k_ptr, stride_rel_kr, row - BLOCK_K, n_rows,
                        SEPARATE, PRECISION, DIM, BLOCK_D, BLOCK_K,
                    )  # fmt: skip
                    if not CARRIED:
                        acc, rel_acc = add_chunk(
                            acc, rel_acc, tl.where(in_now, now, 0.0), rel_k_ptr, stride_rel_kr,
                            row, n_rows, SEPARATE, PRECISION, DIM, BLOCK_D, BLOCK_K,
                        )  # fmt: skip
                    sheared = now
                    if REL == "clip":
                        if row < BLOCK_Q - 1:
                            far_low += beyond_sum(grad_logits, row, shift, n_rows, False, BLOCK_K)
                            if rel_v_ptr is not None:
                                v_far_low += beyond_sum(weights, row, shift, n_rows, False, BLOCK_K)
                        if HAS_HIGH:  # noqa: SIM102 (the other is known at run time only)
                            if row + BLOCK_K > n_rows:
                                far_high += beyond_sum(
                                    grad_logits, row, shift, n_rows, True, BLOCK_K
                                )
                                if rel_v_ptr is not None:
                                    v_far_high += beyond_sum(
                                        weights, row, shift, n_rows, True, BLOCK_K
                                    )
                if phase == 1 and REL == "clip":
                    far_low += tl.sum(grad_logits, 1)
                    if rel_v_ptr is not None:
                        v_far_low += tl.sum(weights, 1)
                if phase == 3 and REL == "clip":
                    far_high += tl.sum(grad_logits, 1)
                    if rel_v_ptr is not None:
                        v_far_high += tl.sum(weights, 1)
            if phase == 2 and CARRIED:
                # the last tile's current chunk
                steps = (bounds[3] - bounds[2] + BLOCK_K - 1) // BLOCK_K
                row = bounds[2] + (steps - 1) * BLOCK_K - first + centre
                acc, rel_acc = add_chunk(
                    acc, rel_acc, tl.where(in_now, sheared, 0.0), rel_k_ptr, stride_rel_kr,
                    row, n_rows, SEPARATE, PRECISION, DIM, BLOCK_D, BLOCK_K,
                )  # fmt: skip

    if REL == "clip":
        beyond = far_low[:, None] * edge_row(rel_k_ptr, stride_rel_kr, 0, DIM, BLOCK_D)[None, :]
        if HAS_HIGH:
            last_row = edge_row(rel_k_ptr, stride_rel_kr, n_rows - 1, DIM, BLOCK_D)
            beyond += far_high[:, None] * last_row[None, :]
        if SEPARATE:
            rel_acc += beyond
        else:
            acc += beyond
        at = far_ptr + home * q_len + index
        tl.store(at, far_low, mask=exists)
        tl.store(at + stride_far, far_high, mask=exists)
        if rel_v_ptr is not None:
            tl.store(at + 2 * stride_far, v_far_low, mask=exists)
            tl.store(at + 3 * stride_far, v_far_high, mask=exists)
    acc *= scale
    if SEPARATE:
        rel_acc *= rel_scale
        if q_rel_ptr is None:
            acc += rel_acc
        else:
            grad_q_rel_ptr += batch * stride_drb + head * stride_drh
            store_rows(grad_q_rel_ptr, stride_drs, index, exists, rel_acc, DIM, BLOCK_D)
    grad_q_ptr += batch * stride_dqb + head * stride_dqh
    store_rows(grad_q_ptr, stride_dqs, index, exists, acc, DIM, BLOCK_D)
