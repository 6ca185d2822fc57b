"""Blocked local attention, in one dimension and on a canvas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from .core.attention import attention
from .core.checks import check_dense
from .core.geometry import Local1d, Local2d
from .core.tracing import as_int


# fmt: off
@overload
def local_attention_1d(
    q: Tensor, k: Tensor, v: Tensor, *, block: int, look_back: int, look_ahead: int = ...,
    causal: bool = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...
@overload
def local_attention_1d(
    q: Tensor, k: Tensor, v: Tensor, *, block: int, look_back: int, look_ahead: int = ...,
    causal: bool = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def local_attention_1d(
    q: Tensor, k: Tensor, v: Tensor, *, block: int, look_back: int, look_ahead: int = ...,
    causal: bool = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: bool, backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
# fmt: on
def local_attention_1d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block: int,
    look_back: int,
    look_ahead: int = 0,
    causal: bool = True,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    query_offset: int | Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to one's own block of the sequence and some keys around it.

    With b = p_i // block, query i sees keys [b * block - look_back, (b + 1) * block + look_ahead),
    clipped to the sequence, and only j <= p_i if causal. look_back = block is the masked local
    attention of Image Transformer and Music Transformer.

    Args:
        q, k, v: [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv].
        block, look_back, look_ahead, causal: as for `Local1d`.
        scale, key_lengths, query_offset, sinks, return_lse, backend: as for `attention`.
    Returns:
        [B, H, Lq, Dv] in q's dtype, and with return_lse also lse [B, H, Lq].
    Example:
        >>> q, k, v = (torch.randn(2, 8, 100, 64) for _ in range(3))
        >>> local_attention_1d(q, k, v, block=16, look_back=16).shape
        torch.Size([2, 8, 100, 64])
    """
    geometry = Local1d(block, look_back, look_ahead, causal)
    return attention(
        q, k, v, geometry, scale=scale, key_lengths=key_lengths, query_offset=query_offset,
        sinks=sinks, return_lse=return_lse, backend=backend,
    )  # fmt: skip


# fmt: off
@overload
def local_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, *, block: Sequence[int], halo: Sequence[int],
    causal: bool = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...
@overload
def local_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, *, block: Sequence[int], halo: Sequence[int],
    causal: bool = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def local_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, *, block: Sequence[int], halo: Sequence[int],
    causal: bool = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: bool, backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
# fmt: on
def local_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block: Sequence[int],
    halo: Sequence[int],
    causal: bool = False,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to one's own block of a canvas and a halo of rows and columns around it.

    The query at (row, col) in block (a, b) sees rows [a * bh - hh, (a + 1) * bh + hh) and columns
    [b * bw - hw, (b + 1) * bw + hw), clipped to the canvas. If causal, only those that the block
    raster scan (blocks row by row, positions row by row inside each) reaches no later than itself.

    Args:
        q, k, v: [B, H, rows, cols, D], [B, Hk, rows, cols, D], [B, Hk, rows, cols, Dv].
        block, halo: (rows, columns).
        scale, key_lengths (in raster order), sinks, return_lse, backend: as for `attention`.
    Returns:
        [B, H, rows, cols, Dv] in q's dtype, and with return_lse also lse [B, H, rows, cols].
    Example:
        >>> image = torch.randn(2, 8, 20, 30, 64)
        >>> out, lse = local_attention_2d(
        ...     image, image, image, block=(8, 8), halo=(4, 4), return_lse=True
        ... )
        >>> out.shape, lse.shape
        (torch.Size([2, 8, 20, 30, 64]), torch.Size([2, 8, 20, 30]))
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_dense(name, x)
        if x.dim() != 5:
            raise ValueError(
                f"{name} must have shape [batch, heads, rows, cols, dim], got {list(x.shape)}"
            )
    grid = (as_int(q.shape[2]), as_int(q.shape[3]))
    for name, x in (("k", k), ("v", v)):
        if x.shape[2:4] != grid:
            raise ValueError(
                f"{name} must have the canvas {list(grid)} of q, got {list(x.shape[2:4])}"
            )
    geometry = Local2d(grid, block, halo, causal)
    result = attention(
        q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), geometry, scale=scale,
        key_lengths=key_lengths, sinks=sinks, return_lse=return_lse, backend=backend,
    )  # fmt: skip
    if isinstance(result, tuple):
        out, lse = result
        return torch.unflatten(out, 2, grid), torch.unflatten(lse, 2, grid)
    return torch.unflatten(result, 2, grid)
