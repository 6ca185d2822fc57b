"""Scores: what is added to the logits, and to the output, in plain differentiable torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BEYOND = ("clip", "zero")


@dataclass(frozen=True, eq=False)
class Relative:
    """Relative positions: score_ij = rel_scale * (q_rel_i . rel_k[h, row(j - p_i)]).

    Under a causal geometry the last of the R rows is distance 0, row(o) = R - 1 + o; otherwise R is
    odd and the centre row is distance 0, row(o) = (R - 1) / 2 + o. An offset beyond the table uses
    the nearest row (beyond="clip") or adds nothing (beyond="zero").

    Args:
        rel_k: [1 or H, R, D], one table for all heads or one for each.
        rel_v: [1 or H, R, Dv]; adds sum_j p_ij rel_v[h, row(j - p_i)] to out_i.
        q_rel: [B, H, Lq, D], the query of this term; default q.
        rel_scale: finite; default the scale of the logits.
    Example:
        >>> q, k, v = (torch.randn(2, 8, 100, 64) for _ in range(3))
        >>> table = torch.randn(1, 33, 64)  # for all heads; the centre row is distance 0
        >>> attention(q, k, v, Local1d(16, 16, 16, causal=False), Relative(table)).shape
        torch.Size([2, 8, 100, 64])
    """

    rel_k: Tensor
    rel_v: Tensor | None = None
    q_rel: Tensor | None = None
    beyond: str = "clip"
    rel_scale: float | None = None

    def rows(self, offset: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """The table row of each offset j - p_i, clipped, and whether the table reaches it."""
        n_rows = self.rel_k.shape[1]
        row = offset + (n_rows - 1 if causal else (n_rows - 1) // 2)
        inside = (row >= 0) & (row < n_rows)
        used = torch.ones_like(inside) if self.beyond == "clip" else inside
        return row.clamp(0, n_rows - 1), used

    def term(self, q: Tensor, offset: Tensor, causal: bool, scale: float) -> Tensor:
        """The score term, [B, H, Lq, Lk]; offset is [B or 1, 1, Lq, Lk]."""
        row, used = self.rows(offset, causal)
        q_rel = q if self.q_rel is None else self.q_rel.to(q.dtype)
        by_row = q_rel @ self.rel_k.to(q.dtype).mT  # [B, H, Lq, R]
        term = by_row.gather(-1, row.expand(*by_row.shape[:2], -1, -1))
        return torch.where(used, term, 0) * (scale if self.rel_scale is None else self.rel_scale)

    def value_term(self, weights: Tensor, offset: Tensor, causal: bool) -> Tensor:
        """sum_j p_ij rel_v[h, row(j - p_i)], [B, H, Lq, Dv]."""
        assert self.rel_v is not None
        row, used = self.rows(offset, causal)
        by_row = weights.new_zeros(*weights.shape[:-1], self.rel_v.shape[1])
        by_row = by_row.scatter_add(-1, row.expand_as(weights), torch.where(used, weights, 0))
        return by_row @ self.rel_v.to(weights.dtype)
