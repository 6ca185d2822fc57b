"""Every rule on the arguments of a call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..score.base import Score
from .checks import DTYPES, check_like_q, check_number, check_per_entry, name_of
from .geometry import Geometry, check_geometry
from .pattern import Pattern


def check_inputs(
    q: Any,
    k: Any,
    v: Any,
    geometry: Any,
    score: Any,
    scale: Any,
    key_lengths: Any,
    query_offset: Any,
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
    if query_offset is not None and type(query_offset) is not int:
        check_offset(query_offset, q)
    if isinstance(geometry, Pattern):
        check_pattern(q, k, geometry, query_offset)


def check_tensors(q: Any, k: Any, v: Any) -> None:
    tensors = isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)
    if not (tensors and q.dim() == k.dim() == v.dim() == 4):
        for name, x in (("q", q), ("k", k), ("v", v)):
            check_rank(name, x)
    q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
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


def check_rank(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name} must have shape [batch, heads, length, dim], got {list(x.shape)}")


def check_canvas(q: Tensor, k: Tensor, geometry: Geometry, query_offset: Any) -> None:
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
    if isinstance(value, Tensor):
        check_per_entry("query_offset", value, q)
    elif isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "__index__")):
        raise TypeError(f"query_offset must be an int or int tensor, got {type(value).__name__}")


def check_window(causal: Any, window: Any) -> None:
    """A window is a property of causal attention."""
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be a bool, got {type(causal).__name__}")
    if window is not None and not causal:
        raise ValueError(f"window must be None unless causal, got {window}")
