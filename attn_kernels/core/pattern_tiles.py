"""A Pattern as kernels on GPUs read it: lists of 64 x 64 tiles, by queries and by keys."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .pattern import GROUP, Pattern, full_words, group_count, on_cpu, pack

TILE = GROUP  # queries, and keys, of a tile: a word has a bit for each
GROUPS_AT_A_TIME = 16  # whose words are looked at together


@lru_cache(maxsize=32)
@on_cpu
def tile_table(pattern: Pattern, device: torch.device) -> Tensor:
    """The pattern's tiles, int64 on the device; equal patterns share it.

    A line holds the tiles of 64 queries, or of 64 keys: first those that are seen in full, then
    those that are seen in part, each in order. The table: of every line of queries, then of every
    line of keys, where it begins, where its partial tiles begin, where it ends, and its lowest and
    (plus 1) highest tile; the lines, of each tile its number in the other direction and the place
    of its first word (-1: full); and 128 words for each partial tile: one per key, whose bit i is
    the tile's query i, and one per query, whose bit j is the tile's key j.
    """
    n_groups, n_blocks = group_count(pattern.q_len), group_count(pattern.k_len)
    full, partial, words = [], [], [torch.empty(0, 2 * TILE, dtype=torch.int64)]
    for first in range(0, n_groups if pattern.n_runs else 0, GROUPS_AT_A_TIME):
        count = min(GROUPS_AT_A_TIME, n_groups - first)
        tiles = torch.zeros(count, n_blocks * TILE, dtype=torch.int64)
        rows = full_words(torch.arange(first, first + count), pattern.q_len)
        tiles[:, : pattern.k_len] = pattern.words(first, first + count) & rows.unsqueeze(1)
        tiles = tiles.view(count, n_blocks, TILE)
        is_full = (tiles == -1).all(2)
        is_partial = (tiles != 0).any(2) & ~is_full
        shift = torch.tensor([first, 0])
        full.append(is_full.nonzero() + shift)
        partial.append(is_partial.nonzero() + shift)
        words.append(torch.cat([tiles[is_partial], transposed(tiles[is_partial])], 1))
    tiles = torch.cat([torch.empty(0, 2, dtype=torch.int64), *full, *partial])
    n_partial = sum(len(x) for x in partial)
    header = 5 * (n_groups + n_blocks)
    places = header + 4 * len(tiles) + 2 * TILE * torch.arange(n_partial)
    places = torch.cat([torch.full((len(tiles) - n_partial,), -1), places])
    bounds, lines = [], []
    for side, n_lines in ((0, n_groups), (1, n_blocks)):
        line, other = tiles[:, side], tiles[:, 1 - side]
        kind = 2 * line + (places >= 0)
        order = torch.argsort(kind, stable=True)  # tiles are in order of either side already
        before = header + 2 * (len(tiles) * side + torch.searchsorted(
            kind[order], torch.arange(2 * n_lines + 1)))  # fmt: skip
        lowest = torch.zeros(n_lines, dtype=torch.int64)
        lowest = lowest.scatter_reduce(0, line, other, "amin", include_self=False)
        highest = torch.zeros(n_lines, dtype=torch.int64).scatter_reduce(0, line, other + 1, "amax")
        ends = [before[:-1:2], before[1::2], before[2::2], lowest, highest]
        bounds.append(torch.stack(ends, 1).flatten())
        lines.append(torch.stack([other[order], places[order]], 1).flatten())
    return torch.cat([*bounds, *lines, *[x.flatten() for x in words]]).to(device)


def transposed(words: Tensor) -> Tensor:
    """[n, 64] words per key -> [n, 64] words per query."""
    bits = words.view(torch.uint8).view(-1, TILE, 8, 1) >> torch.arange(8) & 1
    return pack(bits.view(-1, TILE, TILE).transpose(0, 1).flatten(1)).view(-1, TILE)
