"""Causal attention: query i attends to keys 0..i, or to the last `window` of them."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from .core.attention import attention
from .core.geometry import Causal


# fmt: off
@overload
def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = ...,
    scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...
@overload
def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = ...,
    scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = ...,
    scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: bool, backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
# fmt: on
def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    query_offset: int | Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + mask) v, with mask_ij = 0 if p_i - window < j <= p_i else -inf.

    Args:
        q, k, v: [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv].
        window: how many keys a query sees, itself included; None is all of them.
        scale, key_lengths, query_offset, sinks, return_lse, backend: as for `attention`.
    Returns:
        [B, H, Lq, Dv] in q's dtype, and with return_lse also lse [B, H, Lq].
    Example:
        >>> q, k, v = (torch.randn(2, 8, 100, 64) for _ in range(3))
        >>> causal_attention(q, k, v, window=16).shape
        torch.Size([2, 8, 100, 64])
        >>> newest = causal_attention(q[:, :, -1:], k, v)  # decoding: one query sees all keys
    """
    return attention(
        q, k, v, Causal(window), scale=scale, key_lengths=key_lengths, query_offset=query_offset,
        sinks=sinks, return_lse=return_lse, backend=backend,
    )  # fmt: skip
