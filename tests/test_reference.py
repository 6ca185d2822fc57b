"""The reference against the formula of attention, written as loops over single pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import test_causal
import test_full
import test_local_1d
import test_local_2d
import test_relative
import torch
from common import Inputs, Variant, make_inputs, run, run_truth, sees
from torch import Tensor

from attn_kernels import Full, Relative, attention

TESTS_1D = (
    test_full.TestFull,
    test_causal.TestCausal,
    test_local_1d.TestLocal1d,
    test_relative.TestRelative,
)
VARIANTS_2D = test_local_2d.TestLocal2d.variants


def loops(variant: Variant, x: Inputs, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """out_i = sum_j softmax_j(s_ij) (v_j + rel_v[row]); lse_i = log sum_j exp(s_ij)."""
    space = tuple(x.q.shape[2:-1])
    geometry, table = variant.geometry(space), variant.table
    q, k, v = (t.flatten(2, -2) for t in (x.q, x.k, x.v))
    (batch, heads, q_len, dim), (_, k_heads, k_len, _) = q.shape, k.shape
    q_rel = q if x.q_rel is None else x.q_rel
    scale = dim**-0.5 if scale is None else scale
    rel_scale = scale if table is None or table.rel_scale is None else table.rel_scale
    out = q.new_zeros(batch, heads, q_len, v.shape[-1])
    lse = q.new_full((batch, heads, q_len), -math.inf)

    def row_of(offset: int) -> int | None:
        """The table row of an offset; None if it adds nothing."""
        row = offset + (table.rows - 1 if geometry.causal else (table.rows - 1) // 2)
        if 0 <= row < table.rows:
            return row
        return None if table.beyond == "zero" else max(0, min(row, table.rows - 1))

    for b in range(batch):
        n_keys = k_len if x.key_lengths is None else min(k_len, int(x.key_lengths[b]))
        offset = k_len - q_len if x.query_offset is None else x.query_offset
        offset = int(offset[b]) if isinstance(offset, Tensor) else offset
        for h in range(heads):
            of_group = h // (heads // k_heads)
            for i in range(q_len):
                p = i + offset
                keys = [j for j in range(n_keys) if sees(geometry, p, j)]
                logits, values = [], []
                for j in keys:
                    logit = scale * float(q[b, h, i] @ k[b, of_group, j])
                    value = v[b, of_group, j]
                    row = None if table is None else row_of(j - p)
                    if row is not None:
                        rel_k = x.rel_k[h if x.rel_k.shape[0] > 1 else 0, row]
                        logit += rel_scale * float(q_rel[b, h, i] @ rel_k)
                        if x.rel_v is not None:
                            value = value + x.rel_v[h if x.rel_v.shape[0] > 1 else 0, row]
                    logits.append(logit)
                    values.append(value)
                if keys:
                    total = sum(map(math.exp, logits))
                    lse[b, h, i] = math.log(total)
                    for logit, value in zip(logits, values, strict=True):
                        out[b, h, i] += math.exp(logit) / total * value
    return out.unflatten(2, space), lse.unflatten(2, space)


def check_against_loops(variant: Variant, inputs: Inputs, scale: float | None = None) -> None:
    actual = variant(inputs, backend="reference", return_lse=True, scale=scale)
    expected = loops(variant, inputs, scale)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def small(variant: Variant) -> Variant:
    """With tables for lengths that loops can do: one long, the others shorter than the sequence."""
    if variant.table is None:
        return variant
    rows = 21 if variant.table.rows > 100 else min(variant.table.rows, 5)
    return replace(variant, table=replace(variant.table, rows=rows))


def inputs_1d(variant: Variant, q_len: int, k_len: int) -> Inputs:
    return make_inputs(
        variant, (q_len,), (k_len,),
        heads=4, k_heads=2, dim=3, value_dim=2, dtype=torch.float64,
    )  # fmt: skip


VARIANTS_1D = [small(variant) for tests in TESTS_1D for variant in tests.variants]


@pytest.mark.parametrize("lengths", [(8, 8), (5, 11), (9, 4)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS_1D, ids=str)
def test_values(variant: Variant, lengths: tuple[int, int]) -> None:
    """Every way to call a 1-D operation, more keys than queries and the reverse."""
    check_against_loops(variant, inputs_1d(variant, *lengths))


@pytest.mark.parametrize("grid", [(2, 5), (5, 2)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS_2D, ids=str)
def test_values_2d(variant: Variant, grid: tuple[int, int]) -> None:
    """Every way to call the 2-D operation, on canvases that are not square, both ways."""
    inputs = make_inputs(
        variant, grid, batch=1, heads=2, k_heads=1, dim=3, value_dim=2, dtype=torch.float64
    )
    check_against_loops(variant, inputs)


@pytest.mark.parametrize("variant", VARIANTS_1D, ids=str)
def test_entries_and_scale(variant: Variant) -> None:
    """key_lengths (past the end too), query_offset of both kinds, scale 0 and negative."""
    inputs = inputs_1d(variant, 7, 9)
    inputs = replace(inputs, key_lengths=torch.tensor([4, 50]))
    check_against_loops(variant, inputs, scale=-0.5)
    check_against_loops(variant, replace(inputs, query_offset=torch.tensor([-3, 5])), scale=0.0)
    check_against_loops(variant, replace(inputs, query_offset=-2))
    check_against_loops(variant, replace(inputs, query_offset=6))


@pytest.mark.parametrize("variant", VARIANTS_1D, ids=str)
def test_rows_without_keys(variant: Variant) -> None:
    """out 0, lse -inf and zero gradients; not NaN, which softmax of nothing would be."""
    inputs = inputs_1d(variant, 6, 6)
    inputs = replace(inputs, key_lengths=torch.tensor([0, 6]))
    check_against_loops(variant, inputs)
    results = run_truth(variant, inputs)
    assert not results["out"][0].any()
    assert (results["lse"][0] == -math.inf).all()
    for name, x in results.items():
        if name.startswith("grad"):
            assert x.isfinite().all(), name
    for name in ("grad_q", "grad_k", "grad_v"):
        assert not results[name][0].any(), name


def test_unseen_keys_may_hold_anything() -> None:
    """NaN in a key or value behind key_lengths reaches neither values nor gradients."""
    variant = test_causal.TestCausal.variants[2]
    inputs = inputs_1d(variant, 8, 8)
    inputs = replace(inputs, key_lengths=torch.tensor([3, 8]))
    poisoned = replace(inputs, k=inputs.k.clone(), v=inputs.v.clone())
    poisoned.k[0, :, 3:], poisoned.v[0, :, 3:] = math.nan, math.inf
    clean, actual = run_truth(variant, inputs), run_truth(variant, poisoned)
    for name, x in clean.items():
        assert torch.equal(actual[name], x), name


@pytest.mark.parametrize("variant", [VARIANTS_1D[1], *test_relative.TestRelative.few], ids=str)
def test_gradgradcheck(variant: Variant) -> None:
    """Differentiable twice: what the fused kernels send their users to."""
    variant = small(variant)
    inputs = make_inputs(variant, (3,), (4,), batch=1, dim=2, dtype=torch.float64)
    names = list(inputs.tensors())

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, tensors, strict=True))
        return variant(replace(inputs, **named), backend="reference", return_lse=True)

    leaves = [x.requires_grad_() for x in inputs.tensors().values()]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    """The arithmetic is float32, so the result is float32's, rounded; lse stays float32."""
    variant = test_relative.TestRelative.variants[4]
    inputs = make_inputs(variant, (20,), dtype=dtype)
    half = run(variant, inputs, gradients=False, backend="reference", return_lse=True)
    single = run(
        variant, inputs.to(torch.float32), gradients=False, backend="reference", return_lse=True
    )
    assert half["lse"].dtype == torch.float32
    assert torch.equal(half["lse"], single["lse"])
    assert torch.equal(half["out"], single["out"].to(dtype))


def test_default_offset_is_that_of_caches() -> None:
    """One query behind a cache sees every key: it is the last row of the whole computation."""
    variant = test_causal.TestCausal.variants[0]
    inputs = make_inputs(variant, (9,), dtype=torch.float64)
    whole = variant(inputs, backend="reference")
    last = variant(replace(inputs, q=inputs.q[:, :, -1:]), backend="reference")
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=1e-13, atol=1e-13)


def test_rel_scale_and_q_rel_default_to_scale_and_q() -> None:
    """Left out, the score's query and scale are those of the logits, scale=0.0 included."""
    variant = test_relative.TestRelative.variants[6]
    x = make_inputs(variant, (9,), dtype=torch.float64)
    for scale in (0.0, 0.3):
        short = attention(
            x.q, x.k, x.v, Full(), Relative(x.rel_k), scale=scale, backend="reference"
        )
        score = Relative(x.rel_k, q_rel=x.q, rel_scale=scale)
        spelled_out = attention(x.q, x.k, x.v, Full(), score, scale=scale, backend="reference")
        torch.testing.assert_close(short, spelled_out, rtol=1e-13, atol=1e-13)
