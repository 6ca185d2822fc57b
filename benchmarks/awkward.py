"""Awkward sizes: short sequences, odd head dims, one long head, thousands of small ones."""

from __future__ import annotations

from .case import Case
from .causal import SDPA, CausalShape, ours
from .peers import EAGER

SHAPES = (
    *(CausalShape(1, 8, n, 64, source="short") for n in (1, 2, 7, 16, 33, 64)),
    *(CausalShape(32, 8, n, 64, source="short, in a batch") for n in (5, 16, 49, 64)),
    *(CausalShape(1, 8, 512, dim, source="head dim") for dim in (40, 80, 96, 256)),
    CausalShape(1, 1, 8192, 64, source="one long head"),
    CausalShape(256, 16, 16, 32, source="4096 small heads"),
    CausalShape(1024, 4, 9, 16, source="4096 tiny heads"),
)
QUICK = (SHAPES[4], SHAPES[8], SHAPES[11], SHAPES[13], SHAPES[15])
CASE = Case(
    name="awkward",
    title="awkward sizes, causal",
    shapes=SHAPES,
    quick=QUICK,
    small=CausalShape(2, 3, 33, 80),
    ours=ours,
    peers={"sdpa": SDPA, "eager": EAGER},
)
