"""Full attention: every query sees every key."""

from __future__ import annotations

from typing import Any, ClassVar

from common import Inputs, Variant
from operation_checks import OneDimensional

from attn_kernels import Full, attention


def full(x: Inputs, **options: Any) -> Any:
    return attention(x.q, x.k, x.v, **options)


class TestFull(OneDimensional):
    variants: ClassVar = [Variant("full", full, lambda _: Full())]
    few: ClassVar = variants
