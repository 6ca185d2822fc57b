"""A learned or fixed number for every distance between query and key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.checks import check_dense, check_like_q
from ..core.geometry import check_count
from .base import TABLE, Parts, Place, Term
from .tables import BY_GEOMETRY, check_rows, gathered, rows_at


@dataclass(frozen=True, eq=False)
class Bias(Term):
    """A number by distance, added to the logits as it is: score_ij = table[h, row(j - p_i)].

    Under a geometry that shows nothing behind the query the last of the R rows is distance 0,
    row(o) = R - 1 + o; otherwise R is odd and the centre row is distance 0. An offset beyond the
    table uses the nearest row (beyond="clip") or adds nothing (beyond="zero").

    Args:
        table: [1 or H, R], the same for all heads or one row of numbers for each.
        beyond: "clip" or "zero".
        zero_row: the row of distance 0, where it is neither the last nor the centre.
    Example:
        >>> q = torch.randn(1, 8, 100, 64)
        >>> attention(q, q, q, Causal(), Bias.alibi(8, 100)).shape
        torch.Size([1, 8, 100, 64])
    """

    table: Tensor
    beyond: str = "clip"
    zero_row: int | None = None
    name: ClassVar[str] = "bias"
    n_integers: ClassVar[int] = 2

    @classmethod
    def t5(
        cls,
        weight: Tensor,
        *,
        causal: bool = False,
        max_distance: int = 128,
        length: int | None = None,
    ) -> Bias:
        """T5's buckets of distances, as a table that `weight` has its gradient through.

        Args:
            weight: [buckets, heads], as in Hugging Face's `relative_attention_bias.weight`.
            causal: of a decoder, whose buckets are all for keys before the query.
            max_distance: from which on there is one bucket.
            length: of the sequence, where that is shorter than max_distance.
        """
        check_dense("weight", weight)
        if weight.dim() != 2:
            raise ValueError(f"weight must have shape [buckets, heads], got {list(weight.shape)}")
        check_count("Bias.t5", "max_distance", max_distance, 1)
        farthest = max_distance if length is None else length - 1
        check_count("Bias.t5", "length", farthest + 1, 1)
        last = 0 if causal else farthest
        offset = torch.arange(-farthest, last + 1, device=weight.device)
        return cls(weight[t5_buckets(offset, weight.shape[0], causal, max_distance)].T)

    @classmethod
    def alibi(cls, heads: int, length: int, *, causal: bool = True) -> Bias:
        """ALiBi: minus a slope of each head times the distance; distances of `length` and more do
        not exist.

        Args:
            heads: as many slopes.
            length: of the sequence.
            causal: a row for every distance to a key before the query, or to either side.
        """
        check_count("Bias.alibi", "heads", heads, 1)
        check_count("Bias.alibi", "length", length, 1)
        distance = torch.arange(1 - length, 1 if causal else length).abs()
        return cls(-torch.tensor(alibi_slopes(heads)).unsqueeze(1) * distance)

    def check(self, q: Tensor, v: Tensor, geometry: Any) -> None:
        check_dense("table", self.table)
        heads = q.shape[1]
        if self.table.dim() != 2 or (self.table.shape[0] != 1 and self.table.shape[0] != heads):
            raise ValueError(
                f"table must have shape [1 or {heads}, rows], got {list(self.table.shape)}"
            )
        if self.table.shape[1] == 0:
            raise ValueError("table must have at least one row, got 0")
        if geometry.two_dimensional:
            raise NotImplementedError("score: Bias is for one dimension, got a canvas")
        check_rows("table", self.table.shape[1], self.beyond, self.zero_row, geometry.causal)
        check_like_q("table", self.table, q)

    def parts(self, scale: float) -> Parts:
        zero_row = BY_GEOMETRY if self.zero_row is None else self.zero_row
        return Parts("bias", [self.table], [int(self.beyond == "clip"), zero_row], [])

    @staticmethod
    def kinds(integers: Sequence[int]) -> tuple[str, ...]:
        return (TABLE,)

    def logits(self, q: Tensor, place: Place) -> Tensor:
        row, used = rows_at(
            place.offset, self.table.shape[1], self.beyond, self.zero_row, place.causal
        )
        return gathered(self.table.to(q.dtype)[None, :, None], row, used)


def t5_buckets(offset: Tensor, buckets: int, causal: bool, max_distance: int) -> Tensor:
    """The bucket of each offset j - p_i, by the arithmetic of Hugging Face, which is in float32."""
    first = torch.zeros_like(offset)
    if causal:
        distance = (-offset).clamp(min=0)
    else:
        buckets //= 2
        first = (offset > 0).long() * buckets
        distance = offset.abs()
    exact = buckets // 2
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = exact + (far * (buckets - exact)).to(torch.int64)
    return first + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


def alibi_slopes(heads: int) -> list[float]:
    """The paper's slopes: a geometric sequence; between powers of two, every other one of twice as
    many heads fills up."""
    power = 1 << heads.bit_length() - 1
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    more = [2.0 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (heads - power), 2)]
    return slopes + more
