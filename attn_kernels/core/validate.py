"""Every rule on arguments, and its message: the argument's name, the rule, what came."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .geometry import Geometry, check_geometry
from .pattern import Pattern
from .score import BEYOND, Relative

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # what it makes one dtype
INT_DTYPES = (torch.int64, torch.int32)


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
        check_canvas(q, k, geometry, score, query_offset)
    if score is not None:
        check_score(q, v, geometry, score)
    if key_lengths is not None:
        check_per_entry("key_lengths", key_lengths, q)
    if query_offset is not None and type(query_offset) is not int:
        check_offset(query_offset, q)
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


def check_dense(name: str, x: Any) -> None:
    """Raise unless `x` is a tensor whose numbers all lie in memory, at strides."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested:
        found = "a nested one" if x.is_nested else x.layout
        raise ValueError(f"{name} must be a dense tensor (torch.strided), got {found}")


def check_rank(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name} must have shape [batch, heads, length, dim], got {list(x.shape)}")


def check_like_q(name: str, x: Tensor, q: Tensor) -> None:
    if x.dtype != q.dtype and not (
        x.dtype in AUTOCAST_DTYPES and q.dtype in AUTOCAST_DTYPES and autocasts(q.device.type)
    ):
        raise ValueError(
            f"{name} must have dtype {name_of(q.dtype)} like q, got {name_of(x.dtype)}"
        )
    if not (x.is_cpu and q.is_cpu) and x.device != q.device:  # a device object takes 0.1 us
        raise ValueError(f"{name} must be on device {q.device} like q, got {x.device}")


def autocasts(device: str) -> bool:
    """Whether autocast is on for a kind of device; "meta" has none, and torch raises if asked."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, Tensor):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")


def check_canvas(q: Tensor, k: Tensor, geometry: Any, score: Any, query_offset: Any) -> None:
    rows, cols = geometry.grid
    for name, x in (("q", q), ("k", k)):
        if x.shape[2] != rows * cols:
            raise ValueError(
                f"{name} must have length rows * cols = {rows} * {cols} = {rows * cols}"
                f" under Local2d, got {x.shape[2]}"
            )
    if score is not None:
        raise NotImplementedError("score: two-dimensional relative terms do not exist yet, got one")
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


def check_score(q: Tensor, v: Tensor, geometry: Geometry, score: Any) -> None:
    if not isinstance(score, Relative):
        raise TypeError(f"score must be None or a Relative, got {type(score).__name__}")
    if score.beyond not in BEYOND:
        raise ValueError(f'beyond must be "clip" or "zero", got {score.beyond!r}')
    if score.rel_scale is not None:
        check_number("rel_scale", score.rel_scale)
    check_table("rel_k", score.rel_k, q, q.shape[3])
    n_rows = score.rel_k.shape[1]
    if not geometry.causal and n_rows % 2 == 0:
        raise ValueError(f"rel_k must have an odd number of rows unless causal, got {n_rows}")
    if score.rel_v is not None:
        check_table("rel_v", score.rel_v, q, v.shape[3])
        if score.rel_v.shape[1] != n_rows:
            raise ValueError(
                f"rel_v must have {n_rows} rows like rel_k, got {score.rel_v.shape[1]}"
            )
    if score.q_rel is not None:
        check_dense("q_rel", score.q_rel)
        if score.q_rel.shape != q.shape:
            raise ValueError(
                f"q_rel must have shape {list(q.shape)} like q, got {list(score.q_rel.shape)}"
            )
        check_like_q("q_rel", score.q_rel, q)


def check_table(name: str, table: Any, q: Tensor, dim: int) -> None:
    check_dense(name, table)
    heads, shape = q.shape[1], table.shape
    if len(shape) != 3 or shape[0] not in (1, heads) or shape[2] != dim:
        raise ValueError(f"{name} must have shape [1 or {heads}, rows, {dim}], got {list(shape)}")
    if shape[1] == 0:
        raise ValueError(f"{name} must have at least one row, got 0")
    check_like_q(name, table, q)


def check_per_entry(name: str, value: Any, q: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int tensor, got {type(value).__name__}")
    check_dense(name, value)
    if value.dtype not in INT_DTYPES:
        raise ValueError(f"{name} must be int64 or int32, got {name_of(value.dtype)}")
    if list(value.shape) != [q.shape[0]]:
        raise ValueError(f"{name} must have shape [{q.shape[0]}], got {list(value.shape)}")
    if value.device != q.device:
        raise ValueError(f"{name} must be on device {q.device} like q, got {value.device}")


def check_offset(value: Any, q: Tensor) -> None:
    if isinstance(value, Tensor):
        check_per_entry("query_offset", value, q)
    elif isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "__index__")):
        raise TypeError(f"query_offset must be an int or int tensor, got {type(value).__name__}")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_window(causal: Any, window: Any) -> None:
    """A window is a property of causal attention."""
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be a bool, got {type(causal).__name__}")
    if window is not None and not causal:
        raise ValueError(f"window must be None unless causal, got {window}")
