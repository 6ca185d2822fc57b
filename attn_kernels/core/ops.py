"""The two registered operators: schemas, fakes, autograd, autocast and vmap. Imports torch only.

C++ (csrc/bindings.cpp) adds the CPU implementations. Everything that torch asks of an operator is
here, so that tracing, fake tensors and documentation need no compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_SHARED = (
    "Tensor q, Tensor k, Tensor v, Tensor? rel_k, Tensor? rel_v, Tensor? q_rel,"
    " Tensor? key_lengths, Tensor? query_offsets, Tensor? pattern, SymInt query_offset,"
    " str geometry, SymInt[] extent, bool clip, float scale, float rel_scale"
)
_lib = torch.library.Library("attn_kernels", "DEF")
_lib.define(f"fwd({_SHARED}) -> (Tensor out, Tensor lse)")
_lib.define(
    f"bwd(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {_SHARED})"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v,"
    " Tensor grad_rel_k, Tensor grad_rel_v, Tensor grad_q_rel)"
)
fwd = torch.ops.attn_kernels.fwd.default
bwd = torch.ops.attn_kernels.bwd.default

N_TENSORS = 6  # q, k, v, rel_k, rel_v, q_rel: the differentiable inputs, which come first
N_ENTRIES = 2  # key_lengths, query_offsets: one number per batch entry, which come next
N_SAVED = N_TENSORS + N_ENTRIES + 1  # and pattern, a geometry's table


# --- Fakes ---


def empty_in_layout(like: Tensor, last: Any) -> Tensor:
    """Uninitialised [B, H, L, last], in memory [B, L, H, last] where `like` is such a view."""
    batch, heads, length, _ = like.shape
    if like.stride(1) < like.stride(2):
        return like.new_empty(batch, length, heads, last).transpose(1, 2)
    return like.new_empty(batch, heads, length, last)


@torch.library.register_fake("attn_kernels::fwd", lib=_lib)
def _(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return empty_in_layout(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=lse_dtype)


@torch.library.register_fake("attn_kernels::bwd", lib=_lib)
def _(grad_out: Any, grad_lse: Any, out: Any, lse: Any, *args: Any) -> tuple[Tensor, ...]:
    q, k, v, rel_k, rel_v, q_rel = args[:N_TENSORS]
    tables = [q.new_empty(0 if x is None else x.shape) for x in (rel_k, rel_v)]
    grad_q_rel = q.new_empty(0) if q_rel is None else empty_in_layout(q_rel, q.shape[-1])
    return (*(empty_in_layout(x, x.shape[-1]) for x in (q, k, v)), *tables, grad_q_rel)


# --- GPUs ---


def _register_triton(name: str) -> None:
    """CPU implementations come from csrc/bindings.cpp; Triton is imported by the first call."""

    def call(*args: Any) -> Any:
        from .. import triton

        return getattr(triton, name)(*args)

    _lib.impl(name, call, "CUDA")


_register_triton("fwd")
_register_triton("bwd")


# --- Autograd ---


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:N_SAVED])
    ctx.settings = inputs[N_SAVED:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    out, lse, *inputs = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    arguments = (grad_out, grad_lse, out, lse, *inputs, *ctx.settings)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(out.device.type):
        grads = bwd(*arguments)
    elif _transformed():
        grads = _Backward.apply(*arguments)
    elif torch.is_grad_enabled():  # create_graph=True: raises when it is differentiated again
        grads = bwd(*arguments)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            grads = bwd(*arguments)
    given = (g if x is not None else None for g, x in zip(grads, inputs[:N_TENSORS], strict=True))
    return (*given, *[None] * (N_SAVED - N_TENSORS + len(ctx.settings)))


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


torch.library.register_autograd("attn_kernels::fwd", _backward, setup_context=_save, lib=_lib)
torch.library.register_autograd("attn_kernels::bwd", _double_backward, lib=_lib)


# torch.func's transforms take a Function, not an operator with a derivative of its own. Both
# operators have one: a gradient that torch.func takes is always prepared for a second one.


class _Backward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return bwd(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    backward = staticmethod(_double_backward)
    jvp = staticmethod(_forward_mode)


class _Forward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return fwd(*inputs)

    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)
    jvp = staticmethod(_forward_mode)


class _Eager(torch.autograd.Function):
    """fwd and its gradient outside of transforms and compilers, where the operator's own autograd
    costs 100 us and a Function with setup_context 40."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = fwd(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


def call(*inputs: Any) -> tuple[Tensor, Tensor]:
    """fwd by the shortest way: an operator's own autograd costs 8 us even without gradients."""
    if torch.compiler.is_compiling():
        if forward_ad._current_level >= 0:  # the compiler would leave its tangent out
            _forward_mode(None)
        return fwd(*inputs)
    if _transformed():
        return _Forward.apply(*inputs)
    if torch.is_grad_enabled():
        for x in inputs[:N_TENSORS]:
            if x is not None and x.requires_grad:  # autocast's casts belong to the graph
                if torch.is_autocast_enabled(x.device.type) or torch.jit.is_tracing():
                    return fwd(*inputs)  # a traced program takes operators only
                return _Eager.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return fwd(*inputs)


# --- Autocast ---


def _register_autocast(op: Any, device: str) -> None:
    """Inside autocast every floating tensor but lse is cast, as for torch's own attention."""
    key = f"Autocast{device.upper()}"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    floats = (torch.float32, torch.float16, torch.bfloat16)
    keep = {"lse", "grad_lse"}
    names = [argument.name for argument in op._schema.arguments]

    def cast_and_call(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        args = tuple(
            x.to(dtype) if isinstance(x, Tensor) and x.dtype in floats and name not in keep else x
            for name, x in zip(names, args, strict=True)
        )
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*args)

    _lib.impl(op._schema.name.split("::")[1], cast_and_call, key)


for _device in ("cpu", "cuda"):
    _register_autocast(fwd, _device)
    _register_autocast(bwd, _device)


# --- vmap ---


def _per_sample(op: Any, n: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """One call per sample: for lengths or offsets that differ between samples."""
    results = []
    for i in range(n):
        sample = [
            x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x
            for x, dim in zip(args, in_dims, strict=True)
        ]
        results.append(op(*sample))
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


def _vmap(op: Any, n_before: int) -> Any:
    """The batching rule: samples become heads, so that each keeps tables of its own."""
    tensors = slice(n_before, n_before + N_TENSORS)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        n = info.batch_size
        entries = in_dims[tensors.stop : tensors.stop + N_ENTRIES]
        if any(dim is not None for dim in entries):
            return _per_sample(op, n, in_dims, args)
        q = args[n_before]
        heads = (q if in_dims[n_before] is None else q.select(in_dims[n_before], 0)).shape[1]

        def fold(x: Any, dim: int | None, head_dim: int, n_heads: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.unsqueeze(0).expand(n, *x.shape) if dim is None else x.movedim(dim, 0)
            if n_heads is not None:
                x = x.expand(n, n_heads, *x.shape[2:])
            return x.movedim(0, head_dim).flatten(head_dim, head_dim + 1)

        def unfold(x: Tensor, head_dim: int) -> Tensor:
            return x.unflatten(head_dim, (n, -1)).movedim(head_dim, 0)

        names = [argument.name for argument in op._schema.arguments]
        folded = []
        for name, x, dim in zip(names, args, in_dims, strict=True):
            table = name in ("rel_k", "rel_v")
            whole = name in ("key_lengths", "query_offsets", "pattern")
            folded.append(x if whole else fold(x, dim, 0 if table else 1, heads if table else None))
        results = []
        for returned, result in zip(op._schema.returns, op(*folded), strict=True):
            if result.dim() == 1:  # the gradient of an absent input
                result = result.new_empty(n, 0)
            elif returned.name in ("grad_rel_k", "grad_rel_v"):
                place = names.index(returned.name.removeprefix("grad_"))
                table, dim = args[place], in_dims[place]
                shared = (table if dim is None else table.select(dim, 0)).shape[0] == 1
                result = unfold(result, 0)
                result = result.sum(1, keepdim=True) if shared and heads > 1 else result
            else:
                result = unfold(result, 1)
            results.append(result)
        return tuple(results), (0,) * len(results)

    return rule


torch.library.register_vmap("attn_kernels::fwd", _vmap(fwd, 0), lib=_lib)
torch.library.register_vmap("attn_kernels::bwd", _vmap(bwd, 4), lib=_lib)
