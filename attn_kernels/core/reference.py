"""The dense oracle: any geometry, score and dtype, in a page of plain torch. It defines "correct".

    out_i = sum_j softmax_j(s_ij) v_j          over the keys j that query i may see
    s_ij  = scale * (q_i . k_j) + score_ij
    lse_i = log sum_j exp(s_ij)

Differentiable by autograd, any number of times. Memory is O(Lq * Lk).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..score.base import Place, Score
from .geometry import FARTHEST, Geometry

# MKL picks the code of exp and of log in a function's first call. Where that call comes from two
# threads at once, one of them may get the code of low accuracy, 1.5e-4 off (one process in ten with
# torch 2.13; https://github.com/pytorch/pytorch/issues/188792). So one thread calls them first.
for _dtype in (torch.float32, torch.float64):
    torch.ones(1, dtype=_dtype, device="cpu").exp().log()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    geometry: Geometry,
    score: Score | None,
    scale: float,
    key_lengths: Tensor | None,
    query_offset: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Return out [B, H, Lq, Dv] in q's dtype and lse [B, H, Lq] (float32, or float64)."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads, groups = q.shape[1], q.shape[1] // max(k.shape[1], 1)
    visible, offset = visible_keys(q, k, geometry, key_lengths, query_offset)
    has_key = visible.any(-1)

    # A key or value that nobody sees may hold anything: it must not reach a product.
    seen = visible.any(-2).unsqueeze(-1)
    k, v = (torch.where(seen, x, 0).repeat_interleave(groups, 1).to(dtype) for x in (k, v))
    out_dtype, q = q.dtype, q.to(dtype)

    terms, place = () if score is None else score.terms, Place(offset, geometry.causal, scale)
    logits = scale * (q @ k.mT)
    for term in terms:
        logits = logits + term.logits(q, place)
    logits = logits.masked_fill(~visible, -torch.inf)
    # softmax and logsumexp of a row without keys would be NaN, forward and backward.
    lse = torch.logsumexp(logits.masked_fill(~has_key.unsqueeze(-1), 0), -1)
    weights = torch.where(visible, torch.exp(logits - lse.unsqueeze(-1)), 0)
    out = weights @ v
    for term in terms:
        added = term.values(weights, place)
        if added is not None:
            out = out + added
    has_key = has_key.expand(q.shape[0], heads, -1)
    return out.to(out_dtype), lse.masked_fill(~has_key, -torch.inf)


def visible_keys(
    q: Tensor,
    k: Tensor,
    geometry: Geometry,
    key_lengths: Tensor | None,
    query_offset: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Which pairs attend, and their offsets j - p_i: both [B or 1, 1, Lq, Lk]."""
    q_pos = torch.arange(q.shape[2], device=q.device).view(1, 1, -1, 1)
    k_pos = torch.arange(k.shape[2], device=q.device).view(1, 1, 1, -1)
    if isinstance(query_offset, Tensor):
        query_offset = query_offset.to(torch.int64).clamp(-FARTHEST, FARTHEST).view(-1, 1, 1, 1)
    q_pos = q_pos + query_offset
    visible = geometry.visible(q_pos, k_pos)
    if key_lengths is not None:
        visible = visible & (k_pos < key_lengths.view(-1, 1, 1, 1))
    return visible, k_pos - q_pos
