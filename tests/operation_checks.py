"""What every operation must do: one test each, which every operation's file inherits in order."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from common import (
    DTYPES,
    LAYOUTS,
    OVERLAPS,
    Inputs,
    Target,
    Variant,
    assert_close_in_float64,
    check_against_reference,
    expanded,
    in_own_dtype,
    make_inputs,
    pairs,
    rows_read,
    run,
    run_truth,
    subprocess_environment,
)
from torch import Tensor

from attn_kernels import explain

Space = tuple[int, ...]  # a length or a canvas
Shape = tuple[Space, Space]  # of queries, of keys


def parameter_id(value: Any) -> str:
    """Readable ids: a space is 7x10, a cross 3-65."""
    if isinstance(value, tuple):
        separator = "-" if value and isinstance(value[0], tuple) else "x"
        return separator.join(map(parameter_id, value))
    return str(value).replace(" ", "").removeprefix("torch.")


class OperationTests:
    """The tests. An operation gives its variants, and a few of them for the tests where the variant
    is not the point; the spaces (lengths or canvases) come from the number of dimensions.
    """

    variants: ClassVar[list[Variant]]
    few: ClassVar[list[Variant]]

    dimensions: ClassVar[int]
    spaces: ClassVar[list[Space]]
    gradient_spaces: ClassVar[list[Space]]
    float64_spaces: ClassVar[list[Space]]
    crosses: ClassVar[list[Shape]]
    shapes: ClassVar[list[Shape]]
    dtype_shapes: ClassVar[list[Shape]]
    long_shapes: ClassVar[list[Shape]]
    empty_shapes: ClassVar[list[Shape]]
    offsets: ClassVar[list[Any]]
    tiny: ClassVar[Shape]
    medium: ClassVar[Space]
    large: ClassVar[Space]

    def offsets_without_keys(self, keys: int) -> list[Any]:
        """Offsets, of three batch entries, that put queries where no key can be seen."""
        if self.dimensions == 2:
            return []
        return [-keys // 2, torch.tensor([-keys, 0, 2 * keys])]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each class has its own variants and spaces, so decorators cannot name them."""
        cls = metafunc.cls
        lists = {
            "variant": cls.variants,
            "main_variant": cls.few,
            "space": cls.spaces,
            "gradient_space": cls.gradient_spaces,
            "float64_space": cls.float64_spaces,
            "cross": cls.crosses,
            "shape": cls.shapes,
            "dtype_shape": cls.dtype_shapes,
            "long_shape": cls.long_shapes,
            "empty_shape": cls.empty_shapes,
            "offset": cls.offsets,
        }
        for name, values in lists.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values, ids=parameter_id)

    def test_forward(self, backend: Target, variant: Variant, space: Space) -> None:
        """Values of out and lse around the edges of tiles and vectors."""
        inputs = make_inputs(variant, space)
        check_against_reference(variant, inputs, backend, gradients=False)
        alone = variant(inputs, backend=backend.name)
        both = variant(inputs, backend=backend.name, return_lse=True)
        assert torch.equal(alone, both[0])

    def test_gradients(self, backend: Target, variant: Variant, gradient_space: Space) -> None:
        """Gradients of every input, tables included, through out and lse at once."""
        check_against_reference(variant, make_inputs(variant, gradient_space), backend)

    def test_float64(self, backend: Target, variant: Variant, float64_space: Space) -> None:
        """No approximation hides in the kernels: float64 agrees to 1e-11."""
        inputs = make_inputs(variant, float64_space, dtype=torch.float64)
        check_against_reference(variant, inputs, backend)

    def test_gradcheck(self, backend: Target, variant: Variant) -> None:
        """The kernels' own gradients are the derivatives of the kernels' own values."""
        q_space, k_space = self.tiny
        if variant.table is not None:  # 13 rows are beyond every distance here
            variant = replace(
                variant, table=replace(variant.table, rows=min(variant.table.rows, 13))
            )
        inputs = make_inputs(
            variant, q_space, k_space,
            batch=1, k_heads=1, dim=3, value_dim=2, dtype=torch.float64,
        )  # fmt: skip
        names = list(inputs.tensors())

        def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(names, tensors, strict=True))
            return variant(replace(inputs, **named), backend=backend.name, return_lse=True)

        leaves = [x.requires_grad_() for x in inputs.tensors().values()]
        assert torch.autograd.gradcheck(call, leaves)

    @pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
    def test_strided_inputs(
        self, backend: Target, variant: Variant, shape: Shape, layout: Callable[[Tensor], Tensor]
    ) -> None:
        """Any strides: every kernel reads by them, and gaps in memory (NaN here) are never read."""
        inputs = in_own_dtype(make_inputs(variant, *shape), backend)
        grads = {name: layout(getattr(inputs, name)) for name in ("grad_out", "grad_lse")}
        if layout is expanded:  # the gradient of out.sum()
            grads["grad_out"] = inputs.grad_out.new_ones(()).expand(inputs.grad_out.shape)
        check_against_reference(variant, replace(inputs.map(layout), **grads), backend)

    @pytest.mark.parametrize("dtype", DTYPES, ids=parameter_id)
    @pytest.mark.parametrize("layout", OVERLAPS, ids=lambda layout: layout.__name__)
    def test_overlapping_inputs(
        self,
        backend: Target,
        main_variant: Variant,
        shape: Shape,
        layout: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
    ) -> None:
        """Nor have the numbers of an input places of their own in memory, in any dtype: a copy of
        it in another dtype then has other strides."""
        inputs = make_inputs(main_variant, *shape, dtype=dtype)
        grads = {name: layout(getattr(inputs, name)) for name in ("grad_out", "grad_lse")}
        overlapping = replace(inputs.map(layout), **grads)
        check_against_reference(main_variant, overlapping, backend)

    def test_cross_lengths(self, backend: Target, variant: Variant, cross: Shape) -> None:
        """More keys than queries and the reverse; in 2-D, where lengths agree, long canvases."""
        check_against_reference(variant, make_inputs(variant, *cross), backend)

    @pytest.mark.parametrize("heads", [(4, 2), (3, 1), (22, 1)], ids=parameter_id)
    def test_grouped_queries(
        self, backend: Target, variant: Variant, shape: Shape, heads: tuple[int, int]
    ) -> None:
        """Query head h reads key head h // (H / Hk); gradients of keys sum over the group."""
        inputs = make_inputs(variant, *shape, heads=heads[0], k_heads=heads[1], dim=16)
        check_against_reference(variant, inputs, backend)

    @pytest.mark.parametrize("dims", [(8, 40), (64, 1), (1, 64), (33, 17)], ids=parameter_id)
    def test_value_dim_differs(
        self, backend: Target, variant: Variant, shape: Shape, dims: tuple[int, int]
    ) -> None:
        """Dv and D are two sizes: nothing mixes them up."""
        inputs = make_inputs(variant, *shape, dim=dims[0], value_dim=dims[1])
        check_against_reference(variant, inputs, backend)

    @pytest.mark.parametrize("dim", [1, 3, 8, 17, 40, 64, 80, 96, 128, 256, 512])
    def test_head_dims(
        self, backend: Target, main_variant: Variant, shape: Shape, dim: int
    ) -> None:
        """Every head dimension from 1 to 512, multiples of the vector width or not."""
        inputs = make_inputs(main_variant, *shape, batch=1, dim=dim)
        check_against_reference(main_variant, inputs, backend)

    def test_rows_without_keys(self, backend: Target, variant: Variant, shape: Shape) -> None:
        """A query that sees no key gives out 0, lse -inf and zero gradients."""
        inputs = make_inputs(variant, *shape, batch=3)
        keys = inputs.k[0, 0, ..., 0].numel()
        lengths = torch.tensor([0, keys, 1])
        cases = [replace(inputs, key_lengths=lengths)]
        for offset in self.offsets_without_keys(keys):
            cases.append(replace(inputs, query_offset=offset))
        for case in cases:
            results = check_against_reference(variant, case, backend)
            has_key = pairs(variant, case)[0].any(-1).expand(3, *inputs.q.shape[1:2], -1)
            empty = ~has_key.unflatten(-1, shape[0])
            if case.key_lengths is not None:
                assert empty[0].all()
                assert not results["grad_k"][0].any()
                assert not results["grad_v"][0].any()
            assert not results["out"][empty].any()
            assert (results["lse"][empty] == -math.inf).all()
            assert not results["grad_q"][empty].any()
            if "grad_q_rel" in results:
                assert not results["grad_q_rel"][empty].any()

    @pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
    def test_key_lengths_and_nan(
        self, backend: Target, variant: Variant, shape: Shape, poison: float
    ) -> None:
        """What a key or value that nobody sees holds never reaches an output or a gradient."""
        inputs = in_own_dtype(make_inputs(variant, *shape), backend)
        keys = inputs.k[0, 0, ..., 0].numel()
        inputs = replace(inputs, key_lengths=torch.tensor([keys // 3, keys - 5], dtype=torch.int32))
        seen = pairs(variant, inputs)[0].any(-2).unflatten(-1, shape[1]).unsqueeze(-1)
        assert not seen.all()
        poisoned = replace(
            inputs,
            k=torch.where(seen, inputs.k, poison),
            v=torch.where(seen, inputs.v, poison),
        )
        results = check_against_reference(variant, poisoned, backend)
        clean = run(variant, inputs, backend=backend.name, return_lse=True)
        for name, x in results.items():
            assert torch.equal(x, clean[name]), f"{name} depends on unseen keys"
        unseen = ~seen.expand_as(inputs.k)
        assert not results["grad_k"][unseen].any()
        assert not results["grad_v"][unseen].any()

    @pytest.mark.parametrize("first", [9, 10])
    def test_future_nan(self, backend: Target, variant: Variant, first: int) -> None:
        """Nor what a key holds that comes after every query, where more keys lie behind it: kernels
        that take keys in pairs took the one after the last."""
        if self.dimensions == 2:
            return
        inputs = in_own_dtype(make_inputs(variant, (3,), (70,)), backend)
        inputs = replace(inputs, query_offset=first)
        seen = pairs(variant, inputs)[0].any(-2).unsqueeze(-1)
        k, v = (torch.where(seen, x, math.nan) for x in (inputs.k, inputs.v))
        check_against_reference(variant, replace(inputs, k=k, v=v), backend)

    def test_query_offset(
        self, backend: Target, variant: Variant, shape: Shape, offset: Any
    ) -> None:
        """Query i stands at i + query_offset, an int or one per batch entry; an error in 2-D."""
        inputs = make_inputs(variant, *shape)
        case = replace(inputs, query_offset=offset)
        if self.dimensions == 2:
            with pytest.raises(TypeError, match="unexpected keyword argument 'query_offset'"):
                variant(case, backend=backend.name)
            return
        if isinstance(offset, list):
            case = replace(inputs, query_offset=torch.tensor(offset))
            narrow = replace(inputs, query_offset=torch.tensor(offset, dtype=torch.int32))
            wide, narrow = (
                variant(x, backend=backend.name, return_lse=True) for x in (case, narrow)
            )
            assert torch.equal(wide[0], narrow[0])
            assert torch.equal(wide[1], narrow[1])
        check_against_reference(variant, case, backend)

    def test_values_that_nobody_looks_into(
        self, backend: Target, main_variant: Variant, shape: Shape
    ) -> None:
        """Lengths below 0 and beyond the keys are the nearest there are; and so are offsets beyond
        2**60, where numbers of 64 bits would overflow."""
        inputs = make_inputs(main_variant, *shape, batch=3)
        keys, largest = inputs.k[0, 0, ..., 0].numel(), 2**63 - 1
        cases = [{"key_lengths": ([-5, keys + 9, -largest - 1], [0, keys, 0])}]
        if self.dimensions == 1:
            wild, near = [largest, -largest - 1, 2**60 + 1], [2**60, -(2**60), 2**60]
            cases.append({"query_offset": (wild, near)})
        for case in cases:
            given, meant = (
                replace(inputs, **{name: torch.tensor(values[i]) for name, values in case.items()})
                for i in (0, 1)
            )
            for name in dict.fromkeys((backend.name, "reference")):
                found = run(main_variant, given, backend=name, return_lse=True)
                expected = run(main_variant, meant, backend=name, return_lse=True)
                for part, x in found.items():
                    assert torch.equal(x, expected[part]), (name, part)
            check_against_reference(main_variant, meant, backend)

    def test_extreme_logits(self, backend: Target, variant: Variant, shape: Shape) -> None:
        """Logits of +-1e5: the maximum is subtracted before any exponential, everywhere."""
        inputs = make_inputs(variant, *shape)
        inputs = replace(inputs, q=inputs.q * 1e4, k=inputs.k * 10)
        check_to_the_logits(variant, inputs, backend)

    def test_rising_logits(self, backend: Target, variant: Variant) -> None:
        """Logits that grow with the key: the maximum rises from step to step, and what was summed
        before is rescaled. Standard normal inputs hardly ever need that after the first step."""
        inputs = make_inputs(variant, self.large, self.large)
        length = inputs.k.flatten(2, -2).shape[2]
        ramp = torch.linspace(0, 40, length, dtype=inputs.k.dtype).view(*inputs.k.shape[2:-1], 1)
        inputs = replace(inputs, k=inputs.k * ramp)
        check_to_the_logits(variant, inputs, backend)

    @pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, -30.0])
    def test_scale(self, backend: Target, variant: Variant, shape: Shape, scale: float) -> None:
        """scale is what was given: 0.0 is not "no scale", and a negative one turns the maximum.

        Slack 4: at scale 1.0 (five times the default) the rounding of lse, from which backward
        takes the weights again, is as large as eager's whole error.
        """
        inputs = make_inputs(variant, *shape)
        if abs(scale) > 1:
            check_to_the_logits(variant, inputs, backend, scale=scale)
            return
        results = check_against_reference(variant, inputs, backend, slack=4.0, scale=scale)
        if scale == 0.0:
            assert not results["grad_k"].any()
            if variant.table is None or variant.table.rel_scale is None:
                assert not results["grad_q"].any()

    def test_lse_gradient(self, backend: Target, variant: Variant) -> None:
        """lse alone is differentiable, and so is out alone: the other gradient is then absent."""
        inputs = make_inputs(variant, self.medium)
        wide = inputs.to(torch.float64)

        def gradients(x: Inputs, target: str, place: int) -> dict[str, Tensor | None]:
            leaves = x.map(lambda t: t.detach().requires_grad_())
            outputs = variant(leaves, backend=target, return_lse=True)
            weights = (x.grad_out, x.grad_lse.to(outputs[1].dtype))
            named = leaves.tensors()
            found = torch.autograd.grad(
                outputs[place], list(named.values()), weights[place], allow_unused=True
            )
            return dict(zip(named, found, strict=True))

        for place in (0, 1):
            actual = gradients(inputs, backend.name, place)
            truth = gradients(wide, "reference", place)
            for name, expected in truth.items():
                expected = torch.zeros_like(wide.tensors()[name]) if expected is None else expected
                found = actual[name]
                found = torch.zeros_like(expected) if found is None else found.double()
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5, msg=name)

    def test_empty(self, backend: Target, main_variant: Variant, empty_shape: Shape) -> None:
        """No batch, no heads, no queries or no keys: empty results and gradients, or zeros."""
        cases = [(empty_shape, 2, 2), (self.shapes[-1], 0, 2), (self.shapes[-1], 2, 0)]
        for shape, batch, heads in cases:
            inputs = make_inputs(main_variant, *shape, batch=batch, heads=heads)
            results = run(main_variant, inputs, backend=backend.name, return_lse=True)
            truth = run_truth(main_variant, inputs)
            for name, x in results.items():
                assert x.shape == truth[name].shape, name
                assert torch.equal(x.double(), truth[name]), name

    @pytest.mark.parametrize("dtype", DTYPES, ids=parameter_id)
    def test_dtypes(
        self, backend: Target, variant: Variant, dtype: torch.dtype, dtype_shape: Shape
    ) -> None:
        """Each dtype is at least half as accurate as the eager composition in that dtype."""
        inputs = make_inputs(variant, *dtype_shape, dtype=dtype)
        check_against_reference(variant, inputs, backend)

    def test_long_inputs(self, backend: Target, variant: Variant, long_shape: Shape) -> None:
        """Few heads: keys are cut (forward) or queries are (backward), and parts are merged."""
        inputs = make_inputs(variant, *long_shape, batch=1, heads=2, k_heads=1)
        if backend.name == "cpu":
            q, k, v = (x.flatten(2, -2) for x in (inputs.q, inputs.k, inputs.v))
            plan = explain(q, k, v, variant.geometry(long_shape[0]), backend=backend.name)
            assert plan.key_splits > 1 or plan.query_chunks > 1
        check_against_reference(variant, inputs, backend)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=parameter_id)
    def test_bitwise_repeatable(
        self, backend: Target, variant: Variant, dtype: torch.dtype, thread_count: None
    ) -> None:
        """The same bits from run to run and for any number of threads, gradients included."""
        for shape in ((self.large, self.large), *self.long_shapes):
            inputs = make_inputs(variant, *shape, heads=4, k_heads=2, dtype=dtype)
            results = []
            for threads in (1, 2, 2, 3):
                torch.set_num_threads(threads)
                results.append(run(variant, inputs, backend=backend.name, return_lse=True))
            for name, first in results[0].items():
                for other in results[1:]:
                    assert torch.equal(first, other[name]), f"{name} differs between runs"

    def test_peak_memory_is_linear(self, backend: Target) -> None:
        """Twice the length takes twice the memory, not four times, forward and backward.

        Nothing of Lq x Lk (256 MiB at 8192), nor of Lq x R where a table is that long.
        """
        if backend.name == "reference":
            pytest.skip("the dense reference takes O(Lq * Lk) memory by definition")
        extra = peak_memory(type(self), backend)
        assert extra[8192] <= 2.1 * extra[4096]
        assert extra[8192] < 8192 * 8192 * 4 / 4

    def test_matches_torch_sdpa(self, backend: Target, variant: Variant) -> None:
        """torch's own attention agrees, given the geometry and the score as a dense mask."""
        inputs = make_inputs(variant, self.medium, heads=4, k_heads=2, dtype=torch.float64)

        def sdpa(leaves: Inputs) -> tuple[Tensor, Tensor]:
            out = torch_sdpa(variant, leaves)
            return out, out.new_zeros(out.shape[:-1])

        def ours(leaves: Inputs) -> tuple[Tensor, Tensor]:
            out = variant(leaves, backend=backend.name)
            return out, out.new_zeros(out.shape[:-1])

        expected, actual = run_out(sdpa, inputs), run_out(ours, inputs)
        for name, x in expected.items():
            assert_close_in_float64(name, actual[name], x)


class OneDimensional(OperationTests):
    """Lengths around one and more tiles (64 queries, 32 in float64), vectors (4, 8, 16), key steps.

    Up to four queries take a path of their own (decoding), so what matters runs on both.
    """

    dimensions: ClassVar = 1
    spaces: ClassVar = [(n,) for n in (1, 2, 15, 16, 17, 33, 63, 64, 65, 100, 129, 200, 300)]
    gradient_spaces: ClassVar = [(n,) for n in (1, 2, 15, 17, 33, 64, 129, 300)]
    float64_spaces: ClassVar = [(n,) for n in (1, 2, 31, 32, 33, 65, 129, 300)]
    crosses: ClassVar = [
        ((q_len,), (k_len,))
        for q_len, k_len in (
            (1, 300), (2, 129), (3, 65), (4, 64), (5, 64), (17, 130), (64, 129), (100, 333),
            (65, 64), (130, 17), (200, 1), (3, 1),
        )
    ]  # fmt: skip
    shapes: ClassVar = [((70,), (70,)), ((3,), (70,))]
    dtype_shapes: ClassVar = [((17,), (17,)), ((65,), (65,)), ((200,), (200,)), ((3,), (600,))]
    long_shapes: ClassVar = [((4,), (1500,)), ((7,), (1100,)), ((1040,), (1040,))]
    empty_shapes: ClassVar = [((0,), (0,)), ((0,), (70,)), ((70,), (0,)), ((2,), (0,))]
    offsets: ClassVar = [0, 5, -7, 70, 1000, 2**40, -(2**40), [0, 9], [-30, 2**20]]
    tiny: ClassVar = ((4,), (6,))
    medium: ClassVar = (70,)
    large: ClassVar = (200,)


class TwoDimensional(OperationTests):
    """Canvases that are not square, both ways, and not multiples of any block."""

    dimensions: ClassVar = 2
    spaces: ClassVar = [
        (1, 1), (1, 7), (7, 1), (3, 5), (5, 3), (8, 8), (9, 16), (16, 9), (13, 21), (20, 17),
    ]  # fmt: skip
    gradient_spaces: ClassVar = [(1, 7), (5, 3), (9, 16), (13, 21), (20, 17)]
    float64_spaces: ClassVar = [(1, 1), (4, 8), (8, 4), (7, 13), (13, 7)]
    crosses: ClassVar = [(space, space) for space in ((1, 300), (300, 1), (2, 70), (70, 3))]
    shapes: ClassVar = [((7, 10), (7, 10))]
    dtype_shapes: ClassVar = [(space, space) for space in ((2, 3), (9, 7), (13, 16))]
    long_shapes: ClassVar = [((33, 38), (33, 38))]
    empty_shapes: ClassVar = [(space, space) for space in ((0, 0), (0, 5), (5, 0))]
    offsets: ClassVar = [0, [0, 0]]
    tiny: ClassVar = ((3, 2), (3, 2))
    medium: ClassVar = (7, 10)
    large: ClassVar = (12, 17)


def run_out(call: Callable[[Inputs], tuple[Tensor, Tensor]], inputs: Inputs) -> dict[str, Tensor]:
    """out and its gradients: torch's attention has no lse."""
    leaves = inputs.map(lambda x: x.detach().requires_grad_())
    out, _ = call(leaves)
    named = leaves.tensors()
    grads = torch.autograd.grad(out, list(named.values()), inputs.grad_out)
    return {"out": out.detach()} | {f"grad_{n}": g for n, g in zip(named, grads, strict=True)}


def check_to_the_logits(
    variant: Variant, inputs: Inputs, target: Target, scale: float | None = None
) -> None:
    """For large logits: a float32 logit is known to eps * |logit|, and so its exponential, and so
    any weight, output or gradient; no kernel can do better.
    """
    actual = run(variant, inputs, backend=target.name, return_lse=True, scale=scale)
    truth = run_truth(variant, inputs, scale=scale)
    scale = inputs.q.shape[-1] ** -0.5 if scale is None else abs(scale)
    logit = scale * (inputs.q.norm(dim=-1).amax() * inputs.k.norm(dim=-1).amax())
    known_to = torch.finfo(torch.float32).eps * float(logit)
    for name, x in actual.items():
        assert x.isfinite().all(), name
        error = (x.double() - truth[name]).abs().max()
        bound = known_to * truth[name].abs().max()
        assert error <= bound, f"{name}: error {error:.3e} > {bound:.3e}"


def torch_sdpa(variant: Variant, inputs: Inputs) -> Tensor:
    """F.scaled_dot_product_attention with a dense mask: a bias of rel_k, one vector per pair.

    A value term needs the weights: torch gives them as its attention over the identity.
    """
    visible, offset = pairs(variant, inputs)
    q, k, v = (x.flatten(2, -2) for x in (inputs.q, inputs.k, inputs.v))
    table, geometry = variant.table, variant.geometry(tuple(inputs.q.shape[2:-1]))
    if table is None and variant.bias is None:
        out = F.scaled_dot_product_attention(q, k, v, visible, enable_gqa=True)
        return out.unflatten(2, tuple(inputs.q.shape[2:-1]))
    bias = q.new_zeros(1)
    if variant.bias is not None:
        row, used = rows_read(variant.bias, offset[0, 0], geometry)
        bias = bias + inputs.bias.expand(q.shape[1], -1)[:, row] * used  # [H, Lq, Lk]
    if table is not None:
        row, used = rows_read(table, offset[0, 0], geometry)
        used = used.unsqueeze(-1)
        q_rel = q if inputs.q_rel is None else inputs.q_rel
        rel_scale = q.shape[-1] ** -0.5 if table.rel_scale is None else table.rel_scale
        rel_k = (inputs.rel_k[:, row] * used).expand(q.shape[1], -1, -1, -1)  # [H, Lq, Lk, D]
        bias = bias + rel_scale * torch.einsum("bhid,hijd->bhij", q_rel, rel_k)
    bias = bias.expand(*q.shape[:2], -1, -1).masked_fill(~visible, -torch.inf)
    out = F.scaled_dot_product_attention(q, k, v, bias, enable_gqa=True)
    if inputs.rel_v is not None:
        identity = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:3], -1)
        weights = F.scaled_dot_product_attention(q, k, identity, bias, enable_gqa=True)
        rel_v = (inputs.rel_v[:, row] * used).expand(q.shape[1], -1, -1, -1)
        out = out + torch.einsum("bhij,hijd->bhid", weights, rel_v)
    return out


def peak_memory(tests: type[OperationTests], target: Target) -> dict[int, int]:
    """Bytes that a call and its backward add to a process's peak, by length, in a fresh process.

    There malloc gives large blocks back at once (glibc's own threshold moves with what was freed).
    """
    command = [
        sys.executable, str(Path(__file__).parent / "peak_memory.py"),
        tests.__module__, tests.__name__, target.name,
    ]  # fmt: skip
    environment = subprocess_environment(
        ATTN_KERNELS_ISA=target.isa, ATTN_KERNELS_POISON="0", MALLOC_MMAP_THRESHOLD_="65536"
    )
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return {int(length): extra for length, extra in json.loads(result.stdout).items()}
