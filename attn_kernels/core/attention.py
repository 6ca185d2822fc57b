"""attention(): validate, choose a backend, call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from ..score.base import Score
from . import autocast, autograd, batching, reference  # noqa: F401 (the operators' rules)
from .backends import REFERENCE, choose
from .call import Call
from .geometry import Full, Geometry
from .sinks import with_sinks
from .tracing import as_int
from .validate import check_inputs, check_return_lse


# fmt: off
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry = ..., score: Score | None = ..., *,
    scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry = ..., score: Score | None = ..., *,
    scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry = ..., score: Score | None = ..., *,
    scale: float | None = ..., key_lengths: Tensor | None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: bool, backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
# fmt: on
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    geometry: Geometry = Full(),  # noqa: B008 (frozen)
    score: Score | None = None,
    *,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    query_offset: int | Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the keys that a geometry shows, with a score added to the logits.

        out_i = sum_j softmax_j(s_ij) v_j          over the keys j that query i may see
        s_ij  = scale * (q_i . k_j) + score_ij
        lse_i = log sum_j exp(s_ij)

    Args:
        q, k, v: [B, H, Lq, D], [B, Hk, Lk, D] and [B, Hk, Lk, Dv] of one dtype on one device, in
            any strides. H is a multiple of Hk: query head h reads key head h // (H / Hk).
        geometry: which keys a query sees: Full, Causal, Window, Local1d, Local2d, Pattern.
        score: what is added to the logits: None, a term such as Relative, or a sum of terms.
        scale: finite; default D ** -0.5.
        key_lengths: int tensor [B]; keys at and past it do not exist for that batch entry. Values
            are not looked into: below 0 is 0, and above Lk is Lk.
        query_offset: query i stands at position i + query_offset; an int or an int tensor [B], up
            to 2**60 either way. A farther int is an error; a tensor's values are not looked into:
            farther is as far as that. Default Lk - Lq: the last query sees the last key. A position
            is a row of a Pattern, which says what its default is.
        sinks: [H], a logit for each head in the denominator alone: lse_i = log(sum_j exp(s_ij) +
            exp(sink)). Of any floating dtype, differentiable.
        return_lse: also return lse, [B, H, Lq], float32 (float64 for float64), differentiable.
        backend: "cpu", "triton" or "reference"; None chooses, and explain() tells why.

    Returns:
        out [B, H, Lq, Dv] in q's dtype, or with return_lse the pair (out, lse). A query that sees
        no key gives 0, and lse -inf.

    Example:
        >>> q, k, v = (torch.randn(2, 8, 100, 64) for _ in range(3))
        >>> out, lse = attention(q, k, v, Local1d(16, 16), return_lse=True)
        >>> out.shape, lse.shape
        (torch.Size([2, 8, 100, 64]), torch.Size([2, 8, 100]))
    """
    check_inputs(q, k, v, geometry, score, scale, key_lengths, query_offset, sinks)
    check_return_lse(return_lse)
    scale = as_int(q.size(3)) ** -0.5 if scale is None else float(scale)
    if query_offset is None:
        query_offset = geometry.default_offset(q.shape[2], k.shape[2])
    name, _ = choose(backend, q, v, score)
    if name == REFERENCE:
        out, lse = call_reference(q, k, v, geometry, score, scale, key_lengths, query_offset)
    else:
        out, lse = call_operator(name, q, k, v, geometry, score, scale, key_lengths, query_offset)
    if sinks is not None:
        out, lse = with_sinks(out, lse, sinks)
    return (out, lse) if return_lse else out


def call_operator(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    geometry: Geometry,
    score: Score | None,
    scale: float,
    key_lengths: Tensor | None,
    query_offset: int | Tensor,
) -> tuple[Tensor, Tensor]:
    offsets = None
    if isinstance(query_offset, Tensor):
        offsets, query_offset = query_offset, 0
        if offsets.dim() == 0:  # the size that it is under torch.jit.trace
            offsets = offsets.to(q.device).expand(q.shape[0])
    terms: Sequence[Tensor] = ()
    numbers: Sequence[float] = (scale,)
    names, integers = f"{backend} {geometry.name} ", geometry.extent()
    if score is not None:
        parts = score.parts(scale)
        names, terms = names + parts.names, parts.tensors
        integers, numbers = (*integers, *parts.integers), (scale, *parts.numbers)
    table = geometry.table_for(backend, q.device)
    call = Call(q, k, v, terms, key_lengths, offsets, table, query_offset, names, integers, numbers)
    return autograd.run(call)


def call_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    geometry: Geometry,
    score: Score | None,
    scale: float,
    key_lengths: Tensor | None,
    query_offset: int | Tensor,
) -> tuple[Tensor, Tensor]:
    device = q.device.type
    if not torch.amp.is_autocast_available(device):  # as on "meta", where asking more is an error
        return reference.attention(q, k, v, geometry, score, scale, key_lengths, query_offset)
    if torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        q = q.to(torch.get_autocast_dtype(device))  # the output's dtype; the arithmetic is float32
    with torch.autocast(device, enabled=False):
        return reference.attention(q, k, v, geometry, score, scale, key_lengths, query_offset)
