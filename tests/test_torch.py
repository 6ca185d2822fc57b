"""The operators in PyTorch: checked, traced, exported, batched, cast, threaded, forked."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from common import (
    Inputs,
    Target,
    Variant,
    assert_agree,
    draw,
    expanded,
    last_dim_strided,
    make_inputs,
    run,
    sequence_major,
    subprocess_environment,
    with_gaps,
)
from test_causal import variant as causal
from test_local_1d import variant as local_1d
from test_local_2d import variant as local_2d
from test_pattern import scattered
from test_pattern import variant as pattern_variant
from test_relative import variant as relative
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from attn_kernels import (
    Causal,
    Full,
    Local1d,
    Local2d,
    Pattern,
    Relative,
    attention,
    backends,
    causal_attention,
    local_attention_2d,
    relative_attention,
    use_backend,
)
from attn_kernels.core import ops

CAUSAL = causal(None)
RELATIVE = relative("both", Full(), 15, per_head=True, rel_v="shared", q_rel=True)
PATTERN = pattern_variant("scattered", scattered)
VARIANTS = [
    CAUSAL,
    local_1d(4, 2, 3, causal=False),
    local_2d((2, 3), (1, 2), True),
    RELATIVE,
    PATTERN,
]


def inputs_of(variant: Variant, length: int = 12, **settings: Any) -> Inputs:
    two_dimensional = variant.geometry((1, 1)).two_dimensional
    space = (length // 4, 4) if two_dimensional else (length,)
    return make_inputs(variant, space, **({"dim": 8, "value_dim": 6} | settings))


def operator_arguments(target: Target, variant: Variant, x: Inputs) -> tuple[Any, ...]:
    """What attention() hands to the forward operator."""
    space = tuple(x.q.shape[2:-1])
    geometry, table = variant.geometry(space), variant.table
    q, k, v = (t.flatten(2, -2) for t in (x.q, x.k, x.v))
    offsets, offset = x.query_offset, k.shape[2] - q.shape[2]
    names, terms, integers, numbers = "", [], [], []
    if table is not None:
        score = Relative(x.rel_k, x.rel_v, x.q_rel, table.beyond, rel_scale=0.4)
        names, terms, integers, numbers = score.parts(0.3)
    return (
        q, k, v, terms, x.key_lengths, offsets, geometry.table_for(target.name, q.device), offset,
        f"{target.name} {geometry.name} {names}", [*geometry.extent(), *integers], [0.3, *numbers],
    )  # fmt: skip


def with_entries(x: Inputs) -> Inputs:
    return replace(x, key_lengths=torch.tensor([5, 12]), query_offset=torch.tensor([-3, 2]))


OPERATOR_INPUTS = {
    "causal": lambda: (CAUSAL, inputs_of(CAUSAL)),
    "causal-transposed": lambda: (CAUSAL, inputs_of(CAUSAL).map(sequence_major)),
    "causal-gaps": lambda: (CAUSAL, inputs_of(CAUSAL).map(with_gaps)),
    "causal-last-dim": lambda: (CAUSAL, inputs_of(CAUSAL).map(last_dim_strided)),
    "causal-expanded": lambda: (CAUSAL, inputs_of(CAUSAL).map(expanded)),
    "causal-entries": lambda: (CAUSAL, with_entries(inputs_of(CAUSAL))),
    "causal-cross": lambda: (CAUSAL, make_inputs(CAUSAL, (5,), (12,), heads=4, k_heads=2, dim=8)),
    "causal-bfloat16": lambda: (CAUSAL, inputs_of(CAUSAL, dtype=torch.bfloat16)),
    "causal-float64": lambda: (CAUSAL, inputs_of(CAUSAL, dtype=torch.float64)),
    "causal-empty": lambda: (CAUSAL, inputs_of(CAUSAL, batch=0)),
    "local_1d": lambda: (VARIANTS[1], inputs_of(VARIANTS[1])),
    "local_2d": lambda: (VARIANTS[2], inputs_of(VARIANTS[2])),
    "relative": lambda: (RELATIVE, inputs_of(RELATIVE)),
    "relative-transposed": lambda: (RELATIVE, inputs_of(RELATIVE).map(sequence_major)),
    "relative-entries": lambda: (RELATIVE, with_entries(inputs_of(RELATIVE))),
    "pattern": lambda: (PATTERN, inputs_of(PATTERN)),
}


@pytest.mark.parametrize("name", OPERATOR_INPUTS)
def test_opcheck_forward(fused: Target, name: str) -> None:
    """Schema, fake tensors (strides too) and autograd registration of the forward operator."""
    variant, x = OPERATOR_INPUTS[name]()
    leaves = x.map(lambda t: t.detach().requires_grad_())
    torch.library.opcheck(ops.fwd, operator_arguments(fused, variant, leaves))


@pytest.mark.parametrize("name", OPERATOR_INPUTS)
@pytest.mark.parametrize("with_lse", [True, False], ids=["lse", "out"])
def test_opcheck_backward(fused: Target, name: str, with_lse: bool) -> None:
    """Schema and fake tensors (strides too) of the backward operator, with and without grad_lse."""
    variant, x = OPERATOR_INPUTS[name]()
    arguments = operator_arguments(fused, variant, x)
    out, lse = ops.fwd(*arguments)
    grad_out = x.grad_out.flatten(2, -2)
    grad_lse = x.grad_lse.flatten(2).to(lse.dtype) if with_lse else None
    torch.library.opcheck(ops.bwd, (grad_out, grad_lse, out, lse, *arguments))


@pytest.mark.parametrize("wanted", ["q", "k", "v", "rel_k", "rel_v", "q_rel"])
def test_one_gradient_alone(backend: Target, wanted: str) -> None:
    """An input that alone requires a gradient gets the gradient it always gets."""
    x = inputs_of(RELATIVE)
    expected = run(RELATIVE, x, backend=backend.name, return_lse=True)[f"grad_{wanted}"]
    leaf = x.tensors()[wanted].detach().requires_grad_()
    outputs = RELATIVE(replace(x, **{wanted: leaf}), backend=backend.name, return_lse=True)
    (found,) = torch.autograd.grad(outputs, [leaf], (x.grad_out, x.grad_lse))
    assert torch.equal(found, expected)


def test_no_graph_without_need(backend: Target) -> None:
    """Inputs that need no gradient, no_grad and inference_mode record nothing and agree."""
    x = inputs_of(RELATIVE)
    plain = RELATIVE(x, backend=backend.name)
    leaves = x.map(lambda t: t.detach().requires_grad_())
    with torch.no_grad():
        silent = RELATIVE(leaves, backend=backend.name)
    with torch.inference_mode():
        inferred = RELATIVE(x, backend=backend.name)
    assert not plain.requires_grad
    assert not silent.requires_grad
    assert torch.equal(plain, silent)
    assert torch.equal(plain, inferred)


def test_meta() -> None:
    """On "meta" shapes and dtypes come out, forward and backward, in no memory."""
    x = inputs_of(RELATIVE, dtype=torch.bfloat16).map(lambda t: t.to("meta").requires_grad_())
    out, lse = RELATIVE(x, return_lse=True)
    assert (out.shape, out.dtype, out.device.type) == (x.grad_out.shape, torch.bfloat16, "meta")
    assert (lse.shape, lse.dtype) == (out.shape[:3], torch.float32)
    leaves = x.tensors().values()
    for grad, leaf in zip(torch.autograd.grad(out.sum(), list(leaves)), leaves, strict=True):
        assert (grad.shape, grad.dtype) == (leaf.shape, leaf.dtype)


# --- torch.compile, torch.export ---


def mark_lengths(tensors: dict[str, Tensor], two_dimensional: bool) -> None:
    for name, x in tensors.items():
        if name in ("q", "k", "v", "q_rel"):
            for dim in (2, 3) if two_dimensional else (2,):
                torch._dynamo.mark_dynamic(x, dim)


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=["causal", "local_1d", "local_2d", "relative", "pattern"]
)
def test_compile(fused: Target, variant: Variant) -> None:
    """One graph, compiled once, for every length, forward and backward."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    names = list(inputs_of(variant).tensors())

    @torch.compile(backend=counter, fullgraph=True)
    def compiled(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, tensors, strict=True))
        return variant(Inputs(**named), backend=fused.name, return_lse=True)

    for length in (12, 20, 36, 200):
        x = inputs_of(variant, length)
        leaves = x.map(lambda t: t.detach().requires_grad_()).tensors()
        mark_lengths(leaves, x.q.dim() == 5)
        outputs = compiled(*leaves.values())
        grads = torch.autograd.grad(outputs, list(leaves.values()), (x.grad_out, x.grad_lse))
        expected = run(variant, x, backend=fused.name, return_lse=True)
        for found, wanted in zip((*outputs, *grads), expected.values(), strict=True):
            assert torch.equal(found, wanted)
    assert counter.frame_count == 1


def test_compile_a_cache(fused: Target) -> None:
    """Decoding: one graph for every length of the cache, with the offset given or by default."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = causal_attention(q, k, v, query_offset=k.shape[2] - 1, backend=fused.name)
        return given - causal_attention(q, k, v, window=9, backend=fused.name)

    for length in (5, 9, 10, 70):
        q, k, v = (
            torch.randn(2, 2, 1, 8),
            torch.randn(2, 2, length, 8),
            torch.randn(2, 2, length, 8),
        )
        for x in (k, v):
            torch._dynamo.mark_dynamic(x, 2)
        difference = step(q, k, v)
        assert difference.isfinite().all()
        assert bool(difference.any()) == (length > 9)
    assert counter.frame_count == 1


@pytest.mark.parametrize("per_head", ["rel_k", "rel_v"])
def test_compile_a_table_of_each_head(fused: Target, per_head: str) -> None:
    """A parameter's sizes are numbers where the queries' are symbols: 4 heads are 4 heads."""
    torch._dynamo.reset()
    tables = {
        name: nn.Parameter(torch.randn(4 if name == per_head else 1, 20, 8))
        for name in ("rel_k", "rel_v")
    }

    def function(x: Tensor) -> Tensor:
        return relative_attention(x, x, x, **tables, backend=fused.name)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 4, 10, 8), (3, 4, 17, 8)):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), function(x))


def test_compile_numbers_that_change(fused: Target) -> None:
    """Scales, offsets and windows that a compiled function is called with."""
    torch._dynamo.reset()

    def function(x: Tensor, scale: float, offset: int, window: int) -> Tensor:
        return causal_attention(
            x, x, x, scale=scale, query_offset=offset, window=window, backend=fused.name
        )

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    x = torch.randn(2, 2, 9, 8)
    for numbers in ((0.5, 3, 4), (0.7, -2, 5), (-0.1, 0, 3)):
        assert torch.equal(compiled(x, *numbers), function(x, *numbers))


def pattern_of_mask(x: Tensor, mask: Tensor) -> Pattern:
    return Pattern.from_mask(mask)


def pattern_of_function(x: Tensor, mask: Tensor) -> Pattern:
    return Pattern.from_function(lambda i, j: (i + j) % 3 != 0, x.shape[2], x.shape[2])


@pytest.mark.parametrize("make", [pattern_of_mask, pattern_of_function])
def test_compile_a_pattern(fused: Target, make: Callable[..., Pattern]) -> None:
    """A pattern is made between two graphs; where there may be one graph only, that is an error
    with its reason."""
    torch._dynamo.reset()

    def function(x: Tensor, mask: Tensor) -> Tensor:
        return attention(x.sin(), x, x, make(x, mask), backend=fused.name).cos()

    class Model(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return function(x, mask)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter)
    x = torch.randn(2, 2, 9, 8)
    for seed in range(3):
        mask = torch.rand(9, 9, generator=torch.Generator().manual_seed(seed)).to(x.device) < 0.5
        assert torch.equal(compiled(x, mask), function(x, mask))
    assert counter.frame_count >= 2
    reason = "Pattern: a mask is compiled by its values: make the pattern outside of the graph"
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
        torch.compile(function, backend="aot_eager", fullgraph=True)(x, mask)
    with pytest.raises(RuntimeError, match=f"^{reason}$"):
        torch.export.export(Model(), (x, mask), strict=False)


def test_compile_with_inductor(fused: Target) -> None:
    """The default compiler, around other operations and with entries per batch."""
    torch._dynamo.reset()

    def model(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
        out = causal_attention(
            q * 2, k + 1, v.sin(), key_lengths=lengths, query_offset=offsets, backend=fused.name
        )
        return out.cos()

    x = with_entries(inputs_of(CAUSAL, 40))
    results = []
    for function in (model, torch.compile(model, fullgraph=True)):
        q, k, v = (t.detach().requires_grad_() for t in (x.q, x.k, x.v))
        out = function(q, k, v, x.key_lengths, x.query_offset)
        results.append((out, *torch.autograd.grad(out, (q, k, v), x.grad_out)))
    torch.testing.assert_close(results[1], results[0])


class Block(nn.Module):
    """One relative self-attention, as a model holds it."""

    def __init__(self, backend: str | None, heads: int = 2, dim: int = 8) -> None:
        super().__init__()
        self.backend, self.heads = backend, heads
        self.qkv = nn.Linear(heads * dim, 3 * heads * dim)
        self.rel_k = nn.Parameter(torch.randn(heads, 9, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(2, 0).transpose(2, 3)
        out = relative_attention(q, k, v, self.rel_k, backend=self.backend)
        return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("chosen", [True, False], ids=["explicit", "automatic"])
def test_export(fused: Target, chosen: bool) -> None:
    """An exported program runs at every length, whoever chose the backend."""
    block = Block(fused.name if chosen else None).eval()
    x = torch.randn(2, 12, 16)
    dynamic = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    program = torch.export.export(block, (x,), dynamic_shapes=dynamic)
    assert "attn_kernels.fwd" in str(program.graph)
    for shape in ((2, 12, 16), (3, 5, 16), (1, 100, 16)):
        y = torch.randn(shape)
        torch.testing.assert_close(program.module()(y), block(y))


@pytest.mark.parametrize("pair", [tuple, list, torch.Size], ids=lambda pair: pair.__name__)
def test_export_canvas(fused: Target, pair: Callable) -> None:
    """The canvas of a 2-D operation may be dynamic too, however its block is written."""

    class Local(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            options = {"block": pair((2, 3)), "halo": pair((1, 2)), "backend": fused.name}
            return local_attention_2d(q, k, v, **options)

    rows, cols = torch.export.Dim("rows", min=2), torch.export.Dim("cols", min=2)
    x = inputs_of(VARIANTS[2], value_dim=8)
    program = torch.export.export(
        Local(), (x.q, x.k, x.v), dynamic_shapes=({2: rows, 3: cols},) * 3
    )
    for canvas in ((3, 4), (8, 5), (2, 11)):
        q, k, v = torch.randn(3, 2, 2, *canvas, 8)
        torch.testing.assert_close(program.module()(q, k, v), Local()(q, k, v))


@pytest.mark.parametrize("strict", [False, True])
def test_export_an_offset(fused: Target, strict: bool) -> None:
    """An offset and a window that follow from a size do not limit it."""

    class Step(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            near = causal_attention(
                q, k, k, query_offset=k.shape[2] - 1, window=k.shape[2] - 2, backend=fused.name
            )
            return near + causal_attention(q, k, k, backend=fused.name)

    length = torch.export.Dim("length", min=4)
    q, k = torch.randn(2, 2, 1, 8), torch.randn(2, 2, 9, 8)
    program = torch.export.export(
        Step(), (q, k), dynamic_shapes=({}, {2: length}), strict=strict
    ).module()
    for n in (4, 9, 70):
        k = torch.randn(2, 2, n, 8)
        torch.testing.assert_close(program(q, k), Step()(q, k))


# --- torch.jit.trace ---


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("offset", ["default", "given"])
def test_trace_a_cache(fused: Target, offset: str) -> None:
    """A traced call takes other lengths too: the offset is computed as in the program."""

    def step(q: Tensor, k: Tensor) -> Tensor:
        given = {} if offset == "default" else {"query_offset": k.shape[2] - q.shape[2] - 1}
        return causal_attention(q, k, k, backend=fused.name, **given)

    q = torch.randn(2, 2, 3, 24)
    traced = torch.jit.trace(step, (q, torch.randn(2, 2, 9, 24)))
    for n in (9, 4, 70):
        k = torch.randn(2, 2, n, 24)
        assert torch.equal(traced(q, k), step(q, k))


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
def test_a_traced_canvas_is_its_own(fused: Target) -> None:
    """A canvas is a constant of the trace. With another one the kernels would leave its memory."""
    if fused.name != "cpu":
        pytest.skip("only the CPU operator checks its canvas")
    function = VARIANTS[2].call
    x = torch.randn(1, 1, 6, 4, 8)
    traced = torch.jit.trace(lambda x: function(Inputs(x, x, x), backend=fused.name), (x,))
    assert torch.equal(traced(x), function(Inputs(x, x, x), backend=fused.name))
    arguments = operator_arguments(fused, VARIANTS[2], Inputs(x, x, x))
    with pytest.raises(RuntimeError, match="attn_kernels: the geometry does not fit q"):
        ops.fwd(*arguments[:-2], [40, 40, 2, 3, 1, 2, 1], [0.3])
    with pytest.raises(RuntimeError):
        traced(torch.randn(1, 1, 5, 5, 8))


# --- torch.func ---


def one_by_one(function: Callable, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> Any:
    """What vmap means: one call per sample, stacked."""
    n = next(x.shape[dim] for x, dim in zip(args, in_dims, strict=True) if dim is not None)
    results = [
        function(
            *(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))
        )
        for i in range(n)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def check_vmap(function: Callable, in_dims: tuple[int | None, ...], *args: Tensor) -> None:
    """vmap, and vmap of the gradient of every floating argument."""
    expected = one_by_one(function, in_dims, args)
    actual = torch.vmap(function, in_dims)(*args)
    assert_agree(actual, expected, 1e-10)

    def loss(*args: Tensor) -> Tensor:
        result = function(*args)
        parts = (result,) if isinstance(result, Tensor) else result
        return sum((part.sin()).sum() for part in parts)

    floating = tuple(i for i, x in enumerate(args) if x.is_floating_point())
    gradient = torch.func.grad(loss, argnums=floating)
    expected = one_by_one(gradient, in_dims, args)
    actual = torch.vmap(gradient, in_dims)(*args)
    assert_agree(actual, expected, 1e-10)


def drawn(*shape: int) -> Tensor:
    return draw(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_vmap_over_inputs(backend: Target) -> None:
    """Samples in different dimensions of q, k, v, and a k that all samples share."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return causal_attention(q, k, v, backend=backend.name, return_lse=True)

    q, k, v = drawn(3, 2, 4, 7, 5), drawn(2, 2, 3, 9, 5), drawn(2, 2, 9, 6, 3)
    check_vmap(function, (0, 2, 4), q, k, v)
    check_vmap(function, (0, None, None), q, k[:, :, 0], v[..., 0])
    check_vmap(function, (None, 2, None), q[0], k, v[..., 0])


def test_vmap_over_a_pattern(backend: Target) -> None:
    """All samples share one pattern."""
    pattern = PATTERN.geometry((4,))

    def function(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attention(q, k, v, pattern, backend=backend.name, return_lse=True)

    check_vmap(
        function, (0, None, 0), drawn(3, 2, 4, 7, 5), drawn(2, 2, 9, 5), drawn(3, 2, 2, 9, 6)
    )


@pytest.mark.parametrize("table_heads", [1, 4])
def test_vmap_over_tables(backend: Target, table_heads: int) -> None:
    """An ensemble: every sample has tables of its own, shared between heads or one for each."""

    def function(q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor, rel_v: Tensor) -> Tensor:
        return relative_attention(q, k, v, rel_k, rel_v=rel_v, causal=False, backend=backend.name)

    q, k, v = drawn(2, 4, 7, 5), drawn(2, 2, 7, 5), drawn(2, 2, 7, 6)
    rel_k, rel_v = drawn(3, table_heads, 5, 5), drawn(3, 1, 5, 6)
    check_vmap(function, (None, None, None, 0, 0), q, k, v, rel_k, rel_v)
    check_vmap(function, (None, None, None, 0, None), q, k, v, rel_k, rel_v[0])
    samples = torch.stack([q, q + 1, q * 2])
    check_vmap(function, (0, None, None, None, None), samples, k, v, rel_k[0], rel_v[0])
    check_vmap(function, (0, None, None, None, 0), samples, k, v, rel_k[0], rel_v)


def test_vmap_over_entries(backend: Target) -> None:
    """Lengths and offsets that differ between samples."""

    def function(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
        return causal_attention(
            q, k, v, key_lengths=lengths, query_offset=offsets, backend=backend.name
        )

    q, k, v = drawn(2, 2, 7, 5), drawn(2, 2, 9, 5), drawn(2, 2, 9, 6)
    lengths, offsets = (
        torch.tensor([[9, 4], [0, 7], [1, 9]]),
        torch.tensor([[2, 0], [5, -3], [2, 2]]),
    )
    check_vmap(function, (None, None, None, 0, None), q, k, v, lengths, offsets[0])
    check_vmap(function, (None, None, None, None, 0), q, k, v, lengths[0], offsets)
    check_vmap(function, (0, None, None, 0, 0), torch.stack([q, q + 1, -q]), k, v, lengths, offsets)


def test_func_grad_and_jacrev(backend: Target) -> None:
    """torch.func agrees with autograd; jacrev batches the backward operator over its gradients."""
    q, k, v, rel_k = drawn(1, 2, 4, 3), drawn(1, 1, 5, 3), drawn(1, 1, 5, 2), drawn(2, 4, 3)

    def function(q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor) -> Tensor:
        return relative_attention(q, k, v, rel_k, backend=backend.name)

    everything = (0, 1, 2, 3)
    gradients = torch.func.grad(lambda *x: function(*x).sin().sum(), everything)(q, k, v, rel_k)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, rel_k)]
    expected = torch.autograd.grad(function(*leaves).sin().sum(), leaves)
    assert_agree(gradients, expected, 1e-12)
    jacobians = torch.func.jacrev(function, everything)(q, k, v, rel_k)
    expected = torch.autograd.functional.jacobian(function, (q, k, v, rel_k))
    assert_agree(jacobians, expected, 1e-12)


def test_double_backward(fused: Target) -> None:
    """The kernels are differentiable once: the second time is a clear error, never a wrong value.

    The way out that it names gives the second derivative.
    """
    q, k, v = drawn(1, 2, 4, 3), drawn(1, 2, 4, 3), drawn(1, 2, 4, 3)

    def penalty(backend: str) -> tuple[Tensor, Tensor]:
        leaf = q.clone().requires_grad_()
        out = causal_attention(leaf, k, v, backend=backend)
        (grad,) = torch.autograd.grad(out.sin().sum(), leaf, create_graph=True)
        return leaf, grad.square().sum()

    leaf, loss = penalty(fused.name)
    with pytest.raises(NotImplementedError) as error:
        torch.autograd.grad(loss, leaf)
    text = "attn_kernels: the fused kernels are differentiable once; "
    assert str(error.value) == text + 'backend="reference" is any number of times'

    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.func.grad(lambda x: func_penalty(x, k, v, fused.name))(q)

    q, k, v = (x.double() for x in (q, k, v))
    leaf, loss = penalty("reference")
    (found,) = torch.autograd.grad(loss, leaf)
    step = 1e-6 * drawn(1, 2, 4, 3).double()
    with torch.enable_grad():
        before, after = (penalty_at(q + sign * step, k, v) for sign in (-1, 1))
    torch.testing.assert_close((found * step).sum() * 2, after - before, rtol=1e-6, atol=1e-12)


def func_penalty(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """penalty_at, the torch.func way."""

    def loss(x: Tensor) -> Tensor:
        return causal_attention(x, k, v, backend=backend).sin().sum()

    return torch.func.grad(loss)(q).square().sum()


def penalty_at(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The squared gradient norm that test_double_backward differentiates."""
    leaf = q.clone().requires_grad_()
    out = causal_attention(leaf, k, v, backend="reference")
    return torch.autograd.grad(out.sin().sum(), leaf)[0].square().sum()


def with_tangent(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The tangent that forward-mode differentiation gives the result."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x))).tangent


def through_grad_out(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Forward mode through a gradient's gradient alone, which is linear in it."""
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    return with_tangent(lambda grad: torch.autograd.grad(out, leaf, grad)[0], torch.ones_like(out))


FORWARD_MODES = {
    "dual": with_tangent,
    "dual-of-parameter": lambda f, x: with_tangent(f, x.clone().requires_grad_()),
    "dual-without-grad": lambda f, x: torch.no_grad()(with_tangent)(f, x),
    "grad_out": through_grad_out,
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "linearize": lambda f, x: torch.func.linearize(f, x)[1](x),
    "compiled": lambda f, x: torch.compile(
        lambda y: torch.func.jvp(f, (y,), (y,))[1], backend="aot_eager"
    )(x),
}


@pytest.mark.parametrize("mode", FORWARD_MODES)
def test_forward_mode(fused: Target, mode: str) -> None:
    """The kernels have no forward mode: a clear error, never a tangent that is left out."""
    torch._dynamo.reset()
    q, k, v = (drawn(1, 2, 4, 3) for _ in range(3))

    def function(x: Tensor) -> Tensor:
        return causal_attention(x, k, v, backend=fused.name)

    with pytest.raises(NotImplementedError) as error:
        FORWARD_MODES[mode](function, q)
    text = "attn_kernels: the fused kernels have no forward-mode derivative; "
    assert str(error.value) == text + 'backend="reference" has one'


def test_forward_mode_of_the_reference() -> None:
    """The way out that the error names."""
    q, k, v = (drawn(1, 2, 4, 3) for _ in range(3))

    def function(x: Tensor) -> Tensor:
        return causal_attention(x, k, v, backend="reference")

    found = with_tangent(function, q)
    step = 1e-4
    expected = (function(q * (1 + step)) - function(q * (1 - step))) / (2 * step)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


# --- Autocast ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend: Target, dtype: torch.dtype) -> None:
    """Inside autocast the kernel computes in its dtype, and gradients reach float32 parameters."""
    torch.manual_seed(0)
    block, x = Block(backend.name), torch.randn(2, 20, 16)
    expected = block(x)
    expected_grads = torch.autograd.grad(expected.sum(), list(block.parameters()))
    with torch.autocast(backend.device, dtype=dtype):
        out = block(x)
    assert out.dtype == dtype
    grads = torch.autograd.grad(out.float().sum(), list(block.parameters()))
    tolerance = 16 * torch.finfo(dtype).eps
    for found, wanted in zip((out.float(), *grads), (expected, *expected_grads), strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_autocast_casts_every_input_but_float64(backend: Target) -> None:
    """Mixed inputs meet in autocast's dtype; lse stays float32; float64 stays what it is."""
    x = make_inputs(RELATIVE, (20,))
    half = x.to(torch.bfloat16)
    mixed = replace(x, q=half.q, v=half.v, rel_v=half.rel_v)
    expected = RELATIVE(half, backend=backend.name, return_lse=True)
    wide = x.to(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = RELATIVE(mixed, backend=backend.name, return_lse=True)
        untouched = RELATIVE(wide, backend=backend.name)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close((out, lse), expected, rtol=2e-2, atol=2e-2)
    assert untouched.dtype == torch.float64
    assert torch.equal(untouched, RELATIVE(wide, backend=backend.name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64], ids=str)
def test_autocast_mixes_what_it_casts(backend: Target, dtype: torch.dtype) -> None:
    """What autocast leaves alone has to be of one dtype, as without it."""
    q, k, v = torch.ones(3, 1, 2, 4, 8)
    text = f"k must have dtype float32 like q, got {str(dtype)[6:]}"
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        with pytest.raises(ValueError, match=f"^{text}$"):
            causal_attention(q, k.to(dtype), v, backend=backend.name)
        with pytest.raises(ValueError, match="k must have dtype float64 like q, got float32"):
            causal_attention(q.double(), k, v, backend="reference")


# --- Threads and processes ---


def test_thread_count_is_obeyed(fused: Target, thread_count: None) -> None:
    """With one thread nobody else works: the process's CPU time is the calling thread's."""
    x = make_inputs(CAUSAL, (1024,), heads=4, dim=64)
    shares = {}
    for threads in (2, 1):
        torch.set_num_threads(threads)
        run(CAUSAL, x, backend=fused.name, return_lse=True)
        time.sleep(0.2)  # threads of the last parallel region spin for a while
        own, everyone = time.thread_time(), time.process_time()
        while time.thread_time() - own < 0.5:
            run(CAUSAL, x, backend=fused.name, return_lse=True)
        shares[threads] = (time.process_time() - everyone) / (time.thread_time() - own)
    assert shares[1] < 1.1
    assert shares[2] > 1.5


def test_several_python_threads(backend: Target) -> None:
    """Callers from several threads at once do not disturb each other, forward or backward."""
    calls = [
        (variant, inputs_of(variant, 40, seed=seed))
        for variant, seed in itertools.product(VARIANTS, range(4))
    ]

    def compute(call: tuple[Variant, Inputs]) -> dict[str, Tensor]:
        return run(*call, backend=backend.name, return_lse=True)

    expected = [compute(call) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for actual, wanted in zip(pool.map(compute, calls), expected, strict=True):
                for name, x in wanted.items():
                    assert torch.equal(actual[name], x), name


FORK = """
import os, sys, torch
from attn_kernels import causal_attention

def compute():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 300, 16, requires_grad=True) for _ in range(3))
    out = causal_attention(q, k, v, backend=sys.argv[1])
    return torch.cat([x.flatten() for x in torch.autograd.grad(out.sin().sum(), (q, k, v))])

torch.set_num_threads(2)
expected = compute() if sys.argv[2] == "used" else None
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # as a DataLoader's workers do: OpenMP's threads do not survive a fork
    actual = compute()
    os._exit(0 if expected is None or torch.equal(actual, expected) else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
compute()
sys.exit(status)
"""


@pytest.mark.parametrize("before", ["used", "unused"])
def test_after_fork(fused: Target, before: str) -> None:
    """A forked child computes, whether or not its parent has: no lock or thread is left behind."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, fused.name, before]
    environment = subprocess_environment()
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


# --- Values that travel ---


GEOMETRIES = [
    Full(), Causal(), Causal(7), Local1d(4, 4), Local1d(4, 2, 3, causal=False),
    Local2d((6, 8), (2, 3), (1, 2)), Local2d((6, 8), (2, 3), (1, 2), causal=True),
    Pattern.from_function(lambda i, j: i != j, 7, 9),
]  # fmt: skip


def test_geometries_are_values() -> None:
    """Equal by value, hashable, frozen, and the same after pickle and deepcopy."""
    assert len(set(GEOMETRIES)) == len(GEOMETRIES)
    for geometry in GEOMETRIES:
        for again in (pickle.loads(pickle.dumps(geometry)), copy.deepcopy(geometry)):
            assert again == geometry
            assert hash(again) == hash(geometry)
            assert again.extent() == geometry.extent()
        with pytest.raises(AttributeError):
            geometry.causal = True
    assert Causal(7) != Causal(8)
    assert Local1d(4, 4) != Local1d(4, 4, causal=False)


# --- Choosing a backend ---


def test_backends_tells_what_runs_here() -> None:
    """Every backend by name, with a reason where it does not run."""
    found = backends()
    assert list(found) == ["cpu", "triton", "reference"]
    assert found["reference"].available
    for name, status in found.items():
        assert status.name == name
        assert status.available == (status.reason == "")


def test_use_backend(backend: Target) -> None:
    """Within the context it is the default; an explicit backend wins; it nests and always ends."""
    x = inputs_of(CAUSAL)
    other = "triton" if backend.device == "cpu" else "cpu"  # runs no tensor that lies here
    with use_backend(other):
        with pytest.raises(RuntimeError, match=f'^backend="{other}"'):
            causal_attention(x.q, x.k, x.v)
        with use_backend(backend.name):
            inner = causal_attention(x.q, x.k, x.v)
        explicit = causal_attention(x.q, x.k, x.v, backend=backend.name)
        with use_backend(None):
            causal_attention(x.q, x.k, x.v, backend="reference")
    assert torch.equal(inner, explicit)
    with pytest.raises(KeyError), use_backend(other):
        raise KeyError
    causal_attention(x.q, x.k, x.v, backend=backend.name)
    with use_backend("reference"):
        assert attention(x.q, x.k, x.v).shape == x.grad_out.shape


def test_the_chosen_backend_computes(fused: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """backend=None takes the kernels, never the reference, for inputs that they can take."""
    monkeypatch.setattr("attn_kernels.core.reference.attention", None)
    x = inputs_of(RELATIVE)
    score = Relative(x.rel_k, x.rel_v, x.q_rel)
    chosen = attention(x.q, x.k, x.v, Full(), score)
    assert torch.equal(chosen, attention(x.q, x.k, x.v, Full(), score, backend=fused.name))
