"""Overhead: the time of a call with almost no work in it."""

from __future__ import annotations

from .case import Case
from .causal import SDPA, CausalShape, ours
from .peers import EAGER

SHAPES = (
    CausalShape(1, 1, 1, 64, source="nothing but the call"),
    CausalShape(1, 8, 16, 64, source="a short prompt"),
)
CASE = Case(
    name="overhead",
    title="overhead of a call",
    shapes=SHAPES,
    quick=SHAPES[:1],
    small=CausalShape(1, 1, 3, 64),
    ours=ours,
    peers={"sdpa": SDPA, "eager": EAGER},
)
