"""A score is what is added to the logits: a sum of terms.

A term says here what it means, in plain differentiable torch, and how it travels to the kernels: as
its name, tensors, whole numbers and numbers. What a kernel makes of them is one file for each
backend; CONTRIBUTING lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

# What one of a term's tensors is, which tells how it is batched and what its gradient looks like.
QUERY = "query"  # [B, H, Lq, n]: one row for each query
TABLE = "table"  # [1 or H, ...]: the same for every entry of the batch


class Place(NamedTuple):
    """Where the pairs of a call stand: what the reference asks a term with.

    offset: j - p_i of key j and the query at p_i, [B or 1, 1, Lq, Lk].
    causal: whether the geometry shows nothing behind the query.
    scale: of the logits.
    """

    offset: Tensor
    causal: bool
    scale: float


class Parts(NamedTuple):
    """The names of a score's terms, joined by +, and what they have, one after the other."""

    names: str
    tensors: list[Tensor]
    integers: list[int]
    numbers: list[float]


class Score:
    """A sum of terms. `a + b` is the sum of both, of terms and of sums alike."""

    @property
    def terms(self) -> tuple[Term, ...]:
        raise NotImplementedError

    def __add__(self, other: Any) -> Score:
        if not isinstance(other, Score):
            return NotImplemented
        return Sum(self.terms + other.terms)

    def parts(self, scale: float) -> Parts:
        """How the score travels to the kernels."""
        names: list[str] = []
        tensors: list[Tensor] = []
        integers: list[int] = []
        numbers: list[float] = []
        for term in self.terms:
            part = term.parts(scale)
            names.append(part.names)
            tensors += part.tensors
            integers += part.integers
            numbers += part.numbers
        return Parts("+".join(names), tensors, integers, numbers)


class Term(Score):
    """One term of a score, and the score of that term alone.

    name: how the operators and the kernels call it.
    n_integers: how many whole numbers `parts` gives.
    """

    name: ClassVar[str]
    n_integers: ClassVar[int] = 0
    known: ClassVar[dict[str, type[Term]]] = {}  # every term by its name

    def __init_subclass__(cls) -> None:
        Term.known[cls.name] = cls

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self,)

    def check(self, q: Tensor, v: Tensor, geometry: Any) -> None:
        """Raise TypeError or ValueError unless the term fits such a call."""
        raise NotImplementedError

    @staticmethod
    def kinds(integers: Sequence[int]) -> tuple[str, ...]:
        """QUERY or TABLE for each of its tensors, read off the whole numbers alone."""
        raise NotImplementedError

    def products(self, dim: int, v_dim: int) -> tuple[int, int]:
        """Multiplications for each visible pair, forward and backward: what explain() counts."""
        return 0, 0

    def logits(self, q: Tensor, place: Place) -> Tensor:
        """What is added to the logits, [B, H, Lq, Lk]."""
        raise NotImplementedError

    def values(self, weights: Tensor, place: Place) -> Tensor | None:
        """What is added to the output for these weights, [B, H, Lq, Dv], or None."""
        return None


@dataclass(frozen=True, eq=False)
class Sum(Score):
    """The score of several terms."""

    parts_of_sum: tuple[Term, ...]

    @property
    def terms(self) -> tuple[Term, ...]:
        return self.parts_of_sum
