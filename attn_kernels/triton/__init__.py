"""The Triton backend: the two operators on GPUs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..core import call as core
from ..score.relative import CLIP, HAS_QUERY, HAS_VALUES
from .launch import Call, forward
from .launch_backward import backward

__all__ = ["bwd", "fwd"]


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the inputs'."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def arguments(call: core.Call) -> tuple[Any, ...]:
    """What the launchers' Call is made of."""
    rel_k = rel_v = q_rel = None
    clip, rel_scale = True, call.scale
    if call.score:
        (flags, _), rel_scale = call.integers[-2:], call.numbers[1]
        clip = bool(flags & CLIP)
        rel_k, *rest = call.terms
        rel_v = rest.pop(0) if flags & HAS_VALUES else None
        q_rel = rest.pop(0) if flags & HAS_QUERY else None
    return (
        call.q, call.k, call.v, rel_k, rel_v, q_rel, call.key_lengths, call.query_offsets,
        call.table, call.query_offset, call.geometry, call.extent, clip, call.scale, rel_scale,
    )  # fmt: skip


def fwd(*args: Any) -> tuple[Tensor, Tensor]:
    """attn_kernels::fwd; see core/ops.py."""
    with on_device_of(args[0]):
        return forward(Call.of(*arguments(core.Call(*args))))


def bwd(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *args: Any
) -> tuple[Any, ...]:
    """attn_kernels::bwd; see core/ops.py."""
    call = Call.of(*arguments(core.Call(*args)))
    with on_device_of(lse):
        grad_q, grad_k, grad_v, *grads = backward(call, grad_out, out, grad_lse, lse)
    given = (call.rel_k, call.rel_v, call.q_rel)
    return grad_q, grad_k, grad_v, [g for g, x in zip(grads, given, strict=True) if x is not None]
