"""Causal attention: query i sees keys 0..i, or the last `window` of them."""

from __future__ import annotations

from typing import Any, ClassVar

from common import Inputs, Variant
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
