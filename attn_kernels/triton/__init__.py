"""The Triton backend: the two operators on GPUs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .launch import Call, forward

__all__ = ["bwd", "fwd"]


def fwd(*args: Any) -> tuple[Tensor, Tensor]:
    """attn_kernels::fwd; see core/ops.py."""
    return forward(Call.of(*args))


def bwd(*args: Any) -> tuple[Tensor, ...]:
    """attn_kernels::bwd; see core/ops.py."""
    raise NotImplementedError
