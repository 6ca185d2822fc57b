"""Causal attention: query i attends to keys 0..i, or to the last `window` of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .core.attention import attention
from .core.geometry import Causal


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, **options: Any):
    """softmax(scale * q k^T + mask) v, with mask_ij = 0 if p_i - window < j <= p_i else -inf.

    Args:
        q, k, v: [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv].
        window: how many keys a query sees, itself included; None is all of them.
        options: scale, key_lengths, query_offset, return_lse, backend, as for `attention`.
    Returns:
        [B, H, Lq, Dv] in q's dtype.
    """
    return attention(q, k, v, Causal(window), **options)
