"""The two registered operators: their schemas, and what they return for fake tensors.

C++ (csrc/bindings.cpp) adds the CPU implementations. What torch asks of an operator besides is in
autograd.py, autocast.py and batching.py, so that tracing, fake tensors and documentation need no
compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..score.base import QUERY
from .call import SCHEMA, Call
from .layouts import empty_in_layout

lib = torch.library.Library("attn_kernels", "DEF")
lib.define(f"fwd({SCHEMA}) -> (Tensor out, Tensor lse)")
lib.define(
    f"bwd(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {SCHEMA})"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor[] grad_terms)"
)
fwd = torch.ops.attn_kernels.fwd.default
bwd = torch.ops.attn_kernels.bwd.default


@torch.library.register_fake("attn_kernels::fwd", lib=lib)
def _(*args: Any) -> tuple[Tensor, Tensor]:
    call = Call(*args)
    q = call.q
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return empty_in_layout(q, call.v.shape[-1]), q.new_empty(q.shape[:-1], dtype=lse_dtype)


@torch.library.register_fake("attn_kernels::bwd", lib=lib)
def _(grad_out: Any, grad_lse: Any, out: Any, lse: Any, *args: Any) -> tuple[Any, ...]:
    call = Call(*args)
    grads = (empty_in_layout(x, x.shape[-1]) for x in (call.q, call.k, call.v))
    grad_terms = [
        empty_in_layout(x, x.shape[-1]) if kind == QUERY else x.new_empty(x.shape)
        for kind, x in zip(call.kinds(), call.terms, strict=True)
    ]
    return (*grads, grad_terms)


def _register_triton(name: str) -> None:
    """CPU implementations come from csrc/bindings.cpp; Triton is imported by the first call."""

    def call(*args: Any) -> Any:
        from .. import triton

        return getattr(triton, name)(*args)

    lib.impl(name, call, "CUDA")


_register_triton("fwd")
_register_triton("bwd")
