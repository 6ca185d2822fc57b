"""Bias: a number for every distance, alone and beside relative vectors, under every 1-D geometry."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from common import BiasTable, Inputs, Table, Target, Variant, assert_agree
from operation_checks import OneDimensional

from attn_kernels import Bias, Causal, Full, Local1d, Relative, attention
from attn_kernels.core.geometry import Geometry
from attn_kernels.score.bias import alibi_slopes, t5_buckets


def variant(
    name: str, geometry: Geometry, rows: int, table: Table | None = None, **settings: Any
) -> Variant:
    bias = BiasTable(rows, **settings)

    def call(x: Inputs, **options: Any) -> Any:
        score = Bias(x.bias, bias.beyond, bias.zero_row)
        if table is not None:
            score = score + Relative(
                x.rel_k, x.rel_v, x.q_rel, table.beyond, table.rel_scale, table.zero_row
            )
        return attention(x.q, x.k, x.v, geometry, score, **options)

    return Variant(name, call, lambda _: geometry, table, bias)


class TestBias(OneDimensional):
    variants: ClassVar = [
        variant("causal-heads", Causal(), 400, per_head=True),  # ALiBi: as long as the sequence
        variant("both-clip", Full(), 31, per_head=True),  # T5: the last bucket goes on
        variant("window-zero", Causal(40), 9, beyond="zero"),
        variant("local-zero-row", Local1d(16, 8, 8, causal=False), 20, zero_row=13),
        variant(
            "both-relative", Full(), 21, Table(33, rel_v="shared", q_rel=True, rel_scale=0.1),
            per_head=True, beyond="zero",
        ),
        variant(
            "causal-relative-zero-row", Causal(), 30,
            Table(12, per_head=True, beyond="zero", zero_row=8), zero_row=25,
        ),
    ]  # fmt: skip
    few: ClassVar = [variants[1], variants[4]]


def test_a_sum_is_its_terms_in_any_order(backend: Target) -> None:
    """a + b and b + a are the same score."""
    q = torch.randn(1, 2, 30, 8)
    bias, relative = Bias(torch.randn(2, 30)), Relative(torch.randn(1, 30, 8))
    one, other = (
        attention(q, q, q, Causal(), score, backend=backend.name)
        for score in (bias + relative, relative + bias)
    )
    assert_agree((one,), (other,), 1e-5)


def test_two_terms_of_one_kind_take_the_reference() -> None:
    """The kernels have one of each; asked for by name they refuse, and say why."""
    q, table = torch.randn(1, 2, 30, 8), torch.randn(2, 30)
    twice = Bias(table) + Bias(table)
    with pytest.raises(NotImplementedError, match="at most one term of each kind"):
        attention(q, q, q, Causal(), twice, backend="cpu")
    found = attention(q, q, q, Causal(), twice, backend="reference")
    expected = attention(q, q, q, Causal(), Bias(2 * table), backend="reference")
    assert_agree((found,), (expected,), 1e-5)


def test_t5_is_a_table_of_buckets(backend: Target) -> None:
    """The bias that T5's own code makes for every pair, [H, Lq, Lk], and its gradient."""
    for causal in (False, True):
        weight = torch.randn(32, 4, requires_grad=True)
        q = torch.randn(2, 4, 300, 8)
        geometry = Causal() if causal else Full()
        out = attention(q, q, q, geometry, Bias.t5(weight, causal=causal), backend=backend.name)
        offset = torch.arange(300) - torch.arange(300).unsqueeze(1)
        dense = weight[t5_buckets(offset, 32, causal, 128)].movedim(2, 0)
        if causal:
            dense = dense.masked_fill(offset > 0, -torch.inf)
        expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, dense.unsqueeze(0))
        assert_agree((out,), (expected,), 1e-5)
        grad = torch.randn_like(out)
        found, wanted = (torch.autograd.grad(x, weight, grad)[0] for x in (out, expected))
        assert_agree((found,), (wanted,), 1e-3)


def test_t5_buckets_of_known_distances() -> None:
    """What transformers 5.24 gives for T5's 32 buckets and max_distance 128."""
    offset = torch.tensor(
        [-400, -128, -127, -64, -20, -9, -8, -7, -1, 0, 1, 7, 8, 15, 16, 100, 300]
    )
    both = [15, 15, 15, 14, 10, 8, 8, 7, 1, 0, 17, 23, 24, 25, 26, 31, 31]
    assert t5_buckets(offset, 32, False, 128).tolist() == both
    causal = [31, 31, 31, 26, 17, 9, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert t5_buckets(offset, 32, True, 128).tolist() == causal


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [2**-8]),
        (8, [2.0**-n for n in range(1, 9)]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_alibi_slopes(heads: int, slopes: list[float]) -> None:
    """The paper's, also between powers of two."""
    assert alibi_slopes(heads) == slopes


def test_alibi_is_minus_slope_times_distance(backend: Target) -> None:
    q = torch.randn(1, 6, 40, 8)
    distance = (torch.arange(40) - torch.arange(40).unsqueeze(1)).abs()
    dense = -torch.tensor(alibi_slopes(6)).view(-1, 1, 1) * distance
    score = Bias.alibi(6, 40, causal=False)
    out = attention(q, q, q, Full(), score, backend=backend.name)
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, dense.unsqueeze(0))
    assert_agree((out,), (expected,), 1e-5)
