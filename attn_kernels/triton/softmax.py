"""The online softmax in Triton, in powers of two."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softmax_step(logits, row_max, row_sum, factor, MASKED: tl.constexpr):
    """One tile: (weights, what the sums so far are multiplied by, row_max, row_sum).

    logits * factor are in powers of two; factor > 0. A row without a key yet has a maximum of -inf:
    masked tiles pivot it at 0, which avoids inf - inf.
    """
    row_max_new = tl.maximum(row_max, tl.max(logits, 1) * factor)
    pivot = row_max_new
    if MASKED:
        pivot = tl.where(row_max_new == float("-inf"), 0.0, row_max_new)
    weights = tl.exp2(logits * factor - pivot[:, None])
    rescale = tl.exp2(row_max - pivot)
    return weights, rescale, row_max_new, row_sum * rescale + tl.sum(weights, 1)


@triton.jit
def softmax_finish(acc, row_max, row_sum):
    """(out, lse) of the sums; a row without keys has out = 0 and lse = -inf."""
    has_key = row_max != float("-inf")
    divisor = tl.where(has_key, row_sum, 1.0)
    lse = tl.where(has_key, row_max + tl.log2(divisor), float("-inf"))
    return acc / divisor[:, None], lse * LN_2
