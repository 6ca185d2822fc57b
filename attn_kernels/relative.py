"""Relative attention: a learned vector for every distance between query and key."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .core.attention import attention
from .core.geometry import Causal, Full
from .core.validate import check_window
from .score.relative import Relative


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_k: Tensor,
    *,
    rel_v: Tensor | None = None,
    q_rel: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    beyond: str = "clip",
    rel_scale: float | None = None,
    **options: Any,
):
    """out_i = sum_j softmax_j(scale * q_i . k_j + rel_scale * q_rel_i . rel_k[row(j - p_i)]) v_j.

    Music Transformer (causal, one row per distance), Shaw et al. (rel_v, beyond="clip"),
    Transformer-XL and Conformer (q = q + u, q_rel = q + v).

    Args:
        q, k, v: [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv].
        rel_k: [1 or H, R, D]. Causal: the last row is distance 0. Otherwise R is odd and the centre
            row is distance 0.
        rel_v: [1 or H, R, Dv]; adds sum_j p_ij rel_v[row(j - p_i)] to out_i.
        q_rel: [B, H, Lq, D]; default q.
        window: how many keys a query sees, itself included; needs causal.
        beyond: offsets beyond the table use the nearest row ("clip") or add nothing ("zero").
        rel_scale: default scale.
        options: scale, key_lengths, query_offset, return_lse, backend, as for `attention`.
    Returns:
        [B, H, Lq, Dv] in q's dtype.
    """
    check_window(causal, window)
    geometry = Causal(window) if causal else Full()
    return attention(q, k, v, geometry, Relative(rel_k, rel_v, q_rel, beyond, rel_scale), **options)
