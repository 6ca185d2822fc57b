"""Relative attention against the skewing compositions that models use today."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_kernels import Causal, Full, causal_attention, relative_attention

from .case import Call, Case, Inputs, Peer, Shape
from .peers import compile_flex, visible_mask


@dataclass(frozen=True)
class RelativeShape(Shape):
    """A table of `rows` relative positions for each head; 0 rows: one for every distance."""

    rows: int = 0
    causal: bool = True
    own_query: bool = False  # a query of its own for the relative term (Transformer-XL, Conformer)

    @property
    def geometry(self) -> Causal | Full:
        """Causal or bidirectional."""
        return Causal() if self.causal else Full()

    @property
    def table_rows(self) -> int:
        """Rows of the table."""
        return self.rows or (self.q_len if self.causal else 2 * self.q_len - 1)

    @property
    def label(self) -> str:
        """Sizes and rows, and what is special."""
        kind = "" if self.causal else " bidirectional"
        return f"{super().label} table {self.table_rows}{kind}{' q_rel' * self.own_query}"

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """q, k, v, the table, and the second query if there is one."""
        sizes = super().sizes()
        sizes["rel_k"] = (self.heads, self.table_rows, self.dim)
        if self.own_query:
            sizes["q_rel"] = sizes["q"]
        return sizes


def ours(shape: RelativeShape, dtype: torch.dtype) -> Call:
    """The library's own function."""
    causal = shape.causal

    def call(x: Inputs) -> Tensor:
        q_rel = getattr(x, "q_rel", None)
        return relative_attention(x.q, x.k, x.v, x.rel_k, q_rel=q_rel, causal=causal)

    return call


def skewed_term(shape: RelativeShape, x: Inputs) -> Tensor:
    """q_rel . rel_k[row(j - i)], [B, H, L, L].

    The skewing of Huang et al. 2018 if causal (above the diagonal it holds anything), else the
    rel_shift of Dai et al. 2019.
    """
    q_rel = getattr(x, "q_rel", x.q) * shape.dim**-0.5
    batch, heads, length, _ = q_rel.shape
    table = x.rel_k
    wanted = length if shape.causal else 2 * length - 1
    if table.shape[1] < wanted:  # distances beyond the table use its nearest row
        first = torch.arange(wanted) - (wanted - table.shape[1]) // (1 if shape.causal else 2)
        table = table[:, first.clamp(0, table.shape[1] - 1)]
    by_row = q_rel @ table.mT  # [B, H, L, wanted]
    padded = F.pad(by_row, (1, 0)).view(batch, heads, wanted + 1, length)
    return padded[:, :, 1:].reshape(batch, heads, length, wanted)[..., :length]


def skew_sdpa(shape: RelativeShape, dtype: torch.dtype) -> Call:
    """The skewed term as the float mask of F.scaled_dot_product_attention."""
    hidden = ~visible_mask(shape) if shape.causal else None

    def call(x: Inputs) -> Tensor:
        bias = skewed_term(shape, x)
        if hidden is not None:
            bias = bias.masked_fill(hidden, -torch.inf)
        return F.scaled_dot_product_attention(x.q, x.k, x.v, bias)

    return call


def skew_eager(shape: RelativeShape, dtype: torch.dtype) -> Call:
    """matmul, skewed term, mask, softmax, matmul: what the models' own code does."""
    hidden = ~visible_mask(shape) if shape.causal else None
    scale = shape.dim**-0.5

    def call(x: Inputs) -> Tensor:
        scores = (x.q * scale) @ x.k.mT + skewed_term(shape, x)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        return scores.softmax(-1) @ x.v

    return call


def flex_with_table(shape: RelativeShape, dtype: torch.dtype) -> Call:
    """FlexAttention that reads q_rel . rel_k, computed beforehand for every row of the table."""
    attention, mask = compile_flex(shape)
    rows = shape.table_rows
    zero = rows - 1 if shape.causal else (rows - 1) // 2  # the row of distance 0

    def call(x: Inputs) -> Tensor:
        by_row = (getattr(x, "q_rel", x.q) * shape.dim**-0.5) @ x.rel_k.mT  # [B, H, L, rows]

        def add_term(score, b, h, i, j):
            return score + by_row[b, h, i, (j - i + zero).clamp(0, rows - 1)]

        return attention(x.q, x.k, x.v, score_mod=add_term, block_mask=mask)

    return call


def causal_of_ours(shape: RelativeShape, dtype: torch.dtype) -> Call:
    """Our plain causal attention: what the relative term costs is the ratio to it."""
    return lambda x: causal_attention(x.q, x.k, x.v)


SHAPES = (
    RelativeShape(1, 8, 512, 64, source="Music Transformer, short"),
    RelativeShape(1, 8, 2048, 64, source="Music Transformer"),
    RelativeShape(1, 8, 2048, 64, rows=1024, source="Music Transformer, clipped table"),
    RelativeShape(1, 2, 8192, 64, source="long music, 2 heads so that peers fit in memory"),
    RelativeShape(1, 2, 8192, 64, rows=1024, source="long music, clipped table"),
    RelativeShape(8, 8, 400, 64, causal=False, own_query=True, source="Conformer, 16 s of speech"),
)
CASE = Case(
    name="relative",
    title="relative attention",
    shapes=SHAPES,
    quick=(SHAPES[0], SHAPES[1], SHAPES[2]),
    small=RelativeShape(2, 3, 100, 40, rows=70),
    ours=ours,
    peers={
        "skew+sdpa": Peer(skew_sdpa, score_matrices=4),
        "skew+eager": Peer(skew_eager, score_matrices=5),
        "flex": Peer(flex_with_table, score_matrices=2, forward_only=True, compiled=True),
    },
    related={"our causal": Peer(causal_of_ours)},
)
