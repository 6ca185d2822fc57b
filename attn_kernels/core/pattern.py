"""Pattern: any predicate over (query, key), compiled once into lists of key runs and bit masks."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from .geometry import Geometry, Run, check_count

GROUP = 64  # query rows that share a list of runs, and bits in a word
CELL = 16  # keys in a tile: runs start at multiples of it
RUN_NUMBERS = 4  # of a run in the table: start, stop, keys before it, place of its first word


@dataclass(frozen=True)
class Pattern(Geometry):
    """The query at row p sees key j iff f(p, j), for any f: from_mask(...), from_function(...).

    A query's position is its row: query i of a call is row i + query_offset. By default the call's
    last query and last key stand to each other as the pattern's do: row i for a call of the
    pattern's size, the newest row for one query and a cache of all keys up to it. A call may have
    fewer queries and keys than the pattern, not more.

    Queries come in groups of 64 rows, keys in cells of 16. Neighbouring cells of a group that every
    query of it sees in full are one run of two numbers; neighbouring cells that are seen in part
    are a run with one word per key, whose bit i is the group's query i. The rest takes no memory.

    `table` holds, as int64: where each group's runs begin, and their number; start, stop, number of
    the group's keys before the run, and place of its first word (-1: fully seen) of each run; and
    the words. csrc/pattern.h reads the same.
    """

    q_len: int
    k_len: int
    n_runs: int
    table: Tensor = field(repr=False, compare=False)
    digest: str = field(init=False)
    name: ClassVar[str] = "pattern"

    def __post_init__(self) -> None:
        content = ctypes.string_at(self.table.data_ptr(), self.table.nbytes)
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        object.__setattr__(self, "digest", digest)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Pattern:
        """mask: bool [Lq, Lk], True where the query sees the key."""
        if not isinstance(mask, Tensor):
            raise TypeError(f"Pattern: mask must be a torch.Tensor, got {type(mask).__name__}")
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise ValueError(
                "Pattern: mask must be a bool tensor [queries, keys],"
                f" got {list(mask.shape)} of {str(mask.dtype).removeprefix('torch.')}"
            )
        return compiled(lambda start, stop: mask[start:stop].cpu(), *mask.shape)

    @classmethod
    def from_function(
        cls, function: Callable[[Tensor, Tensor], Tensor], q_len: int, k_len: int
    ) -> Pattern:
        """function(q_pos, k_pos) -> bool: of int tensors [n, 1] and [1, k_len], as FlexAttention's
        mask_mod without its first two arguments. It is called once for every 64 rows, on the CPU.
        """
        check_count("Pattern", "q_len", q_len, 0)
        check_count("Pattern", "k_len", k_len, 0)
        k_pos = torch.arange(k_len).unsqueeze(0)

        def rows(start: int, stop: int) -> Tensor:
            seen = function(torch.arange(start, stop).unsqueeze(1), k_pos)
            if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
                got = str(seen.dtype) if isinstance(seen, Tensor) else type(seen).__name__
                raise TypeError(f"Pattern: function must return a bool tensor, got {got}")
            try:
                return seen.expand(stop - start, k_len)
            except RuntimeError:
                raise ValueError(
                    f"Pattern: function must return a tensor that broadcasts to"
                    f" [{stop - start}, {k_len}], got {list(seen.shape)}"
                ) from None

        return compiled(rows, q_len, k_len)

    def extent(self) -> tuple[int, ...]:
        return self.q_len, self.k_len, self.n_runs

    def default_offset(self, q_len: int, k_len: int) -> int:
        return 0 if q_len == self.q_len else k_len - q_len - (self.k_len - self.q_len)

    def visible(self, q_pos: Any, k_pos: Any) -> Any:
        """Rows and keys that the pattern does not have see nothing and are not seen."""
        q_pos, k_pos = torch.as_tensor(q_pos), torch.as_tensor(k_pos)
        if self.n_runs == 0:
            return (q_pos != q_pos) & (k_pos != k_pos)
        q_inside, k_inside = (
            (q_pos >= 0) & (q_pos < self.q_len),
            (k_pos >= 0) & (k_pos < self.k_len),
        )
        q_pos, k_pos = torch.where(q_inside, q_pos, 0), torch.where(k_inside, k_pos, 0)
        words = self.words(0, group_count(self.q_len)).to(q_pos.device)
        return (words[q_pos // GROUP, k_pos] >> q_pos % GROUP & 1).bool() & q_inside & k_inside

    def words(self, first: int, stop: int) -> Tensor:
        """[stop - first, k_len]: bit i of word [g, j]: query 64 (first + g) + i sees key j."""
        groups, keys = torch.arange(first, stop).unsqueeze(1), torch.arange(self.k_len)
        n_groups, pitch = group_count(self.q_len), self.k_len + 1
        runs = self.table[n_groups + 1 :][: self.n_runs * RUN_NUMBERS].view(-1, RUN_NUMBERS)
        group_of = torch.searchsorted(
            self.table[1 : n_groups + 1], torch.arange(self.n_runs), right=True
        )
        pitch = self.k_len + 1
        run = (
            torch.searchsorted(group_of * pitch + runs[:, 0], groups * pitch + keys, right=True) - 1
        )
        run = run.clamp(min=0)
        start, end, _, place = runs[run].unbind(-1)
        inside = (group_of[run] == groups) & (keys >= start) & (keys < end)
        word = self.table[torch.where(inside & (place >= 0), place + keys - start, 0)]
        word = torch.where(place < 0, full_words(groups, self.q_len), word)
        return torch.where(inside, word, 0)

    def rows(self, start: int, stop: int) -> Tensor:
        """[stop - start, k_len] bool: what some consecutive queries see."""
        if self.n_runs == 0 or start >= stop:
            return torch.zeros(max(stop - start, 0), self.k_len, dtype=torch.bool)
        first = start // GROUP
        queries = torch.arange(start, stop)
        words = self.words(first, group_count(stop))
        return (words[queries // GROUP - first] >> (queries % GROUP).unsqueeze(1) & 1).bool()

    def key_runs(self, q_start: int, q_stop: int, k_len: int) -> Iterator[Run]:
        yield from runs_of(self.rows(q_start, q_stop)[:, :k_len], 0)

    def query_runs(self, k_start: int, k_stop: int, q_start: int, q_stop: int) -> Iterator[Run]:
        yield from runs_of(self.rows(q_start, q_stop)[:, k_start:k_stop].T, q_start)

    def visible_pairs(self, q_len: int, k_len: int, query_offset: int) -> int:
        start, stop = max(query_offset, 0), min(query_offset + q_len, self.q_len)
        bounds = [*range(start, stop, GROUP), stop]
        return sum(int(self.rows(*piece)[:, :k_len].sum()) for piece in pairwise(bounds))


def group_count(q_len: int) -> int:
    return -(-q_len // GROUP)


def full_words(groups: Tensor, q_len: int) -> Tensor:
    """The word of a key that every query of the group sees: one bit for each row there is."""
    n_rows = (q_len - groups * GROUP).clamp(max=GROUP)
    return torch.where(n_rows == GROUP, -1, (1 << n_rows % GROUP) - 1)


def pack(seen: Tensor) -> Tensor:
    """[n <= 64, keys] bool -> [keys] int64: bit i of a word is row i."""
    padded = seen.new_zeros(GROUP, seen.shape[1], dtype=torch.uint8)
    padded[: seen.shape[0]] = seen
    bit = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8).view(1, 8, 1)
    octets = (padded.view(8, 8, -1) * bit).sum(1, dtype=torch.uint8)
    return octets.T.contiguous().flatten().view(torch.int64)


def compiled(rows: Callable[[int, int], Tensor], q_len: int, k_len: int) -> Pattern:
    """The pattern whose queries [start, stop) see rows(start, stop); 64 of them at a time."""
    first_runs, run_tables, word_lists = [0], [], []
    n_groups = group_count(q_len)
    n_words = 0
    for group in range(n_groups):
        words = pack(rows(group * GROUP, min((group + 1) * GROUP, q_len)))
        runs, kept = group_runs(words, int(full_words(torch.tensor(group), q_len)), n_words)
        first_runs.append(first_runs[-1] + len(runs))
        run_tables.append(runs)
        word_lists.append(kept)
        n_words += len(kept)
    runs = torch.cat([torch.empty(0, RUN_NUMBERS, dtype=torch.int64), *run_tables])
    before_words = len(first_runs) + runs.numel()
    runs[:, 3] += torch.where(runs[:, 3] >= 0, before_words, 0)
    table = torch.cat([torch.tensor(first_runs), runs.flatten(), *word_lists])
    return Pattern(q_len, k_len, len(runs), table)


def group_runs(words: Tensor, full: int, place: int) -> tuple[Tensor, Tensor]:
    """One group's runs [n, 4] and the words of those seen in part, which lie from `place` on."""
    k_len = len(words)
    padding = words[-1:].expand(-k_len % CELL)
    cells = torch.cat([words, padding]).view(-(-k_len // CELL), CELL)
    kind = (cells != 0).any(1).long() + (cells == full).all(1)  # 0 unseen, 1 in part, 2 in full
    kept = words[(kind == 1).repeat_interleave(CELL)[:k_len]]
    begins = torch.ones_like(kind, dtype=torch.bool)
    begins[1:] = kind[1:] != kind[:-1]
    start, kind = torch.arange(0, k_len, CELL)[begins], kind[begins]
    stop = torch.cat([start[1:], torch.tensor([k_len])])[: len(start)]
    start, stop, kind = (x[kind > 0] for x in (start, stop, kind))
    count = stop - start
    n_words = torch.where(kind == 1, count, 0)
    places = torch.where(kind == 1, place + n_words.cumsum(0) - n_words, -1)
    return torch.stack([start, stop, count.cumsum(0) - count, places], 1), kept


def runs_of(seen: Tensor, first: int) -> Iterator[Run]:
    """Runs of the columns that some row sees; `first` is the position of column 0."""
    kinds = (seen.any(0).long() + seen.all(0)).tolist() if seen.numel() else []
    start = 0
    for stop in range(1, len(kinds) + 1):
        if stop == len(kinds) or kinds[stop] != kinds[start]:
            if kinds[start]:
                yield Run(first + start, first + stop, kinds[start] == 2)
            start = stop
