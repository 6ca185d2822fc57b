"""Causal attention against torch's own, FlexAttention and the eager composition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from attn_kernels import Causal, causal_attention

from .case import Call, Case, Peer, Shape
from .peers import EAGER, FLEX


@dataclass(frozen=True)
class CausalShape(Shape):
    """Every query sees the keys up to its own position."""

    @property
    def geometry(self) -> Causal:
        """Plain causal."""
        return Causal()


def ours(shape: Shape, dtype: torch.dtype) -> Call:
    """The library's own function."""
    return lambda x: causal_attention(x.q, x.k, x.v)


def sdpa_causal(shape: Shape, dtype: torch.dtype) -> Call:
    """F.scaled_dot_product_attention(is_causal=True)."""
    return lambda x: F.scaled_dot_product_attention(x.q, x.k, x.v, is_causal=True)


SDPA = Peer(sdpa_causal)
SHAPES = (
    CausalShape(4, 8, 192, 64, source="speech and text batches"),
    CausalShape(2, 8, 512, 64, source="Transformer base"),
    CausalShape(1, 8, 1024, 64, source="GPT-2, 8 of its heads"),
    CausalShape(1, 8, 2048, 64, source="Music Transformer"),
    CausalShape(1, 4, 4096, 64, source="long context"),
    CausalShape(1, 8, 1024, 128, source="Llama's head dim"),
    CausalShape(1, 4, 2048, 128, source="Llama's head dim"),
    CausalShape(1, 1, 2048, 64, source="one head: parallel beyond batch x heads"),
)
CASE = Case(
    name="causal",
    title="causal attention",
    shapes=SHAPES,
    quick=(SHAPES[0], SHAPES[1], SHAPES[3], SHAPES[5]),
    small=CausalShape(2, 3, 100, 40),
    ours=ours,
    peers={"sdpa": SDPA, "flex": FLEX, "eager": EAGER},
)
