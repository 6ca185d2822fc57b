"""Blocked local attention in one dimension against unfolded windows, masks and FlexAttention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_kernels import Local1d, local_attention_1d

from .case import Call, Case, Inputs, Peer, Shape
from .peers import FLEX, SDPA_WITH_MASK


@dataclass(frozen=True)
class BlockedShape(Shape):
    """Masked local attention: a query sees its own block up to itself, and the block before."""

    block: int = 256

    @property
    def geometry(self) -> Local1d:
        """One block back, causal."""
        return Local1d(self.block, self.block)

    @property
    def label(self) -> str:
        """Sizes and block."""
        return f"{super().label} block {self.block}"


def ours(shape: BlockedShape, dtype: torch.dtype) -> Call:
    """The library's own function."""
    block = shape.block
    return lambda x: local_attention_1d(x.q, x.k, x.v, block=block, look_back=block)


def unfold_sdpa(shape: BlockedShape, dtype: torch.dtype) -> Call:
    """Each block's keys and values copied out, as tensor2tensor does, then SDPA in one batch."""
    block = shape.block
    after = -shape.q_len % block
    n_blocks = (shape.q_len + after) // block
    key = torch.arange(2 * block) - block + torch.arange(n_blocks).view(-1, 1, 1) * block
    query = torch.arange(block).view(-1, 1) + torch.arange(n_blocks).view(-1, 1, 1) * block
    mask = ((key >= 0) & (key <= query)).unsqueeze(1).repeat(shape.batch, 1, 1, 1)

    def windows(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, block, after)).unfold(2, 2 * block, block)  # [B, H, n, D, window]
        return x.permute(0, 2, 1, 4, 3).flatten(0, 1)

    def call(x: Inputs) -> Tensor:
        q = F.pad(x.q, (0, 0, 0, after)).unflatten(2, (n_blocks, block)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q.flatten(0, 1), windows(x.k), windows(x.v), mask)
        out = out.unflatten(0, (-1, n_blocks)).transpose(1, 2).flatten(2, 3)
        return out[:, :, : x.q.shape[2]]

    return call


SHAPES = (
    BlockedShape(1, 8, 2048, 64, source="Image and Music Transformer"),
    BlockedShape(1, 8, 8192, 64, source="Music Transformer, long"),
    BlockedShape(1, 8, 3072, 64, block=128, source="Image Transformer, 32x32x3 pixels"),
    BlockedShape(1, 8, 3000, 64, source="not a multiple of the block"),
)
CASE = Case(
    name="local_1d",
    title="local attention on a sequence",
    shapes=SHAPES,
    quick=SHAPES[:1],
    small=BlockedShape(2, 3, 100, 40, block=16),
    ours=ours,
    peers={
        "unfold+sdpa": Peer(unfold_sdpa),
        "mask+sdpa": SDPA_WITH_MASK,
        "flex": FLEX,
    },
)
