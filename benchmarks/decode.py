"""Decoding: one new query over a long cache. The limit is reading the cache once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from attn_kernels import Causal

from .case import Call, Case, Peer, Shape
from .causal import ours
from .peers import EAGER, FLEX, grouped


@dataclass(frozen=True)
class DecodeShape(Shape):
    """The queries stand at the end of the cache."""

    @property
    def geometry(self) -> Causal:
        """The last query sees the whole cache."""
        return Causal()

    @property
    def label(self) -> str:
        """Queries and keys."""
        k_heads, k_len = self.keys
        groups = f" over {k_heads} heads" if grouped(self) else ""
        return f"[{self.batch},{self.heads},{self.q_len},{self.dim}] {k_len} keys{groups}"


def sdpa_decode(shape: DecodeShape, dtype: torch.dtype) -> Call:
    """F.scaled_dot_product_attention; one query needs no mask."""
    groups = grouped(shape)
    return lambda x: F.scaled_dot_product_attention(x.q, x.k, x.v, enable_gqa=groups)


LENGTHS = (512, 2048, 8192, 32768)
PLAIN = tuple(
    DecodeShape(1, 8, 1, 64, k_len=n, source="Music Transformer decoding") for n in LENGTHS
)
GROUPED = tuple(
    DecodeShape(1, 32, 1, 128, k_heads=8, k_len=n, source="Llama 3 8B decoding") for n in LENGTHS
)
CASE = Case(
    name="decode",
    title="decoding, caches rotated so that each is read from memory",
    shapes=PLAIN + GROUPED,
    quick=(PLAIN[1], PLAIN[3], GROUPED[2]),
    small=DecodeShape(2, 6, 1, 40, k_heads=2, k_len=100),
    ours=ours,
    peers={"sdpa": Peer(sdpa_decode), "flex": FLEX, "eager": EAGER},
    directions=("forward",),
    reads_only=True,
    cold_bytes=1 << 28,
)
