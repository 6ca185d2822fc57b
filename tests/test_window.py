"""Window: a query sees some keys before it and some behind."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any, ClassVar

import pytest
import torch
from common import Inputs, Table, Target, Variant
from operation_checks import OneDimensional

from attn_kernels import Causal, Full, Relative, Window, attention


def variant(left: int | None, right: int | None, table: Table | None = None) -> Variant:
    geometry = Window(left, right)

    def call(x: Inputs, **options: Any) -> Any:
        score = None
        if table is not None:
            score = Relative(x.rel_k, x.rel_v, x.q_rel, table.beyond, table.rel_scale)
        return attention(x.q, x.k, x.v, geometry, score, **options)

    name = f"{left}-{right}{'' if table is None else f'-{table.rows}'}"
    return Variant(name, call, lambda _: geometry, table)


class TestWindow(OneDimensional):
    variants: ClassVar = [
        variant(16, 16),
        variant(0, 5),  # nothing before the query
        variant(None, 30),
        variant(70, None),
        variant(128, 128, Table(257, per_head=True)),  # NeMo's rel_pos_local_attn
        variant(20, 9, Table(21, rel_v="shared", q_rel=True)),
        variant(40, 3, Table(61, beyond="zero")),
    ]
    few: ClassVar = [variants[0], variants[5]]


@pytest.mark.parametrize(
    ("window", "same"),
    [
        (Window(6, 0), Causal(7)),
        (Window(None, 0), Causal()),
        (Window(None, None), Full()),
        (Window(sys.maxsize, sys.maxsize), Full()),
        (Window(sys.maxsize, 0), Causal()),
    ],
    ids=str,
)
def test_is_another_geometry_too(window: Window, same: Any, backend: Target) -> None:
    """Bit for bit: the kernels take the same way, tables end at the same distance."""
    q, k, v = (torch.randn(1, 2, n, 8) for n in (30, 50, 50))
    score = Relative(torch.randn(2, 41, 8), rel_v=torch.randn(1, 41, 8))
    found, expected = (
        attention(q, k, v, geometry, score, backend=backend.name) for geometry in (window, same)
    )
    assert torch.equal(found, expected)


def test_is_a_value() -> None:
    """Equal, hashable, picklable; what it is to the kernels survives."""
    for window in (Window(3, 4), Window(3, 0), Window(None, None)):
        for other in (pickle.loads(pickle.dumps(window)), copy.deepcopy(window)):
            assert other == window
            assert hash(other) == hash(window)
            assert (other.name, other.extent()) == (window.name, window.extent())
    assert Window(3, 4) != Window(4, 3)
    assert str(Window(3, None)) == "Window(left=3, right=None)"
