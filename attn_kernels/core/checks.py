"""Rules on single arguments, and their messages: the argument's name, the rule, what came."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # what it makes one dtype
INT_DTYPES = (torch.int64, torch.int32)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_dense(name: str, x: Any) -> None:
    """Raise unless `x` is a tensor whose numbers all lie in memory, at strides."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested:
        found = "a nested one" if x.is_nested else x.layout
        raise ValueError(f"{name} must be a dense tensor (torch.strided), got {found}")


def check_number(name: str, value: Any) -> None:
    # torch.compile knows the first of these.
    is_number = isinstance(value, int | float) or hasattr(value, "__float__")
    if isinstance(value, bool | Tensor) or not is_number:
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def check_like_q(name: str, x: Tensor, q: Tensor) -> None:
    """The dtype and device of q, but for the dtypes that autocast makes one."""
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


def check_table(name: str, table: Any, q: Tensor, dim: int) -> None:
    """A table of vectors by distance: one for all heads, or one for each."""
    check_dense(name, table)
    heads = q.shape[1]
    # No `in (1, heads)`: torch.compile finds no number in a tuple of symbolic ints.
    fits = table.dim() == 3 and (table.shape[0] == 1 or table.shape[0] == heads)
    if not fits or table.shape[2] != dim:
        raise ValueError(
            f"{name} must have shape [1 or {heads}, rows, {dim}], got {list(table.shape)}"
        )
    if table.shape[1] == 0:
        raise ValueError(f"{name} must have at least one row, got 0")
    check_like_q(name, table, q)


def check_per_entry(name: str, value: Any, q: Tensor) -> None:
    """One int for each batch entry."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int tensor, got {type(value).__name__}")
    check_dense(name, value)
    if value.dtype not in INT_DTYPES:
        raise ValueError(f"{name} must be int64 or int32, got {name_of(value.dtype)}")
    if list(value.shape) != [q.shape[0]]:
        raise ValueError(f"{name} must have shape [{q.shape[0]}], got {list(value.shape)}")
    if value.device != q.device:
        raise ValueError(f"{name} must be on device {q.device} like q, got {value.device}")
