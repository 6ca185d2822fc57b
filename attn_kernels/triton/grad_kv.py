"""Backward of attention in Triton, with keys at home: grad_k and grad_v.

    dV = P^T dO          dK = dS^T Q

Tiles are transposed, [keys, queries], so that P^T and dS^T are left operands as they come.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward import load_sums
from .forward import NO_SPECIALIZATION, entry_sizes, heads_of, load_step
from .geometry import (
    PATTERN_TILE,
    bit,
    block_box,
    block_queries,
    block_steps,
    blocks_across,
    box_position,
    clamp,
    has_low,
    is_canvas,
    key_cell,
    pattern_entry,
    pattern_line,
    pattern_words,
    queries_of,
    query_range,
    seen_within,
)
from .score import band_whole, load_rows, store_rows
from .softmax import LOG2_E


@triton.constexpr_function
def query_phase_exists(phase, geometry, rel, causal, dense):
    """Phases of query_phases that may hold queries."""
    if rel != "none":
        return phase == 0 or (geometry != "pattern" and (phase == 1 or (phase == 3 and not causal)))
    if is_canvas(geometry):  # whole steps
        return phase == (2 if dense else 4)
    if phase == 0:
        return geometry not in ("full", "pattern")
    return phase in (2, 4)


@triton.constexpr_function
def query_phase_masked(phase, geometry, rel):
    """Phases of query_phases whose steps may hold rows that are no queries of theirs."""
    if rel == "none":
        return phase in (0, 4) or is_canvas(geometry)
    return phase != 3 or geometry != "full"


@triton.constexpr_function
def query_side(phase, rel):
    """Which sort of lse and delta a phase of query_phases takes."""
    return {1: 1, 3: 2}.get(phase, 0) if rel == "clip" else 0


@triton.constexpr_function
def spans_cut(phase, geometry, rel):
    """Whether queries of the phase may see a part of the keys.

    Queries that do not exist have weight 0, and gradients of keys that do not exist are dropped:
    neither is masked here.
    """
    if geometry in ("full", "causal"):
        return geometry == "causal" and phase == 0
    if is_canvas(geometry):
        return phase == 4
    return rel != "none" or query_phase_masked(phase, geometry, rel)


@triton.jit
def query_phases(
    start, stop, full_start, full_stop, key_start, offset, centre, n_rows,
    GEOMETRY: tl.constexpr, CAUSAL: tl.constexpr, REL: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Cuts the queries [start, stop) in whole steps of BLOCK_Q where the loop's body changes; the
    last step may end beyond stop, and phases behind it are empty.

    Without a table: 0 masked | 2 all pairs visible | 4 masked. With one, phases differ in its
    reach: 0 within | 1 far below | 3 far above; the band first, see forward.py.
    """
    if REL == "none":
        steps = (tl.maximum(tl.minimum(full_start, stop) - start, 0) + BLOCK_Q - 1) // BLOCK_Q
        begin = start + steps * BLOCK_Q
        full = tl.maximum(tl.minimum(full_stop, stop) - begin, 0) // BLOCK_Q * BLOCK_Q
        return start, begin, begin, begin + full, begin + full, stop
    elif GEOMETRY == "pattern":
        return start, stop, stop, stop, stop, stop
    else:
        # queries before high_stop are beyond the table's last row for every key of the tile, and
        # those from low_start on beyond its first
        high_end = start
        if not CAUSAL:
            high_stop = key_start + centre - n_rows + 1 - offset
            far = tl.minimum(tl.maximum(high_stop - start, 0), stop - start).to(tl.int32)
            high_end = start + far // BLOCK_Q * BLOCK_Q
        low_start = key_start + centre + BLOCK_K - offset
        near = tl.minimum(tl.maximum(low_start - start, 0), stop - start).to(tl.int32)
        low_begin = start + (near + BLOCK_Q - 1) // BLOCK_Q * BLOCK_Q
        return high_end, tl.maximum(low_begin, high_end), stop, start, high_end, high_end


@triton.jit
def block_tiles(
    key_start, offset, q_len, extent, table_ptr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr
):
    """(address of the first tile of a pattern's keys, start, stop, full_start, full_stop): queries
    are numbered tile by tile, those that see all keys first."""
    tl.static_assert(PATTERN_TILE % BLOCK_Q == 0, "a step of queries lies in one tile")
    tl.static_assert(PATTERN_TILE % BLOCK_K == 0, "a tile of keys lies in one tile")
    rows, cols = extent
    n_groups = (rows + PATTERN_TILE - 1) // PATTERN_TILE
    line = n_groups + key_start // PATTERN_TILE
    entries, n_full, n_tiles = pattern_line(table_ptr, line, key_start < cols)
    # other calls have parts of tiles
    n_full = tl.where((offset == 0) & (q_len == rows), n_full, 0)
    return entries, 0, n_tiles * PATTERN_TILE, 0, n_full * PATTERN_TILE


@triton.jit(do_not_specialize=NO_SPECIALIZATION)
def grad_kv_kernel(
    q_ptr, k_ptr, v_ptr, rel_k_ptr, rel_v_ptr, q_rel_ptr, key_lengths_ptr, query_offsets_ptr,
    pattern_ptr, grad_out_ptr, lse_ptr, delta_ptr, q_rows, grad_out_rows,
    grad_k_ptr, grad_v_ptr,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh,
    stride_vs, stride_rb, stride_rh, stride_rs, stride_gb, stride_gh, stride_gs, stride_dkb,
    stride_dkh, stride_dks, stride_dvb, stride_dvh, stride_dvs, stride_rel_kh, stride_rel_vh,
    stride_sums, sum_rows, room, heads, group, q_len, k_len, query_offset, extent, n_tiles, n_rows,
    scale, rel_scale,
    DIM: tl.constexpr, V_DIM: tl.constexpr, GEOMETRY: tl.constexpr, REL: tl.constexpr,
    CAUSAL: tl.constexpr, FOLDED: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr,
    PITCH_K: tl.constexpr, PITCH_V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One tile of keys against the queries that see it, of all heads of the group.

    lse_ptr, delta_ptr, sum_rows, room: see prepare_kernel. PITCH_K, PITCH_V: see forward.py.
    q_rows, grad_out_rows: descriptors of queries and grad_out, tiles [1, 1, BLOCK_Q, *]; or None.
    DENSE: on a canvas, where a step's queries are of one block, all of them see all keys.
    """
    tile = tl.program_id(0) % n_tiles
    batch, k_head, _ = heads_of(tl.program_id(0) // n_tiles, heads // group, 1)
    scale = tl.cast(scale, tl.float32)
    rel_scale = tl.cast(rel_scale, tl.float32)
    factor = scale * LOG2_E if FOLDED else LOG2_E
    k_end, offset = entry_sizes(batch, k_len, query_offset, key_lengths_ptr, query_offsets_ptr)

    key_start = tile * BLOCK_K
    if is_canvas(GEOMETRY):
        own, part, blocks = key_cell(tile, k_len, extent, GEOMETRY, BLOCK_K)
        cell_key = part + tl.arange(0, BLOCK_K)
        key = box_position(cell_key, own, extent[1])
        key_row, key_col = key // extent[1], key % extent[1]
        in_tile = cell_key < own[3]
        start = 0
        stop = tl.where(part < own[3], blocks[3] * block_steps(extent, BLOCK_Q) * BLOCK_Q, 0)
        full_start = 0
        full_stop = stop if DENSE else 0
    else:
        key = key_start + tl.arange(0, BLOCK_K)
        in_tile = key < k_len
        if GEOMETRY == "pattern":
            entries, start, stop, full_start, full_stop = block_tiles(
                key_start, offset, q_len, extent, pattern_ptr, BLOCK_Q, BLOCK_K
            )
        else:
            key_stop = tl.minimum(key_start + BLOCK_K, k_end)
            start, stop, full_start, full_stop = query_range(
                key_start, key_stop, offset, q_len, extent, GEOMETRY
            )
            start = start // 16 * 16  # then lse and delta are loaded as vectors
            seen_from, seen_to = queries_of(
                key_start, tl.arange(0, BLOCK_K), offset, q_len, extent, GEOMETRY
            )
        stop = tl.where(key_start < k_end, stop, start)
    exists = in_tile & (key < k_end)
    wanted = exists
    if not (is_canvas(GEOMETRY) or GEOMETRY == "pattern"):
        wanted = exists & (seen_from < seen_to)  # what nobody sees may hold NaN
    k_ptr += batch * stride_kb + k_head * stride_kh
    v_ptr += batch * stride_vb + k_head * stride_vh
    k = load_rows(k_ptr, stride_ks, key, wanted, DIM, BLOCK_D, True)  # [BLOCK_K, BLOCK_D]
    v = load_rows(v_ptr, stride_vs, key, wanted, V_DIM, BLOCK_DV, True)
    centre = 0
    if REL != "none":
        tl.static_assert(BLOCK_Q <= BLOCK_K, "a tile's band is two chunks")
        centre = n_rows - 1 if CAUSAL else (n_rows - 1) // 2
    bounds = query_phases(
        start, stop, full_start, full_stop, key_start, offset, centre, n_rows,
        GEOMETRY, CAUSAL, REL, BLOCK_Q, BLOCK_K,
    )  # fmt: skip

    if REL != "none":  # of query 0; where it is cut off there is no band
        row_0 = clamp(key_start - offset + centre, -(1 << 30), 1 << 30).to(tl.int32)
    grad_k = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    grad_v = tl.zeros((BLOCK_K, BLOCK_DV), tl.float32)
    shift = tl.arange(0, BLOCK_Q)
    for member in range(group):
        head = k_head * group + member
        sums = (batch * heads + head) * sum_rows
        q_head = q_ptr + batch * stride_qb + head * stride_qh
        grad_out_head = grad_out_ptr + batch * stride_gb + head * stride_gh
        if REL != "none":
            rel_k_head = rel_k_ptr + head * stride_rel_kh
            if rel_v_ptr is not None:
                rel_v_head = rel_v_ptr + head * stride_rel_vh
        for phase in tl.static_range(5):
            if query_phase_exists(phase, GEOMETRY, REL, CAUSAL, DENSE):
                for number in range(bounds[phase], bounds[phase + 1], BLOCK_Q):
                    numbers = number + shift
                    index = numbers
                    valid = numbers < stop
                    if is_canvas(GEOMETRY):
                        row, col, lane = block_queries(number, blocks, extent, BLOCK_Q)
                        box = block_box(row, col, extent)
                        index = box_position(lane + shift, box, extent[1])
                        valid = lane + shift < box[3]
                    first = offset + number
                    if GEOMETRY == "pattern":
                        group_id, place, lane = pattern_entry(entries, number)
                        first = group_id * PATTERN_TILE + lane
                        index = (first - offset).to(tl.int32) + shift
                        valid = (index >= 0) & (index < q_len)
                    entry = index  # of lse and delta
                    if is_canvas(GEOMETRY):
                        block = row * blocks_across(extent) + col
                        entry = (block * room + lane) // 16 * 16 + shift
                    q = load_step(
                        q_rows, batch, head, number, q_head, stride_qs, index, valid, DIM, BLOCK_D,
                        BLOCK_Q, query_phase_masked(phase, GEOMETRY, REL),
                    )  # fmt: skip
                    grad_out = load_step(
                        grad_out_rows, batch, head, number, grad_out_head, stride_gs, index, valid,
                        V_DIM, BLOCK_DV, BLOCK_Q, query_phase_masked(phase, GEOMETRY, REL),
                    )  # fmt: skip
                    lse, delta = load_sums(
                        lse_ptr, delta_ptr, stride_sums, sums, entry, valid,
                        query_side(phase, REL), rel_v_ptr is not None,
                        GEOMETRY == "pattern" and query_phase_masked(phase, GEOMETRY, REL),
                    )  # fmt: skip
                    # dP is first, but behind a band, whose products are then no more
                    if phase != 0 or REL == "none":
                        grad_weights = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
                    logits = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [BLOCK_K, BLOCK_Q]
                    if not FOLDED:
                        logits *= scale
                    if phase == 0 and REL != "none":
                        row = row_0 - number
                        if GEOMETRY == "pattern":
                            row = (key_start - first + centre).to(tl.int32)
                        q_rel = q
                        if q_rel_ptr is not None:
                            q_rel = load_rows(
                                q_rel_ptr + batch * stride_rb + head * stride_rh, stride_rs,
                                index, valid, DIM, BLOCK_D,
                                query_phase_masked(phase, GEOMETRY, REL),
                            )  # fmt: skip
                        term = band_whole(
                            q_rel, rel_k_head, PITCH_K, row, n_rows, shift, REL == "clip",
                            True, PRECISION, DIM, BLOCK_Q, BLOCK_K, BLOCK_D,
                        )  # fmt: skip
                        logits += term if FOLDED else term * rel_scale
                        grad_weights = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
                        if rel_v_ptr is not None:
                            grad_weights += band_whole(
                                grad_out, rel_v_head, PITCH_V, row, n_rows, shift,
                                REL == "clip", True, PRECISION, V_DIM, BLOCK_Q, BLOCK_K, BLOCK_DV,
                            )  # fmt: skip
                    weights = tl.exp2(logits * factor - lse[None, :])
                    if spans_cut(phase, GEOMETRY, REL):
                        if GEOMETRY == "pattern":
                            word = pattern_words(pattern_ptr, place, key % PATTERN_TILE)
                            seen = bit(word[:, None], (shift + lane)[None, :])
                            seen = seen & valid[None, :] & exists[:, None]
                        elif is_canvas(GEOMETRY):
                            begin = seen_within(box, key_row, key_col, extent, GEOMETRY) - lane
                            seen = shift[None, :] >= begin[:, None]
                        else:
                            seen = shift[None, :] >= (seen_from - number)[:, None]
                            if has_low(GEOMETRY):
                                seen = seen & (shift[None, :] < (seen_to - number)[:, None])
                        weights = tl.where(seen, weights, 0.0)
                    grad_logits = weights * (grad_weights - delta[None, :])
                    if GEOMETRY == "pattern" and spans_cut(phase, GEOMETRY, REL):
                        grad_logits = tl.where(seen, grad_logits, 0.0)  # a key may be nobody's
                    grad_v = tl.dot(
                        weights.to(v.dtype), grad_out, grad_v, input_precision=PRECISION
                    )
                    grad_k = tl.dot(grad_logits.to(k.dtype), q, grad_k, input_precision=PRECISION)

    # keys that do not exist for this entry have gradients too, and nobody sees them
    grad_k = tl.where(exists[:, None], grad_k * scale, 0.0)
    grad_v = tl.where(exists[:, None], grad_v, 0.0)
    grad_k_ptr += batch * stride_dkb + k_head * stride_dkh
    grad_v_ptr += batch * stride_dvb + k_head * stride_dvh
    store_rows(grad_k_ptr, stride_dks, key, in_tile, grad_k, DIM, BLOCK_D)
    store_rows(grad_v_ptr, stride_dvs, key, in_tile, grad_v, V_DIM, BLOCK_DV)
