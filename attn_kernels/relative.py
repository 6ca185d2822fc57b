"""Relative attention: a learned vector for every distance between query and key."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from .core.attention import attention
from .core.geometry import Causal, Full
from .core.validate import check_window
from .score.relative import Relative


# fmt: off
@overload
def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor, *, rel_v: Tensor | None = ...,
    q_rel: Tensor | None = ..., causal: bool = ..., window: int | None = ..., beyond: str = ...,
    rel_scale: float | None = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...
@overload
def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor, *, rel_v: Tensor | None = ...,
    q_rel: Tensor | None = ..., causal: bool = ..., window: int | None = ..., beyond: str = ...,
    rel_scale: float | None = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor, *, rel_v: Tensor | None = ...,
    q_rel: Tensor | None = ..., causal: bool = ..., window: int | None = ..., beyond: str = ...,
    rel_scale: float | None = ..., scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: bool, backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
# fmt: on
def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_k: Tensor,
    *,
    rel_v: Tensor | None = None,
    q_rel: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    beyond: str = "clip",
    rel_scale: float | None = None,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    query_offset: int | Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """out_i = sum_j softmax_j(scale * q_i . k_j + rel_scale * q_rel_i . rel_k[row(j - p_i)]) v_j.

    Music Transformer (causal, one row per distance), Shaw et al. (rel_v, beyond="clip"),
    Transformer-XL and Conformer (q = q + u, q_rel = q + v).

    Args:
        q, k, v: [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv].
        rel_k: [1 or H, R, D]. Causal: the last row is distance 0. Otherwise R is odd and the centre
            row is distance 0.
        rel_v: [1 or H, R, Dv]; adds sum_j p_ij rel_v[row(j - p_i)] to out_i.
        q_rel: [B, H, Lq, D]; default q.
        window: how many keys a query sees, itself included; needs causal.
        beyond: offsets beyond the table use the nearest row ("clip") or add nothing ("zero").
        rel_scale: default scale.
        scale, key_lengths, query_offset, sinks, return_lse, backend: as for `attention`.
    Returns:
        [B, H, Lq, Dv] in q's dtype, and with return_lse also lse [B, H, Lq].
    Example:
        >>> q, k, v = (torch.randn(2, 8, 100, 64) for _ in range(3))
        >>> rel_k = torch.randn(8, 100, 64, requires_grad=True)  # one row per distance and head
        >>> out = relative_attention(q, k, v, rel_k)
        >>> out.sum().backward()
        >>> rel_k.grad.shape
        torch.Size([8, 100, 64])
    """
    check_window(causal, window)
    geometry = Causal(window) if causal else Full()
    score = Relative(rel_k, rel_v, q_rel, beyond, rel_scale)
    return attention(
        q, k, v, geometry, score, scale=scale, key_lengths=key_lengths, query_offset=query_offset,
        sinks=sinks, return_lse=return_lse, backend=backend,
    )  # fmt: skip
