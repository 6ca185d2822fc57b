"""Patterns: what a query sees is any predicate over its row and the key."""

from __future__ import annotations

import copy
import math
import pickle
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from common import (
    Inputs,
    Table,
    Target,
    Variant,
    assert_agree,
    check_against_reference,
    make_inputs,
    most_exact_dtype,
)
from operation_checks import OneDimensional
from torch import Tensor

from attn_kernels import Causal, Local1d, Pattern, Relative, attention, explain
from attn_kernels.core.pattern import CELL
from attn_kernels.core.pattern_tiles import TILE, tile_table

SIZE = 1536  # of the tests' patterns: calls are parts of them

Predicate = Callable[[Tensor, Tensor], Tensor]


def variant(name: str, sees: Predicate, table: Table | None = None) -> Variant:
    pattern = Pattern.from_function(sees, SIZE, SIZE)

    def pattern_of(length: int) -> Pattern:
        return pattern if length <= SIZE else Pattern.from_function(sees, length, length)

    def call(x: Inputs, **options: Any) -> Any:
        score = None
        if table is not None:
            score = Relative(x.rel_k, x.rel_v, x.q_rel, table.beyond, table.rel_scale)
        return attention(x.q, x.k, x.v, pattern_of(x.k.shape[2]), score, **options)

    return Variant(name, call, lambda space: pattern_of(space[0]), table)


def scattered(i: Tensor, j: Tensor) -> Tensor:
    """Without order: two fifths of all pairs, and oneself."""
    return ((i * 7919 + j * 104729 + i * j) % 97 < 39) | (i == j)


def prefix_and_window(i: Tensor, j: Tensor) -> Tensor:
    """Runs that are seen in full, and gaps between them that many tiles skip."""
    return (j < 40) | ((i - j).abs() < 9)


class TestPattern(OneDimensional):
    variants: ClassVar = [
        variant("scattered", scattered),
        variant("prefix", prefix_and_window),
        variant("relative", prefix_and_window, Table(33, rel_v="shared", q_rel=True)),
    ]
    few: ClassVar = variants[1:]
    # Rows begin with the pattern's: more queries than keys stand in tests of their own below.
    crosses: ClassVar = [(q, k) for q, k in OneDimensional.crosses if q <= k]
    empty_shapes: ClassVar = [((0,), (0,)), ((0,), (70,))]
    offsets: ClassVar = [0, 5, 70, 1000, [0, 9], [-30, 2**20]]

    def offsets_without_keys(self, keys: int) -> list[Any]:
        return [torch.tensor([-keys, 0, 2 * SIZE])]


def random_mask(q_len: int, k_len: int, share: float) -> Tensor:
    """Pairs by chance, and tiles of all kinds: blocks of 48 x 40 in full, in part and not at all."""
    generator = torch.Generator().manual_seed(q_len * 1000 + k_len)
    blocks = torch.rand(q_len // 48 + 1, k_len // 40 + 1, generator=generator)
    blocks = blocks.repeat_interleave(48, 0).repeat_interleave(40, 1)[:q_len, :k_len]
    pairs = torch.rand(q_len, k_len, generator=generator) < share
    return torch.where(blocks < 0.5, pairs, blocks < 0.8)


ALONE = torch.zeros(70, 70, dtype=torch.bool)
ALONE[3, 40] = True  # the only pair of its group
# Full runs with nothing between them.
MASKS = [ALONE, *((torch.arange(n) // CELL % 3 == 1).expand(n + 3, n) for n in (70, 128))]
MASKS += [
    random_mask(*sizes)
    for sizes in (
        (0, 0, 0), (3, 0, 0), (0, 3, 0), (1, 1, 0.5), (5, 16, 0.5), (63, 65, 0.02), (64, 64, 0.9),
        (65, 15, 0.5), (130, 17, 0.5), (200, 1, 0.5), (100, 333, 0.01), (150, 290, 0.99),
    )
]  # fmt: skip
MASKS += [torch.zeros(70, 70, dtype=torch.bool), torch.ones(70, 70, dtype=torch.bool)]


def mask_id(mask: Tensor) -> str:
    return "x".join(map(str, mask.shape))


@pytest.mark.parametrize("side", [0, 1], ids=["queries", "keys"])
@pytest.mark.parametrize("mask", [*MASKS, random_mask(1100, 150, 0.5)], ids=mask_id)
def test_tiles_are_the_mask(mask: Tensor, side: int) -> None:
    """What kernels on GPUs read, by lines of queries and of keys; no tile is listed in vain."""
    table = tile_table(Pattern.from_mask(mask), torch.device("cpu")).tolist()
    n_lines = [-(-length // TILE) for length in mask.shape]
    found = torch.zeros(n_lines[0] * TILE, n_lines[1] * TILE, dtype=torch.bool)
    for line in range(n_lines[side]):
        begin, partial, end, *reach = table[5 * (line + side * n_lines[0]) :][:5]
        if begin < end:
            assert reach == [min(table[begin:end:2]), max(table[begin:end:2]) + 1]
        for kind in (range(begin, partial, 2), range(partial, end, 2)):
            assert sorted(table[at] for at in kind) == [table[at] for at in kind]
        for at in range(begin, end, 2):
            other, place = table[at : at + 2]
            assert (place == -1) == (at < partial)
            words = torch.tensor([-1] * TILE if place == -1 else table[place : place + TILE])
            tile = (words >> torch.arange(TILE).unsqueeze(1) & 1).bool()
            if place != -1:
                words = torch.tensor(table[place + TILE : place + 2 * TILE])
                assert torch.equal(words.unsqueeze(1) >> torch.arange(TILE) & 1, tile.long())
            assert tile.any()
            assert tile.all() == (place == -1)
            row, col = (line, other) if side == 0 else (other, line)
            found.view(n_lines[0], TILE, n_lines[1], TILE)[row, :, col] = tile
    assert torch.equal(found[: mask.shape[0], : mask.shape[1]], mask)
    assert found.sum() == mask.sum()


def test_tiles_are_a_constant_of_a_compiled_graph() -> None:
    """fullgraph compiles a call for a GPU: its table is made when tracing, once per pattern."""
    patterns = [TestPattern.few[0].geometry((length,)) for length in (40, 40, 1600)]
    diagonals = (Pattern.from_function(lambda i, j, n=n: i - j == n, 40, 40) for n in (3, 4))
    patterns += diagonals  # which differ in nothing but their words
    here, calls = torch.device("cpu"), []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append([node for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward

    @torch.compile(backend=backend, fullgraph=True)
    def compiled(x: Tensor, pattern: Pattern) -> Tensor:
        return pattern.table_for("triton", x.device) + x

    assert patterns[-1].extent() == patterns[-2].extent()
    for pattern in patterns:
        assert torch.equal(compiled(torch.zeros(1), pattern), tile_table(pattern, here).float())
    assert [len(nodes) for nodes in calls] == [1] * len(calls)  # the addition alone


@pytest.mark.parametrize("mask", MASKS, ids=mask_id)
def test_what_is_compiled_is_the_mask(mask: Tensor) -> None:
    """Pair by pair and by numbers; from the mask and from a function."""
    q_len, k_len = mask.shape
    pattern = Pattern.from_mask(mask)
    assert pattern == Pattern.from_function(lambda i, j: mask[i, j], q_len, k_len)
    i, j = torch.arange(-2, q_len + 2).unsqueeze(1), torch.arange(-1, k_len + 3)
    padded = torch.nn.functional.pad(mask, (1, 3, 2, 2))
    assert torch.equal(pattern.visible(i, j), padded)
    start, stop = q_len // 3, q_len // 2
    length = k_len * 2 // 3
    assert pattern.visible_pairs(stop - start, length, start) == mask[start:stop, :length].sum()
    assert pattern.visible_pairs(q_len + 5, k_len, -2) == mask.sum()
    assert pattern.visible_pairs(9, k_len, -9) == pattern.visible_pairs(9, k_len, q_len) == 0


@pytest.mark.parametrize("mask", MASKS, ids=mask_id)
def test_masks_of_any_size(backend: Target, mask: Tensor) -> None:
    """Values and gradients, with keys that nobody sees holding NaN, and of a part of the rows."""
    pattern = Pattern.from_mask(mask)
    whole = Variant(
        "mask", lambda x, **options: attention(x.q, x.k, x.v, pattern, **options), lambda _: pattern
    )
    for first, stop in ((0, mask.shape[0]), (mask.shape[0] // 3, mask.shape[0] * 2 // 3)):
        inputs = make_inputs(
            whole, (stop - first,), (mask.shape[1],), batch=1, heads=2, k_heads=1, dim=9,
            dtype=most_exact_dtype(),
        )  # fmt: skip
        seen = mask[first:stop].any(0).unsqueeze(-1).to(inputs.k.device)
        inputs = replace(
            inputs,
            query_offset=first,
            k=torch.where(seen, inputs.k, math.nan),
            v=torch.where(seen, inputs.v, math.inf),
        )
        check_against_reference(whole, inputs, backend)


def test_a_growing_cache(backend: Target) -> None:
    """One query and the keys up to it, from an empty cache on, are the rows of the whole call; so
    are several queries, and rows that an offset names."""
    length, prefix = 70, 9  # keys in front of the first query's own
    pattern = Pattern.from_function(
        lambda i, j: (j <= i + prefix) & ((i + j) % 3 > 0), length, length + prefix
    )
    x = make_inputs(TestPattern.few[0], (length,), (length + prefix,), dtype=most_exact_dtype())
    whole = attention(x.q, x.k, x.v, pattern, backend=backend.name)
    for n in (1, 2, 5):
        for row in range(length - n + 1):
            keys = row + n + prefix
            q, k, v = x.q[:, :, row : row + n], x.k[:, :, :keys], x.v[:, :, :keys]
            found = attention(q, k, v, pattern, backend=backend.name)
            torch.testing.assert_close(found, whole[:, :, row : row + n])
            given = attention(q, x.k, x.v, pattern, query_offset=row, backend=backend.name)
            torch.testing.assert_close(given, found)
    k, v = x.k[:, :, :20], x.v[:, :, :20]  # all queries are the pattern's rows, whatever the keys
    found = attention(x.q, k, v, pattern, backend=backend.name)
    given = attention(x.q, k, v, pattern, query_offset=0, backend=backend.name)
    torch.testing.assert_close(found, given)


def test_rows_that_the_pattern_does_not_have(backend: Target) -> None:
    """A tensor of offsets may put queries before and behind the pattern: they see nothing."""
    pattern = Pattern.from_mask(torch.ones(70, 33, dtype=torch.bool))
    x = make_inputs(TestPattern.few[0], (40,), (33,), batch=3)
    whole = Variant(
        "ones", lambda x, **options: attention(x.q, x.k, x.v, pattern, **options), lambda _: pattern
    )
    offsets = torch.tensor([-5, 40, 69])
    results = check_against_reference(whole, replace(x, query_offset=offsets), backend)
    rows = torch.arange(40) + offsets.unsqueeze(1)
    outside = (rows < 0) | (rows >= 70)
    assert torch.equal(results["lse"][:, 0] == -math.inf, outside)


def test_same_as_other_geometries(backend: Target) -> None:
    """Written as a pattern, causal and local attention are what they are, in grown caches too."""
    x = make_inputs(TestPattern.few[0], (30,), (100,), dtype=most_exact_dtype())
    for geometry in (Causal(), Causal(17), Local1d(16, 5, 9, causal=False)):
        pattern = Pattern.from_function(geometry.visible, 100, 100)
        found, expected = (
            attention(x.q, x.k, x.v, g, return_lse=True, backend=backend.name)
            for g in (pattern, geometry)
        )
        assert_agree(found, expected, 1e-12)
        assert pattern.visible_pairs(30, 100, 70) == geometry.visible_pairs(30, 100, 70)


def test_whatever_the_default_device() -> None:
    """A pattern is made on the CPU, where torch.set_default_device puts everything elsewhere."""
    expected = Pattern.from_function(scattered, 100, 150)
    with torch.device("meta"):
        found = Pattern.from_function(scattered, 100, 150)
        tiles = tile_table(found, torch.device("cpu"))
        pairs = found.visible_pairs(50, 100, 20)
    assert found == expected
    assert tiles.tolist() == tile_table.__wrapped__(expected, torch.device("cpu")).tolist()
    assert pairs == expected.visible_pairs(50, 100, 20)


def test_patterns_are_values() -> None:
    """Equal and of one hash by content alone; the same after pickle and deepcopy; printed short."""
    mask = MASKS[-3]
    pattern, again = Pattern.from_mask(mask), Pattern.from_mask(mask.clone())
    for other in (again, pickle.loads(pickle.dumps(pattern)), copy.deepcopy(pattern)):
        assert other == pattern
        assert hash(other) == hash(pattern)
        assert torch.equal(other.table, pattern.table)
    changed = mask.clone()
    changed[77, 123] = ~mask[77, 123]
    assert Pattern.from_mask(changed) != pattern
    assert Pattern.from_mask(torch.cat([mask, mask[:0]])) == pattern
    assert str(pattern) == "Pattern(q_len=150, k_len=290)"


def test_a_long_band_is_compiled_in_linear_memory() -> None:
    """16384 x 16384 pairs would be 256 MiB of bools; a band of 200 takes 0.4 MB."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    band = Pattern.from_function(lambda i, j: (i - j).abs() < 100, 16384, 16384)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    assert time.monotonic() - start < 30
    assert band.table.nbytes < 2**19
    assert band.visible_pairs(16384, 16384, 0) == 16384 * 199 - 99 * 100


def test_cells_that_nobody_sees_take_no_memory() -> None:
    """Full and empty tiles are runs of four numbers at most, whatever their size."""
    triangle = Pattern.from_function(lambda i, j: j // 64 <= i // 64, 1024, 1024)
    assert triangle.table.numel() == 16 + 1 + 16 * 4
    nothing = Pattern.from_function(lambda i, j: (i < 0) & (j < 0), 1024, 1024)
    assert nothing.table.numel() == 16 + 1


def test_a_damaged_table_is_refused(fused: Target) -> None:
    """The kernels never read what a table points at beyond its end."""
    pattern = Pattern.from_mask(MASKS[-3])
    q = torch.randn(1, 1, 150, 8)
    k = torch.randn(1, 1, 290, 8)
    for place, value in ((0, 1), (1, 10**6), (4, 10**9), (5, 10**9), (7, 10**9)):
        table = pattern.table.clone()
        table[place] = value
        damaged = Pattern(pattern.q_len, pattern.k_len, pattern.n_runs, table)
        with pytest.raises(RuntimeError, match="not a pattern's table"):
            attention(q, k, k, damaged, backend=fused.name)


def test_explain_counts_pairs() -> None:
    q, k = torch.zeros(2, 3, 40, 8), torch.zeros(2, 3, 100, 8)
    pattern = Pattern.from_function(Causal().visible, 100, 100)
    options = {"backend": "reference"}
    assert (
        explain(q, k, k, pattern, **options).visible_pairs
        == explain(q, k, k, Causal(), **options).visible_pairs
    )
