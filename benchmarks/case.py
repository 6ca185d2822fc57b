"""What a benchmark is made of: a shape, a peer, and a case that joins them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attn_kernels import Full
from attn_kernels.core.geometry import Geometry

Inputs = SimpleNamespace  # q, k, v and what else the operation takes, as attributes
Call = Callable[[Inputs], Tensor]
Prepare = Callable[[Any, torch.dtype], Call]  # (shape, dtype), untimed


@dataclass(frozen=True)
class Shape:
    """One size of one operation. `source` says where it comes from."""

    batch: int
    heads: int
    q_len: int
    dim: int
    k_heads: int = 0  # 0: heads
    k_len: int = 0  # 0: q_len
    source: str = field(default="", compare=False)

    @property
    def keys(self) -> tuple[int, int]:
        """Heads and length of k and v."""
        return self.k_heads or self.heads, self.k_len or self.q_len

    @property
    def geometry(self) -> Geometry:
        """Which keys a query sees."""
        return Full()

    @property
    def label(self) -> str:
        """How tables name it."""
        return f"[{self.batch},{self.heads},{self.q_len},{self.dim}]"

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The inputs and their sizes."""
        k_heads, k_len = self.keys
        key_size = (self.batch, k_heads, k_len, self.dim)
        return {"q": (self.batch, self.heads, self.q_len, self.dim), "k": key_size, "v": key_size}

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Normal random tensors, the same ones for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return Inputs(
            **{
                name: torch.randn(size, generator=generator).to(dtype)
                for name, size in self.sizes().items()
            }
        )

    def visible_pairs(self) -> int:
        """(query, key) pairs that attend, over the batch and all heads."""
        k_len = self.keys[1]
        pairs = self.geometry.visible_pairs(self.q_len, k_len, k_len - self.q_len)
        return self.batch * self.heads * pairs

    def flops(self, backward: bool) -> float:
        """Useful operations: q k^T and p v over the visible pairs, and 2.5 times that backward.

        The products with a table of relative positions, masked pairs and recomputed scores do not
        count, whoever computes them.
        """
        return 4 * self.dim * self.visible_pairs() * (3.5 if backward else 1)

    def input_bytes(self, dtype: torch.dtype) -> int:
        """What has to be read at least once."""
        return sum(torch.Size(size).numel() for size in self.sizes().values()) * dtype.itemsize

    def result_bytes(self, dtype: torch.dtype, backward: bool) -> int:
        """The output, and a gradient for every input."""
        out = self.batch * self.heads * self.q_len * self.dim * dtype.itemsize
        return out + (self.input_bytes(dtype) if backward else 0)


@dataclass(frozen=True)
class Peer:
    """Another way to compute the same. prepare(shape, dtype) makes masks and compiles, untimed."""

    prepare: Prepare
    score_matrices: float = 0  # full [Lq, Lk] matrices per head alive at once in a forward pass
    forward_only: bool = False
    compiled: bool = False

    def why_not(self, shape: Shape, dtype: torch.dtype, backward: bool, memory: int) -> str:
        """The reason to leave it out for this shape, or ""."""
        if backward and self.forward_only:
            return "has no backward on the CPU"
        matrix = shape.batch * shape.heads * shape.q_len * shape.keys[1] * dtype.itemsize
        needed = matrix * self.score_matrices * (2 if backward else 1)
        if needed > memory / 2:
            return f"needs about {needed / 2**30:.0f} GiB"
        return ""


@dataclass(frozen=True)
class Case:
    """One operation: its shapes, our function, and the peers, the first of which is trusted."""

    name: str
    title: str
    shapes: tuple[Shape, ...]
    quick: tuple[Shape, ...]  # what runs by default
    small: Shape  # compared with the reference in float64
    ours: Prepare
    peers: dict[str, Peer]
    related: dict[str, Peer] = field(default_factory=dict)  # timed beside, computes something else
    directions: tuple[str, ...] = ("forward", "backward")
    reads_only: bool = False  # its limit is reading the inputs once, not arithmetic
    cold_bytes: int = 0  # rotate over copies of the inputs that fill this much memory
