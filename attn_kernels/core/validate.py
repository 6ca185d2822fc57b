"""Every rule on the arguments of a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..score.base import Score
from .checks import DTYPES, check_dense, check_like_q, check_number, check_per_entry, name_of
from .geometry import FARTHEST, check_geometry
from .pattern import Pattern
from .sinks import check_sinks


def check_inputs(
    q: Any,
    k: Any,
    v: Any,
    geometry: Any,
    score: Any,
    scale: Any,
    key_lengths: Any,
    query_offset: Any,
    sinks: Any = None,
) -> None:
    """Raise TypeError, ValueError or NotImplementedError unless attention() may be called so."""
    check_tensors(q, k, v)
    check_geometry(geometry)
    if scale is not None:
        check_number("scale", scale)
    if geometry.two_dimensional:
        check_canvas(q, k, geometry, query_offset)
    if score is not None:
        if not isinstance(score, Score):
            raise TypeError(f"score must be None or a Relative, got {type(score).__name__}")
        for term in score.terms:
            term.check(q, v, geometry)
    if key_lengths is not None:
        check_per_entry("key_lengths", key_lengths, q)
    if query_offset is not None:
        check_offset(query_offset, q)
    if sinks is not None:
        check_sinks(sinks, q)
    if isinstance(geometry, Pattern):
        check_pattern(q, k, geometry, query_offset)


def check_tensors(q: Any, k: Any, v: Any) -> None:
    tensors = isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)
    if not (tensors and q.layout is k.layout is v.layout is torch.strided):
        for name, x in (("q", q), ("k", k), ("v", v)):
            check_dense(name, x)
    try:
        q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
    except RuntimeError:  # nested tensors of the strided layout: asking each costs 0.1 us
        for name, x in (("q", q), ("k", k), ("v", v)):
            check_dense(name, x)
        raise
    if not len(q_shape) == len(k_shape) == len(v_shape) == 4:
        for name, x in (("q", q), ("k", k), ("v", v)):
            check_rank(name, x)
    (batch, heads, _, dim), (k_batch, k_heads, k_len, k_dim) = q_shape, k_shape
    if k_batch != batch or k_dim != dim:
        raise ValueError(f"k must have shape [{batch}, *, *, {dim}] like q, got {list(k_shape)}")
    if v_shape[0] != k_batch or v_shape[1] != k_heads or v_shape[2] != k_len:
        raise ValueError(
            f"v must have shape [{batch}, {k_heads}, {k_len}, *] like k, got {list(v_shape)}"
        )
    if k_heads == 0 if heads else k_heads:
        raise ValueError(f"k must have heads if and only if q has, got {k_heads} for {heads} of q")
    if heads and heads % k_heads:
        raise ValueError(f"q's heads must be a multiple of k's heads, got {heads} and {k_heads}")
    if dim == 0 or v_shape[3] == 0:
        raise ValueError(f"q and v must have a dim of at least 1, got {dim} and {v_shape[3]}")
    if q.dtype not in DTYPES:
        raise ValueError(f"q must be float32, float64, bfloat16 or float16, got {name_of(q.dtype)}")
    check_like_q("k", k, q)
    check_like_q("v", v, q)


def check_rank(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name} must have shape [batch, heads, length, dim], got {list(x.shape)}")


def check_canvas(q: Tensor, k: Tensor, geometry: Any, query_offset: Any) -> None:
    rows, cols = geometry.grid
    for name, x in (("q", q), ("k", k)):
        if x.shape[2] != rows * cols:
            raise ValueError(
                f"{name} must have length rows * cols = {rows} * {cols} = {rows * cols}"
                f" under Local2d, got {x.shape[2]}"
            )
    if query_offset is not None:
        raise ValueError(f"query_offset must be None under Local2d, got {query_offset}")


def check_pattern(q: Tensor, k: Tensor, geometry: Pattern, query_offset: Any) -> None:
    """A tensor of offsets is not looked into: rows that the pattern does not have see nothing."""
    for name, x, most in (("q", q, geometry.q_len), ("k", k, geometry.k_len)):
        if x.shape[2] > most:
            raise ValueError(
                f"{name} must have a length of at most {most} under this Pattern, got {x.shape[2]}"
            )
    if query_offset is None:
        query_offset = geometry.default_offset(q.shape[2], k.shape[2])
    last = geometry.q_len - q.shape[2]
    if not isinstance(query_offset, Tensor) and not 0 <= query_offset <= last:
        raise ValueError(
            f"query_offset must be in [0, {last}] for {q.shape[2]} queries under a Pattern of"
            f" {geometry.q_len} rows, got {query_offset}"
        )


def check_offset(value: Any, q: Tensor) -> None:
    """A tensor is not looked into: kernels take what is beyond the bounds as the bound."""
    if isinstance(value, Tensor):
        if not (value.dim() == 0 and torch.jit.is_tracing()):  # a size is such a tensor then
            check_per_entry("query_offset", value, q)
        return
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "__index__")):
        raise TypeError(f"query_offset must be an int or int tensor, got {type(value).__name__}")
    # The bounds would limit the sizes that an offset is computed from in a compiled graph.
    if not (torch.compiler.is_compiling() or -FARTHEST <= value <= FARTHEST):
        raise ValueError(f"query_offset must be in [-2**60, 2**60], got {value}")


def check_return_lse(value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"return_lse must be a bool, got {type(value).__name__}")


def check_window(causal: Any, window: Any) -> None:
    """A window is a property of causal attention."""
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be a bool, got {type(causal).__name__}")
    if window is not None and not causal:
        raise ValueError(f"window must be None unless causal, got {window}")
