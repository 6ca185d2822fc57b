"""Blocked local attention, in one dimension and on a canvas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .core.attention import attention
from .core.geometry import Local1d, Local2d
from .core.tracing import as_int


def local_attention_1d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block: int,
    look_back: int,
    look_ahead: int = 0,
    causal: bool = True,
    **options: Any,
):
    """Attention to one's own block of the sequence and some keys around it.

    With b = p_i // block, query i sees keys [b * block - look_back, (b + 1) * block + look_ahead),
    clipped to the sequence, and only j <= p_i if causal. look_back = block is the masked local
    attention of Image Transformer and Music Transformer.

    Args:
        q, k, v: [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv].
        options: scale, key_lengths, query_offset, return_lse, backend, as for `attention`.
    Returns:
        [B, H, Lq, Dv] in q's dtype.
    """
    return attention(q, k, v, Local1d(block, look_back, look_ahead, causal), **options)


def local_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block: tuple[int, int],
    halo: tuple[int, int],
    causal: bool = False,
    **options: Any,
):
    """Attention to one's own block of a canvas and a halo of rows and columns around it.

    The query at (row, col) in block (a, b) sees rows [a * bh - hh, (a + 1) * bh + hh) and columns
    [b * bw - hw, (b + 1) * bw + hw), clipped to the canvas. If causal, only those that the block
    raster scan (blocks row by row, positions row by row inside each) reaches no later than itself.

    Args:
        q, k, v: [B, H, rows, cols, D], [B, Hk, rows, cols, D], [B, Hk, rows, cols, Dv].
        block, halo: (rows, columns).
        options: scale, key_lengths (in raster order), return_lse, backend, as for `attention`.
    Returns:
        [B, H, rows, cols, Dv] in q's dtype; lse is [B, H, rows, cols].
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() != 5:
            raise ValueError(
                f"{name} must have shape [batch, heads, rows, cols, dim], got {list(x.shape)}"
            )
        if x.shape[2:4] != q.shape[2:4]:
            raise ValueError(
                f"{name} must have the canvas {list(q.shape[2:4])} of q, got {list(x.shape[2:4])}"
            )
    grid = (as_int(q.shape[2]), as_int(q.shape[3]))
    geometry = Local2d(grid, block, halo, causal)
    result = attention(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), geometry, **options)
    if isinstance(result, tuple):
        return tuple(torch.unflatten(x, 2, grid) for x in result)
    return torch.unflatten(result, 2, grid)
