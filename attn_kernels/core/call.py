"""One call of attention() as the operators carry it: the only place that lists its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..score.base import Term

SCHEMA = (
    "Tensor q, Tensor k, Tensor v, Tensor[] terms, Tensor? key_lengths, Tensor? query_offsets,"
    " Tensor? table, SymInt query_offset, str names, SymInt[] integers, float[] numbers"
)
ENTRIES = ("key_lengths", "query_offsets")  # one number per batch entry
N_TENSORS = 7  # the fields that are tensors, or a list of them, come first


class Call(NamedTuple):
    """The arguments that both operators share, in the order of their schema.

    names: the backend, the geometry and the score's terms, such as "cpu causal relative": terms are
    joined by +. `terms` holds the tensors of all terms and `table` what of a geometry does not fit
    in numbers. `integers` are the geometry's, then each term's; `numbers` are the scale of the
    logits, then each term's. One string and two lists, because the dispatcher takes as long for
    each of them as for three tensors.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    terms: Sequence[Tensor]
    key_lengths: Tensor | None
    query_offsets: Tensor | None
    table: Tensor | None
    query_offset: int
    names: str
    integers: Sequence[int]
    numbers: Sequence[float]

    @property
    def backend(self) -> str:
        return self.names.split(" ")[0]

    @property
    def geometry(self) -> str:
        return self.names.split(" ")[1]

    @property
    def score(self) -> list[type[Term]]:
        """The kinds of terms, in order."""
        return [Term.known[name] for name in self.names.split(" ")[2].split("+") if name]

    @property
    def extent(self) -> tuple[int, ...]:
        """The geometry's integers."""
        return tuple(self.integers[: len(self.integers) - self.n_term_integers])

    @property
    def n_term_integers(self) -> int:
        return sum(term.n_integers for term in self.score)

    @property
    def scale(self) -> float:
        return self.numbers[0]

    def kinds(self) -> list[str]:
        """QUERY or TABLE for each of the terms' tensors."""
        kinds: list[str] = []
        first = len(self.integers) - self.n_term_integers
        for term in self.score:
            kinds += term.kinds(self.integers[first : first + term.n_integers])
            first += term.n_integers
        return kinds
