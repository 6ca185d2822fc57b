"""Peers that several operations share: torch's own attention, in the forms a user would write."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Call, Peer, Shape


def visible_mask(shape: Shape) -> Tensor:
    """The dense mask of the shape's geometry, [Lq, Lk], true where a pair attends."""
    k_len = shape.keys[1]
    q_pos = torch.arange(shape.q_len).view(-1, 1) + k_len - shape.q_len
    return shape.geometry.visible(q_pos, torch.arange(k_len).view(1, -1))


def grouped(shape: Shape) -> bool:
    """Whether several query heads share a key head."""
    return shape.keys[0] != shape.heads


def sdpa_with_mask(shape: Shape, dtype: torch.dtype) -> Call:
    """F.scaled_dot_product_attention with the geometry as a dense boolean mask."""
    mask = visible_mask(shape)
    mask = None if mask.all() else mask
    groups = grouped(shape)
    return lambda x: F.scaled_dot_product_attention(x.q, x.k, x.v, mask, enable_gqa=groups)


def eager(shape: Shape, dtype: torch.dtype) -> Call:
    """matmul, mask, softmax, matmul."""
    scale, groups = shape.dim**-0.5, shape.heads // shape.keys[0]
    hidden = ~visible_mask(shape)
    hidden = hidden if hidden.any() else None

    def call(x):
        k, v = x.k, x.v
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = (x.q * scale) @ k.mT
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        return scores.softmax(-1) @ v

    return call


def compile_flex(shape: Shape) -> tuple[Callable, object]:
    """FlexAttention compiled for one shape and thread count, and the geometry's block mask."""
    import torch._inductor.config
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()  # or the shapes before this one count as recompilations
    torch._inductor.config.cpp.threads = torch.get_num_threads()  # part of the cache's key then
    k_len = shape.keys[1]
    geometry, offset = shape.geometry, k_len - shape.q_len

    def visible(batch, head, q, k):
        return geometry.visible(q + offset, k)

    mask = None
    if not visible_mask(shape).all():
        mask = create_block_mask(visible, None, None, shape.q_len, k_len, device="cpu")
    return torch.compile(flex_attention, dynamic=False), mask


def flex(shape: Shape, dtype: torch.dtype) -> Call:
    """FlexAttention with the geometry as its mask_mod."""
    attention, mask = compile_flex(shape)
    groups = grouped(shape)
    return lambda x: attention(x.q, x.k, x.v, block_mask=mask, enable_gqa=groups)


SDPA_WITH_MASK = Peer(sdpa_with_mask, score_matrices=0.5)
EAGER = Peer(eager, score_matrices=3)
FLEX = Peer(flex, forward_only=True, compiled=True)
