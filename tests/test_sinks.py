"""Sinks: a key without a value that every query sees, on every backend and operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import Target, most_exact_dtype
from torch import Tensor

from attn_kernels import (
    Causal,
    Full,
    Pattern,
    Relative,
    attention,
    causal_attention,
    local_attention_1d,
    local_attention_2d,
    relative_attention,
)


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """As GPT-OSS computes it: one logit more for each query, whose weight is then dropped."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    column = sinks.to(q.dtype).view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
    logits = torch.cat([logits, column], -1)
    return logits.softmax(-1)[..., :-1] @ v, logits.logsumexp(-1)


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=most_exact_dtype(), requires_grad=True) for shape in shapes]


def test_a_logit_in_the_denominator(backend: Target) -> None:
    """Values, lse and every gradient, with grouped heads; all queries see a key."""
    q, k, v, sinks = inputs = leaves((2, 4, 30, 8), (2, 2, 50, 8), (2, 2, 50, 6), (4,))
    seen = torch.arange(50) <= torch.arange(30).unsqueeze(1) + 20
    found = causal_attention(q, k, v, sinks=sinks, return_lse=True, backend=backend.name)
    expected = dense(q, k, v, seen, sinks)
    torch.testing.assert_close(found, expected)
    grads = [torch.randn_like(x) for x in expected]
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, grads),
        torch.autograd.grad(expected, inputs, grads),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("sink", [0.5, -torch.inf])
def test_a_query_without_keys_keeps_nothing(backend: Target, sink: float) -> None:
    """It gives 0 and -inf, and zero gradients, for the sinks too; also if the sink is none."""
    q, k, v, sinks = inputs = leaves(*[(1, 2, 5, 4)] * 3, (2,))
    sinks.detach().fill_(sink)
    out, lse = attention(
        q, k, v, Causal(), query_offset=-3, sinks=sinks, return_lse=True, backend=backend.name
    )
    assert (out[:, :, :3] == 0).all()
    assert (lse[:, :, :3] == -torch.inf).all()
    assert lse[:, :, 3:].isfinite().all()
    out[:, :, :3].sum().backward()
    assert all((x.grad == 0).all() for x in inputs)


@pytest.mark.parametrize("sink", [-1e30, 1e30, -torch.inf])
def test_extreme_sinks(backend: Target, sink: float) -> None:
    """One that nothing reaches leaves attention as it is, one above all takes everything."""
    q, k, v = leaves(*[(1, 2, 6, 4)] * 3)
    out = attention(q, k, v, sinks=torch.full((2,), sink), backend=backend.name)
    plain = attention(q, k, v, backend=backend.name)
    torch.testing.assert_close(out, torch.zeros_like(out) if sink > 0 else plain)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_their_own(backend: Target, dtype: torch.dtype) -> None:
    """Sinks may be of another dtype than q, and have the gradient in their own."""
    q = torch.randn(1, 2, 8, 16, dtype=torch.bfloat16)
    sinks = torch.randn(2, dtype=dtype, requires_grad=True)
    out, lse = causal_attention(q, q, q, sinks=sinks, return_lse=True, backend=backend.name)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    out.sum().backward()
    assert sinks.grad.dtype == dtype


def test_every_operation_takes_them(backend: Target) -> None:
    """The same call with sinks that nothing reaches is the call without."""
    q, image = torch.randn(1, 2, 12, 8), torch.randn(1, 2, 3, 4, 8)
    calls: list[Any] = [
        lambda **x: attention(q, q, q, Full(), Relative(torch.ones(1, 5, 8)), **x),
        lambda **x: attention(q, q, q, Pattern.from_function(lambda i, j: i >= j, 12, 12), **x),
        lambda **x: relative_attention(q, q, q, torch.ones(2, 5, 8), **x),
        lambda **x: local_attention_1d(q, q, q, block=4, look_back=2, **x),
        lambda **x: local_attention_2d(image, image, image, block=(2, 2), halo=(1, 1), **x),
    ]
    for call in calls:
        found = call(sinks=torch.full((2,), -1e4), return_lse=True, backend=backend.name)
        torch.testing.assert_close(found, call(return_lse=True, backend=backend.name))
