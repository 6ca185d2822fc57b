"""Derivatives of the operators, and the shortest way through torch to call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .call import N_TENSORS, Call
from .ops import bwd, fwd, lib

# A Function differentiates tensors among its arguments, not lists of them: it takes a call's
# settings, then its tensors, those of the terms last.
N_SETTINGS = len(Call._fields) - N_TENSORS
Q, TERMS = N_SETTINGS, N_SETTINGS + N_TENSORS - 1  # where q and the terms' tensors begin


def flat(call: Call) -> tuple[Any, ...]:
    q, k, v, terms, key_lengths, query_offsets, table, *settings = call
    return (*settings, q, k, v, key_lengths, query_offsets, table, *terms)


def nested(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operators' shared arguments again."""
    q, k, v, key_lengths, query_offsets, table, *terms = args[Q:]
    return (q, k, v, terms, key_lengths, query_offsets, table, *args[:Q])


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Of flat arguments."""
    ctx.save_for_backward(*output, *inputs[Q:])
    ctx.settings = inputs[:Q]
    ctx.set_materialize_grads(False)


def gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    """Of q, k, v, and of the terms' tensors."""
    out, lse, *tensors = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    arguments = (grad_out, grad_lse, out, lse)
    args = (*ctx.settings, *tensors)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(out.device.type):
        return bwd(*arguments, *nested(args))
    if _transformed():
        grad_q, grad_k, grad_v, *grad_terms = _Backward.apply(*arguments, *args)
        return grad_q, grad_k, grad_v, grad_terms
    if torch.is_grad_enabled():  # create_graph=True: raises when it is differentiated again
        return bwd(*arguments, *nested(args))
    with torch._C._AutoDispatchBelowAutograd():
        return bwd(*arguments, *nested(args))


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """The gradient of every flat argument."""
    grad_q, grad_k, grad_v, grad_terms = gradients(ctx, *grads)
    nothing = [None] * (TERMS - Q - 3)
    return (*[None] * N_SETTINGS, grad_q, grad_k, grad_v, *nothing, *grad_terms)


def _transformed() -> bool:
    """Inside torch.func's transforms or forward-mode differentiation. A tangent shows in nothing
    else: below autograd it would be lost without a word."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _double_backward(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError(
        "attn_kernels: the fused kernels are differentiable once;"
        ' backend="reference" is any number of times'
    )


def _forward_mode(ctx: Any, *tangents: Any) -> Any:
    raise NotImplementedError(
        "attn_kernels: the fused kernels have no forward-mode derivative;"
        ' backend="reference" has one'
    )


def _operator_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    save(ctx, flat(Call(*inputs)), output)
    # Autograd wants a gradient in the shape of each argument, and an empty list is one of nothing.
    ctx.nothing = [[] if isinstance(x, list) and not x else None for x in inputs[4:]]


def _operator_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    grad_q, grad_k, grad_v, grad_terms = gradients(ctx, *grads)
    return (grad_q, grad_k, grad_v, list(grad_terms), *ctx.nothing)


torch.library.register_autograd(
    "attn_kernels::fwd", _operator_backward, setup_context=_operator_save, lib=lib
)
torch.library.register_autograd("attn_kernels::bwd", _double_backward, lib=lib)


# torch.func's transforms take a Function, not an operator with a derivative of its own. Both
# operators have one: a gradient that torch.func takes is always prepared for a second one.


class _Backward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        grad_q, grad_k, grad_v, grad_terms = bwd(*inputs[:4], *nested(inputs[4:]))
        return (grad_q, grad_k, grad_v, *grad_terms)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    backward = staticmethod(_double_backward)
    jvp = staticmethod(_forward_mode)


class _Forward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return fwd(*nested(args))

    setup_context = staticmethod(save)
    backward = staticmethod(_backward)
    jvp = staticmethod(_forward_mode)


class _Eager(torch.autograd.Function):
    """fwd and its gradient outside of transforms and compilers, where the operator's own autograd
    costs 100 us and a Function with setup_context 40."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = fwd(*nested(args))
        save(ctx, args, output)
        return output

    backward = staticmethod(_backward)


def run(call: Call) -> tuple[Tensor, Tensor]:
    """fwd by the shortest way: an operator's own autograd costs 8 us even without gradients."""
    if torch.compiler.is_compiling():
        if forward_ad._current_level >= 0:  # the compiler would leave its tangent out
            _forward_mode(None)
        return fwd(*call)
    if _transformed():
        return _Forward.apply(*flat(call))
    if torch.is_grad_enabled():
        for x in (call.q, call.k, call.v, *call.terms):
            if x.requires_grad:  # autocast's casts belong to the graph
                if torch.is_autocast_enabled(x.device.type) or torch.jit.is_tracing():
                    return fwd(*call)  # a traced program takes operators only
                return _Eager.apply(*flat(call))
    with torch._C._AutoDispatchBelowAutograd():
        return fwd(*call)
