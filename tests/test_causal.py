"""Causal attention: query i sees keys 0..i, or the last `window` of them."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import pytest
import torch
from common import Inputs, Target, Variant
from operation_checks import OneDimensional

from attn_kernels import Causal, causal_attention


def variant(window: int | None) -> Variant:
    def call(x: Inputs, **options: Any) -> Any:
        return causal_attention(x.q, x.k, x.v, window=window, **options)

    return Variant(f"window={window}", call, lambda _: Causal(window))


class TestCausal(OneDimensional):
    # a window of the query itself, within a tile, of a tile, across tiles
    variants: ClassVar = [variant(window) for window in (None, 1, 7, 64, 100)]
    few: ClassVar = [variants[0], variants[2]]

    @pytest.mark.parametrize("position", [0, -(2**60), 2**60, torch.tensor([2**60, 7])], ids=str)
    @pytest.mark.parametrize("window", [2**61 - 1, 2**61, 2**62, sys.maxsize, 2**63, 10**30])
    def test_endless_window(self, backend: Target, window: int, position: Any) -> None:
        """A window larger than any distance is no window, however large; 2**61 - 1 is the largest
        that is taken as it is."""
        q, k, v = (torch.randn(2, 1, 20, 8) for _ in range(3))
        for name in dict.fromkeys((backend.name, "reference")):
            options = {"query_offset": position, "backend": name, "return_lse": True}
            found = causal_attention(q, k, v, window=window, **options)
            torch.testing.assert_close(found, causal_attention(q, k, v, **options))
