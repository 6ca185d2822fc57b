"""The operators under torch.func.vmap: samples become heads, so that each keeps its own tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..score.base import TABLE
from .call import ENTRIES, Call
from .ops import bwd, fwd, lib


def _one(x: Any, dim: int | None, sample: int) -> Any:
    """What one sample has of an argument."""
    if isinstance(x, (list, tuple)):
        dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(x)
        return [_one(part, d, sample) for part, d in zip(x, dims, strict=True)]
    return x.select(dim, sample) if isinstance(x, Tensor) and dim is not None else x


def _per_sample(op: Any, n: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """One call per sample: for lengths or offsets that differ between samples."""
    results = []
    for sample in range(n):
        one = [_one(x, dim, sample) for x, dim in zip(args, in_dims, strict=True)]
        results.append(op(*one))
    stacked = pytree.tree_map(lambda *parts: torch.stack(parts), *results)
    return stacked, pytree.tree_map(lambda _: 0, stacked)


def _rule(op: Any, n_before: int) -> Any:
    """The batching rule of an operator with so many tensors before the shared arguments."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        n = info.batch_size
        call = Call(*args[n_before:])
        dims: Any = Call(*in_dims[n_before:])
        if any(getattr(dims, name) is not None for name in ENTRIES):
            return _per_sample(op, n, in_dims, args)
        heads = (call.q if dims.q is None else call.q.select(dims.q, 0)).shape[1]
        kinds = call.kinds()
        term_dims = dims.terms if isinstance(dims.terms, (list, tuple)) else [None] * len(kinds)

        def fold(x: Any, dim: int | None, head_dim: int, n_heads: int | None = None) -> Any:
            if x is None:
                return None
            x = x.unsqueeze(0).expand(n, *x.shape) if dim is None else x.movedim(dim, 0)
            if n_heads is not None:
                x = x.expand(n, n_heads, *x.shape[2:])
            return x.movedim(0, head_dim).flatten(head_dim, head_dim + 1)

        def unfold(x: Tensor, head_dim: int) -> Tensor:
            return x.unflatten(head_dim, (n, -1)).movedim(head_dim, 0)

        terms = [
            fold(x, dim, 0, heads) if kind == TABLE else fold(x, dim, 1)
            for kind, x, dim in zip(kinds, call.terms, term_dims, strict=True)
        ]
        before = [fold(x, dim, 1) for x, dim in zip(args[:n_before], in_dims, strict=False)]
        q, k, v = fold(call.q, dims.q, 1), fold(call.k, dims.k, 1), fold(call.v, dims.v, 1)
        results = op(*before, *call._replace(q=q, k=k, v=v, terms=terms))
        if op is fwd:
            return tuple(unfold(x, 1) for x in results), (0, 0)
        *grads, grad_terms = results
        unfolded = []
        for kind, grad, x, dim in zip(kinds, grad_terms, call.terms, term_dims, strict=True):
            if kind != TABLE:
                unfolded.append(unfold(grad, 1))
                continue
            shared = (x if dim is None else x.select(dim, 0)).shape[0] == 1
            grad = unfold(grad, 0)
            unfolded.append(grad.sum(1, keepdim=True) if shared and heads > 1 else grad)
        returned = (*(unfold(x, 1) for x in grads), unfolded)
        return returned, (0, 0, 0, [0] * len(unfolded))

    return rule


torch.library.register_vmap("attn_kernels::fwd", _rule(fwd, 0), lib=lib)
torch.library.register_vmap("attn_kernels::bwd", _rule(bwd, 4), lib=lib)
