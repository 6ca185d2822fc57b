"""Local attention on a canvas: a query sees its block and a halo of rows and columns around it."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import pytest
import torch
from common import Inputs, Target, Variant, check_against_reference, make_inputs, run
from operation_checks import TwoDimensional

from attn_kernels import Local2d, local_attention_2d


def variant(block: tuple[int, int], halo: tuple[int, int], causal: bool) -> Variant:
    def call(x: Inputs, **options: Any) -> Any:
        return local_attention_2d(x.q, x.k, x.v, block=block, halo=halo, causal=causal, **options)

    name = "-".join(["x".join(map(str, pair)) for pair in (block, halo)])
    name = f"{name}-{'causal' if causal else 'both'}"
    return Variant(name, call, lambda grid: Local2d(grid, block, halo, causal))


class TestLocal2d(TwoDimensional):
    variants: ClassVar = [
        variant(block, halo, causal)
        for block, halo in (
            ((4, 4), (2, 2)),
            ((3, 5), (1, 4)),  # hh != hw
            ((5, 3), (7, 0)),  # no columns beside the block
            ((2, 2), (0, 3)),  # no rows above it, and hw > bw
            ((8, 8), (4, 4)),
            ((1, 1), (2, 1)),
            ((16, 16), (1, 1)),  # larger than most canvases; a block of four tiles
            ((9, 11), (0, 0)),  # a block of more than one tile, with a remainder
        )
        for causal in (False, True)
    ]
    few: ClassVar = [variants[2], variants[3]]

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("size", [2**20, 2**31, 2**32, 2**40, sys.maxsize])
    def test_larger_than_any_canvas(self, backend: Target, size: int, causal: bool) -> None:
        """A block or a halo that means "all there is" costs and gives what the canvas's own does."""
        for block, halo in (((size, size), (1, 1)), ((2, 3), (size, size)), ((1, size), (size, 0))):
            inputs = make_inputs(variant(block, halo, causal), (5, 7))
            fitting = [tuple(map(min, pair, (5, 7))) for pair in (block, halo)]
            found, wanted = (
                run(variant(*sizes, causal), inputs, backend=backend.name, return_lse=True)
                for sizes in ((block, halo), fitting)
            )
            for name, x in wanted.items():
                assert torch.equal(found[name], x), name

    def test_boxes_that_begin_where_another_was_cut(self, backend: Target) -> None:
        """Steps of one block and of the one below it may start at the same key and differ in length:
        what was kept of the first must not serve the second."""
        inputs = make_inputs(variant((32, 8), (2, 4), False), (128, 8))
        check_against_reference(variant((32, 8), (2, 4), False), inputs, backend)
