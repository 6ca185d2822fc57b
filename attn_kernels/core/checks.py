"""Rules on single arguments, and their messages: the argument's name, the rule, what came."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # what it makes one dtype
INT_DTYPES = (torch.int64, torch.int32)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, Tensor):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")


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
    check_tensor(name, table)
    heads = q.shape[1]
    if table.dim() != 3 or table.shape[0] not in (1, heads) or table.shape[2] != dim:
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
    if value.dtype not in INT_DTYPES:
        raise ValueError(f"{name} must be int64 or int32, got {name_of(value.dtype)}")
    if list(value.shape) != [q.shape[0]]:
        raise ValueError(f"{name} must have shape [{q.shape[0]}], got {list(value.shape)}")
    if value.device != q.device:
        raise ValueError(f"{name} must be on device {q.device} like q, got {value.device}")
