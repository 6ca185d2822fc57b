"""The Triton backend: the two operators on GPUs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .launch import Call, forward
from .launch_backward import backward

__all__ = ["bwd", "fwd"]


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the inputs'."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def fwd(*args: Any) -> tuple[Tensor, Tensor]:
    """attn_kernels::fwd; see core/ops.py."""
    with on_device_of(args[0]):
        return forward(Call.of(*args))


def bwd(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    """attn_kernels::bwd; see core/ops.py."""
    with on_device_of(lse):
        return backward(Call.of(*args), grad_out, out, grad_lse, lse)
