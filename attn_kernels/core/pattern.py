"""Pattern: any predicate over (query, key), compiled once into lists of key runs and bit masks."""

from __future__ import annotations

import ctypes
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
from torch import Tensor

from .geometry import Geometry, check_count
from .tracing import by_values

P = ParamSpec("P")
T = TypeVar("T")

GROUP = 64  # query rows that share a list of runs, and bits in a word
CELL = 16  # keys in a tile: runs start at multiples of it
PIECE = 2048  # keys that a predicate is asked about at a time
RUN_NUMBERS = 4  # of a run in the table: start, stop, keys before it, place of its first word
NOT_IN_A_GRAPH = "Pattern: a mask is compiled by its values: make the pattern outside of the graph"


def on_cpu(function: Callable[P, T]) -> Callable[P, T]:
    """What it makes is on the CPU, whatever torch.set_default_device says."""

    @wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> T:
        with torch.device("cpu"):
            return function(*args, **options)

    return wrapped


@dataclass(frozen=True)
class Pattern(Geometry):
    """The query at row p sees key j iff f(p, j), for any f: from_mask(...), from_function(...).

    A query's position is its row: query i of a call is row i + query_offset. By default the call's
    last query and last key stand to each other as the pattern's do: row i for a call of the
    pattern's size, the newest row for one query and a cache of all keys up to it. A call may have
    fewer queries and keys than the pattern, not more.

    Queries come in groups of 64 rows, keys in cells of 16. Neighbouring cells of a group that every
    query of it sees in full are one run; neighbouring cells that are seen in part are a run with
    one word per key, whose bit i is the group's query i. The rest takes no memory.

    `table` holds, as int64: where each group's runs begin, and their number; start, stop, number of
    the group's keys before the run, and place of its first word (-1: fully seen) of each run; and
    the words. csrc/pattern.h reads the same.

    Example:
        >>> strided = lambda q, k: (k <= q) & ((q - k < 16) | (k % 16 == 15))
        >>> pattern = Pattern.from_function(strided, 100, 100)
        >>> q, k, v = (torch.randn(1, 4, 100, 32) for _ in range(3))
        >>> attention(q, k, v, pattern).shape
        torch.Size([1, 4, 100, 32])
        >>> document = torch.arange(100) // 40  # packed sequences of 40, 40 and 20
        >>> packed = Pattern.from_mask(document.view(-1, 1) == document)
    """

    q_len: int
    k_len: int
    n_runs: int = field(repr=False)
    table: Tensor = field(repr=False, compare=False)
    digest: str = field(init=False, repr=False)
    name: ClassVar[str] = "pattern"

    def __init__(
        self, q_len: int, k_len: Any = None, n_runs: Any = None, table: Any = None
    ) -> None:
        if not isinstance(table, Tensor):
            raise TypeError(
                "Pattern: make one by Pattern.from_mask(mask) or"
                f" Pattern.from_function(function, q_len, k_len), got {type(q_len).__name__}"
            )
        parts = {"q_len": q_len, "k_len": k_len, "n_runs": n_runs, "table": table}
        for name, value in parts.items():
            object.__setattr__(self, name, value)
        digest = hashlib.blake2b(content(self.table), digest_size=16).hexdigest()
        object.__setattr__(self, "digest", digest)

    @classmethod
    @by_values(NOT_IN_A_GRAPH)
    def from_mask(cls, mask: Tensor) -> Pattern:
        """mask: bool [Lq, Lk], True where the query sees the key."""
        if not isinstance(mask, Tensor):
            raise TypeError(f"Pattern: mask must be a torch.Tensor, got {type(mask).__name__}")
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise ValueError(
                "Pattern: mask must be a bool tensor [queries, keys],"
                f" got {list(mask.shape)} of {str(mask.dtype).removeprefix('torch.')}"
            )
        return compiled(lambda rows, keys: mask[rows][:, keys].cpu(), *mask.shape)

    @classmethod
    @by_values(NOT_IN_A_GRAPH)
    def from_function(
        cls, function: Callable[[Tensor, Tensor], Tensor], q_len: int, k_len: int
    ) -> Pattern:
        """function(q_pos, k_pos) -> bool: of int tensors [n, 1] and [1, m], as FlexAttention's
        mask_mod without its first two arguments. It is called for pieces of 64 x 2048, on the CPU.
        """
        check_count("Pattern", "q_len", q_len, 0)
        check_count("Pattern", "k_len", k_len, 0)
        check_function(function)

        def piece(rows: slice, keys: slice) -> Tensor:
            q_pos = torch.arange(rows.start, rows.stop).unsqueeze(1)
            k_pos = torch.arange(keys.start, keys.stop).unsqueeze(0)
            try:
                seen = function(q_pos, k_pos)
            except RuntimeError as error:
                if "Boolean value of Tensor" not in str(error):
                    raise
                raise ValueError(
                    "Pattern: function must combine tensors by &, | and ~, and choose by"
                    " torch.where; and, or, not, if and a < b < c want one bool, got a tensor"
                ) from error
            if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
                got = str(seen.dtype) if isinstance(seen, Tensor) else type(seen).__name__
                raise TypeError(f"Pattern: function must return a bool tensor, got {got}")
            try:
                return seen.expand(len(q_pos), k_pos.shape[1])
            except RuntimeError:
                raise ValueError(
                    "Pattern: function must return a tensor that broadcasts to"
                    f" [{len(q_pos)}, {k_pos.shape[1]}], got {list(seen.shape)}"
                ) from None

        return compiled(piece, q_len, k_len)

    def extent(self) -> tuple[int, ...]:
        return self.q_len, self.k_len, self.n_runs

    def table_for(self, backend: str, device: torch.device) -> Tensor | None:
        return self.table if backend == "cpu" else self.tiles(device, self.digest)

    def tiles(self, device: torch.device, digest: str) -> Tensor:
        """What GPUs read: a constant of compiled graphs, which are for one digest."""
        from .pattern_tiles import tile_table

        return tile_table(self, device)

    # torch.compiler.assume_constant_result does no more, and imports all of the compiler. Of a
    # function's arguments torch 2.11 takes no dataclass: a method, and the digest to tell them by.
    tiles._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def default_offset(self, q_len: int, k_len: int) -> int:
        return 0 if q_len == self.q_len else k_len - q_len - (self.k_len - self.q_len)

    def visible(self, q_pos: Any, k_pos: Any) -> Any:
        """Rows and keys that the pattern does not have see nothing and are not seen."""
        q_pos, k_pos = torch.as_tensor(q_pos), torch.as_tensor(k_pos)
        if self.n_runs == 0:
            return (q_pos != q_pos) & (k_pos != k_pos)
        q_inside = (q_pos >= 0) & (q_pos < self.q_len)
        k_inside = (k_pos >= 0) & (k_pos < self.k_len)
        q_pos, k_pos = torch.where(q_inside, q_pos, 0), torch.where(k_inside, k_pos, 0)
        words = self.words(0, group_count(self.q_len)).to(q_pos.device)
        return (words[q_pos // GROUP, k_pos] >> q_pos % GROUP & 1).bool() & q_inside & k_inside

    def words(self, first: int, stop: int) -> Tensor:
        """[stop - first, k_len]: bit i of word [g, j] is set if query 64 (first + g) + i sees j, or
        is none of the pattern's."""
        count = partial(torch.arange, device="cpu")
        groups, keys = count(first, stop).unsqueeze(1), count(self.k_len)
        n_groups = group_count(self.q_len)
        runs = self.table[n_groups + 1 :][: self.n_runs * RUN_NUMBERS].view(-1, RUN_NUMBERS)
        runs_until = self.table[1 : n_groups + 1]
        group_of = torch.searchsorted(runs_until, count(self.n_runs), right=True)
        order = group_of * self.k_len + runs[:, 0]
        run = torch.searchsorted(order, groups * self.k_len + keys, right=True).sub(1).clamp(min=0)
        start, end, _, place = runs[run].unbind(-1)
        inside = (group_of[run] == groups) & (keys >= start) & (keys < end)
        word = self.table[torch.where(inside & (place >= 0), place + keys - start, 0)]
        word = torch.where(place < 0, -1, word)
        return torch.where(inside, word, 0)

    @on_cpu
    def visible_pairs(self, q_len: int, k_len: int, query_offset: int) -> int:
        start, stop = max(query_offset, 0), min(query_offset + q_len, self.q_len)
        if self.n_runs == 0:
            return 0
        bits_in_byte = (torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1).sum(1)
        pairs = 0
        for group in range(start // GROUP, group_count(stop)):
            first, rows = group * GROUP, full_words(torch.tensor(group), stop)
            if start > first:
                rows = rows & -(1 << start - first)
            words = self.words(group, group + 1)[0, :k_len] & rows
            pairs += int(bits_in_byte[words.view(torch.uint8).int()].sum())
        return pairs


def check_function(function: Any) -> None:
    """Raise unless `function` takes a query's and a key's position, and needs no more."""
    if not callable(function):
        raise TypeError(f"Pattern: function must be a function, got {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell
        return
    try:
        signature.bind(0, 0)
    except TypeError:
        raise TypeError(
            "Pattern: function must take (q_pos, k_pos); FlexAttention's mask_mod is"
            f" lambda q, k: mask_mod(0, 0, q, k), got {signature}"
        ) from None


def group_count(q_len: int) -> int:
    return -(-q_len // GROUP)


def full_words(groups: Tensor, q_len: int) -> Tensor:
    """Words with a bit for each of a group's rows before q_len: what all of them see."""
    n_rows = (q_len - groups * GROUP).clamp(max=GROUP)
    return torch.where(n_rows == GROUP, -1, (1 << n_rows % GROUP) - 1)


def pack(seen: Tensor) -> Tensor:
    """[n <= 64, keys] bool -> [keys] int64: bit i of a word is row i."""
    padded = seen.new_zeros(GROUP, seen.shape[1], dtype=torch.uint8)
    padded[: seen.shape[0]] = seen
    bit = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8).view(1, 8, 1)
    octets = (padded.view(8, 8, -1) * bit).sum(1, dtype=torch.uint8)
    return octets.T.contiguous().flatten().view(torch.int64)


@on_cpu
def compiled(piece: Callable[[slice, slice], Tensor], q_len: int, k_len: int) -> Pattern:
    """The pattern of which piece(rows, keys) is a part of the mask."""
    pieces = [slice(key, min(key + PIECE, k_len)) for key in range(0, k_len, PIECE)]
    # Bytes grow in one place; a tensor of each group, between larger ones that come and go, would
    # leave memory in fragments.
    first_runs, all_runs, all_words = [0], bytearray(), bytearray()
    for group in range(group_count(q_len)):
        rows = slice(group * GROUP, min((group + 1) * GROUP, q_len))
        packed = [pack(piece(rows, keys)) for keys in pieces]
        words = torch.cat([torch.empty(0, dtype=torch.int64), *packed])
        full = int(full_words(torch.tensor(group), q_len))
        runs, kept = group_runs(words, full, len(all_words) // 8)
        first_runs.append(first_runs[-1] + len(runs))
        all_runs += content(runs)
        all_words += content(kept)
    runs, words = (
        torch.frombuffer(x, dtype=torch.int64) if x else torch.empty(0, dtype=torch.int64)
        for x in (all_runs, all_words)
    )
    places = runs[RUN_NUMBERS - 1 :: RUN_NUMBERS]
    places += torch.where(places >= 0, len(first_runs) + len(runs), 0)
    table = torch.cat([torch.tensor(first_runs), runs, words])
    return Pattern(q_len, k_len, first_runs[-1], table)


def content(x: Tensor) -> bytes:
    """The bytes of a contiguous tensor."""
    return ctypes.string_at(x.data_ptr(), x.nbytes) if x.nbytes else b""


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
