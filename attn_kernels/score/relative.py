"""Relative positions: a learned vector for every distance between query and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.checks import check_dense, check_like_q, check_number, check_table
from .base import QUERY, TABLE, Parts, Place, Term
from .tables import BY_GEOMETRY, check_rows, gathered, rows_at

CLIP, HAS_VALUES, HAS_QUERY = 1, 2, 4  # the bits of the term's first whole number


@dataclass(frozen=True, eq=False)
class Relative(Term):
    """Relative positions: score_ij = rel_scale * (q_rel_i . rel_k[h, row(j - p_i)]).

    Under a causal geometry the last of the R rows is distance 0, row(o) = R - 1 + o; otherwise R is
    odd and the centre row is distance 0, row(o) = (R - 1) / 2 + o. An offset beyond the table uses
    the nearest row (beyond="clip") or adds nothing (beyond="zero").

    Args:
        rel_k: [1 or H, R, D], one table for all heads or one for each.
        rel_v: [1 or H, R, Dv]; adds sum_j p_ij rel_v[h, row(j - p_i)] to out_i.
        q_rel: [B, H, Lq, D], the query of this term; default q.
        rel_scale: finite; default the scale of the logits.
        zero_row: the row of distance 0, where it is neither the last nor the centre.
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
    zero_row: int | None = None
    name: ClassVar[str] = "relative"
    n_integers: ClassVar[int] = 2

    def check(self, q: Tensor, v: Tensor, geometry: Any) -> None:
        if self.rel_scale is not None:
            check_number("rel_scale", self.rel_scale)
        if geometry.two_dimensional:
            raise NotImplementedError(
                "score: two-dimensional relative terms do not exist yet, got one"
            )
        check_table("rel_k", self.rel_k, q, q.shape[3])
        n_rows = self.rel_k.shape[1]
        check_rows("rel_k", n_rows, self.beyond, self.zero_row, geometry.causal)
        if self.rel_v is not None:
            check_table("rel_v", self.rel_v, q, v.shape[3])
            if self.rel_v.shape[1] != n_rows:
                raise ValueError(
                    f"rel_v must have {n_rows} rows like rel_k, got {self.rel_v.shape[1]}"
                )
        if self.q_rel is not None:
            check_dense("q_rel", self.q_rel)
            if self.q_rel.shape != q.shape:
                raise ValueError(
                    f"q_rel must have shape {list(q.shape)} like q, got {list(self.q_rel.shape)}"
                )
            check_like_q("q_rel", self.q_rel, q)

    def parts(self, scale: float) -> Parts:
        flags = CLIP if self.beyond == "clip" else 0
        tensors = [self.rel_k]
        if self.rel_v is not None:
            flags |= HAS_VALUES
            tensors.append(self.rel_v)
        if self.q_rel is not None:
            flags |= HAS_QUERY
            tensors.append(self.q_rel)
        rel_scale = scale if self.rel_scale is None else float(self.rel_scale)
        zero_row = BY_GEOMETRY if self.zero_row is None else self.zero_row
        return Parts("relative", tensors, [flags, zero_row], [rel_scale])

    @staticmethod
    def kinds(integers: Sequence[int]) -> tuple[str, ...]:
        flags, _ = integers
        tables = (TABLE, TABLE) if flags & HAS_VALUES else (TABLE,)
        return (*tables, QUERY) if flags & HAS_QUERY else tables

    def products(self, dim: int, v_dim: int) -> tuple[int, int]:
        if self.rel_v is None:
            return dim, 3 * dim
        return dim + v_dim, 3 * dim + 2 * v_dim

    def rows(self, offset: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """The table row of each offset j - p_i, clipped, and whether the table reaches it."""
        return rows_at(offset, self.rel_k.shape[1], self.beyond, self.zero_row, causal)

    def logits(self, q: Tensor, place: Place) -> Tensor:
        q_rel = q if self.q_rel is None else self.q_rel.to(q.dtype)
        by_row = q_rel @ self.rel_k.to(q.dtype).mT  # [B, H, Lq, R]
        scale = place.scale if self.rel_scale is None else self.rel_scale
        return gathered(by_row, *self.rows(place.offset, place.causal)) * scale

    def values(self, weights: Tensor, place: Place) -> Tensor | None:
        if self.rel_v is None:
            return None
        row, used = self.rows(place.offset, place.causal)
        by_row = weights.new_zeros(*weights.shape[:-1], self.rel_v.shape[1])
        by_row = by_row.scatter_add(-1, row.expand_as(weights), torch.where(used, weights, 0))
        return by_row @ self.rel_v.to(weights.dtype)
