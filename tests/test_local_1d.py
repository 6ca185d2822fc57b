"""Local attention in one dimension: a query sees its block and some keys around it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from common import Inputs, Target, Variant
from operation_checks import OneDimensional

from attn_kernels import Causal, Local1d, attention, local_attention_1d
from attn_kernels.core.geometry import FARTHEST


def variant(block: int, look_back: int, look_ahead: int, causal: bool) -> Variant:
    geometry = Local1d(block, look_back, look_ahead, causal)

    def call(x: Inputs, **options: Any) -> Any:
        return local_attention_1d(
            x.q, x.k, x.v,
            block=block, look_back=look_back, look_ahead=look_ahead, causal=causal, **options,
        )  # fmt: skip

    name = f"{block}-{look_back}-{look_ahead}-{'causal' if causal else 'both'}"
    return Variant(name, call, lambda _: geometry)


class TestLocal1d(OneDimensional):
    variants: ClassVar = [
        variant(16, 16, 0, causal=True),  # masked local attention
        variant(10, 3, 0, causal=True),  # blocks that cross tiles
        variant(64, 64, 0, causal=True),
        variant(7, 0, 0, causal=True),
        variant(1, 0, 0, causal=True),  # the query itself
        variant(1, 4, 0, causal=True),
        variant(16, 8, 8, causal=False),
        variant(100, 0, 5, causal=False),
        variant(5, 2, 90, causal=False),
        variant(130, 70, 30, causal=False),  # longer than most sequences
    ]
    few: ClassVar = [variants[1], variants[6]]

    @pytest.mark.parametrize("position", [0, -7, 100])
    @pytest.mark.parametrize("sizes", [(4, FARTHEST, FARTHEST), (FARTHEST,) * 3], ids=str)
    def test_as_far_as_it_goes(
        self, backend: Target, sizes: tuple[int, int, int], position: int
    ) -> None:
        """The largest distances that are allowed mean "all keys"."""
        q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
        options = {"query_offset": position, "backend": backend.name}
        found = attention(q, k, v, Local1d(*sizes, causal=False), **options)
        torch.testing.assert_close(found, attention(q, k, v, **options))
        found = attention(q, k, v, Local1d(*sizes[:2]), **options)
        torch.testing.assert_close(found, attention(q, k, v, Causal(), **options))
