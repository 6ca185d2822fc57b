"""Geometries: which keys a query may see.

A *position* is an index into the keys' sequence. Query i stands at position i + query_offset. In
two dimensions a position is a raster index, row * cols + col.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

FARTHEST = 2**60  # sums of a few such distances still are 64-bit numbers
UNLIMITED = 2 * FARTHEST  # a window that holds all keys before any position


def check_count(owner: str, name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise unless `value` is an int in [least, most] (symbolic ints of torch.export pass)."""
    is_int = isinstance(value, int) or hasattr(value, "__index__")  # torch.compile knows the first
    if isinstance(value, bool) or not is_int:
        raise TypeError(f"{owner}: {name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{owner}: {name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{owner}: {name} must be at most {most}, got {value}")


def smaller(a: Any, b: Any) -> Any:
    """min(a, b): of symbolic ints a choice of one would be a guard, and sym_min takes a
    microsecond."""
    return min(a, b) if type(a) is type(b) is int else torch.sym_min(a, b)


def check_flag(owner: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be a bool, got {type(value).__name__}")


def check_geometry(value: Any) -> None:
    """Raise unless `value` is a geometry."""
    if isinstance(value, Geometry):
        return
    hint = ""
    if isinstance(value, Tensor):
        hint = ": a boolean mask becomes one by Pattern.from_mask(mask)"
    elif callable(value) and not isinstance(value, type):
        hint = ": a function becomes one by Pattern.from_function(function, q_len, k_len)"
    raise TypeError(
        "geometry must be a Geometry such as Full(), Causal() or Local1d(...),"
        f" got {type(value).__name__}{hint}"
    )


def check_pair(owner: str, name: str, value: Any, least: int) -> None:
    """Raise unless `value` is two ints of at least `least`: a tuple, a list or a torch.Size."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{owner}: {name} must be a tuple or list of two ints, got {value!r}")
    for part in value:
        check_count(owner, name, part, least)


class Geometry:
    """Base of all geometries. `name`, `extent()` and `table_for()` are how one travels to the
    kernels."""

    name: ClassVar[str]
    two_dimensional: ClassVar[bool] = False
    causal: bool = False

    def extent(self) -> tuple[int, ...]:
        """The geometry's numbers, in the order csrc/geometry.h reads them."""
        raise NotImplementedError

    def table_for(self, backend: str, device: torch.device) -> Tensor | None:
        """What does not fit in numbers, as a backend's kernels read it."""
        return None

    def default_offset(self, q_len: int, k_len: int) -> int:
        """The position of query 0 where the caller names none: the last query sees the last key."""
        return k_len - q_len

    def visible(self, q_pos: Any, k_pos: Any) -> Any:
        """Whether the query at q_pos may see the key at k_pos. Ints or broadcastable tensors."""
        raise NotImplementedError

    def visible_pairs(self, q_len: int, k_len: int, query_offset: int) -> int:
        """Number of visible (query, key) pairs: what useful operations are counted by."""
        raise NotImplementedError


class SpanGeometry(Geometry):
    """One-dimensional geometries: each query sees one span of keys, and spans only move forward."""

    def span(self, q_pos: int) -> tuple[int, int]:
        """The keys [first, stop) of the query at q_pos, not yet clipped to the sequence."""
        raise NotImplementedError

    def visible_pairs(self, q_len: int, k_len: int, query_offset: int) -> int:
        spans = (self.span(i + query_offset) for i in range(q_len))
        return sum(max(0, min(stop, k_len) - max(first, 0)) for first, stop in spans)


@dataclass(frozen=True)
class Full(SpanGeometry):
    """Every query sees every key.

    Example:
        >>> q, k, v = (torch.randn(1, 4, 50, 32) for _ in range(3))
        >>> attention(q, k, v, Full()).shape
        torch.Size([1, 4, 50, 32])
    """

    name: ClassVar[str] = "full"

    def extent(self) -> tuple[int, ...]:
        return ()

    def visible(self, q_pos: Any, k_pos: Any) -> Any:
        return (q_pos == q_pos) & (k_pos == k_pos)

    def visible_pairs(self, q_len: int, k_len: int, query_offset: int) -> int:
        return q_len * k_len


@dataclass(frozen=True)
class Causal(SpanGeometry):
    """The query at p sees key j iff j <= p and, with a window, j > p - window.

    Example:
        >>> [key for key in range(8) if Causal(window=3).visible(5, key)]
        [3, 4, 5]
    """

    window: int | None = None
    name: ClassVar[str] = "causal"
    causal: ClassVar[bool] = True  # type: ignore[misc]  # of instances, in other geometries

    def __post_init__(self) -> None:
        if self.window is not None:
            check_count("Causal", "window", self.window, 1)

    def extent(self) -> tuple[int, ...]:
        """A larger window than UNLIMITED is no other, and may be no 64-bit number."""
        if self.window is None:
            return (0,)
        return (smaller(self.window, UNLIMITED),)

    def visible(self, q_pos: Any, k_pos: Any) -> Any:
        seen = k_pos <= q_pos
        return seen if self.window is None else seen & (k_pos > q_pos - self.extent()[0])

    def span(self, q_pos: int) -> tuple[int, int]:
        return 0 if self.window is None else q_pos - self.window + 1, q_pos + 1


@dataclass(frozen=True)
class Window(SpanGeometry):
    """The query at p sees key j iff p - left <= j <= p + right; None is no limit.

    Window(w - 1, 0) is Causal(w), with the tables of a causal geometry; Window(None, None) is Full.

    Example:
        >>> [key for key in range(8) if Window(2, 1).visible(4, key)]
        [2, 3, 4, 5]
    """

    left: int | None
    right: int | None
    causal: bool = field(init=False, repr=False)
    name: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        for side in ("left", "right"):
            if getattr(self, side) is not None:
                check_count("Window", side, getattr(self, side), 0)
        object.__setattr__(self, "causal", self.right == 0)
        # Kernels have shorter ways for these.
        if self.causal:
            object.__setattr__(self, "name", "causal")
        elif self.left is None and self.right is None:
            object.__setattr__(self, "name", "full")

    def extent(self) -> tuple[int, ...]:
        left, right = (
            UNLIMITED if side is None else smaller(side, UNLIMITED)
            for side in (self.left, self.right)
        )
        if self.name == "full":
            return ()
        if self.causal:
            return (0 if self.left is None else smaller(left + 1, UNLIMITED),)
        return left, right

    def visible(self, q_pos: Any, k_pos: Any) -> Any:
        seen = (q_pos == q_pos) & (k_pos == k_pos)
        if self.left is not None:
            seen = seen & (k_pos >= q_pos - smaller(self.left, UNLIMITED))
        if self.right is not None:
            seen = seen & (k_pos <= q_pos + smaller(self.right, UNLIMITED))
        return seen

    def span(self, q_pos: int) -> tuple[int, int]:
        left, right = (UNLIMITED if side is None else side for side in (self.left, self.right))
        return q_pos - left, q_pos + right + 1


@dataclass(frozen=True)
class Local1d(SpanGeometry):
    """Blocked local attention: with b = p // block, the query at p sees the keys of
    [b * block - look_back, (b + 1) * block + look_ahead), and only j <= p if causal.

    look_back = block is the masked local attention of Image and Music Transformer.

    Example:
        >>> [key for key in range(8) if Local1d(block=4, look_back=1).visible(5, key)]
        [3, 4, 5]
        >>> [key for key in range(8) if Local1d(4, 1, causal=False).visible(5, key)]
        [3, 4, 5, 6, 7]
    """

    block: int
    look_back: int
    look_ahead: int = 0
    causal: bool = True
    name: ClassVar[str] = "local_1d"

    def __post_init__(self) -> None:
        check_count("Local1d", "block", self.block, 1, FARTHEST)
        check_count("Local1d", "look_back", self.look_back, 0, FARTHEST)
        check_count("Local1d", "look_ahead", self.look_ahead, 0, FARTHEST)
        check_flag("Local1d", "causal", self.causal)
        if self.causal and self.look_ahead > 0:
            raise ValueError(f"Local1d: look_ahead must be 0 if causal, got {self.look_ahead}")

    def extent(self) -> tuple[int, ...]:
        return (self.block, self.look_back, self.look_ahead, int(self.causal))

    def visible(self, q_pos: Any, k_pos: Any) -> Any:
        start = q_pos // self.block * self.block
        seen = (k_pos >= start - self.look_back) & (k_pos < start + self.block + self.look_ahead)
        return seen & (k_pos <= q_pos) if self.causal else seen

    def span(self, q_pos: int) -> tuple[int, int]:
        start = q_pos // self.block * self.block
        stop = q_pos + 1 if self.causal else start + self.block + self.look_ahead
        return start - self.look_back, stop


class Block(NamedTuple):
    """A rectangle of canvas cells, rows [top, bottom) and columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def cells(self) -> int:
        return (self.bottom - self.top) * self.width


@dataclass(frozen=True)
class Local2d(Geometry):
    """Blocked local attention on a canvas: a query sees its block, extended by `halo` rows above
    and below and `halo` columns left and right, clipped to the canvas.

    If causal, only the keys with order(key) <= order(query), where order is the block raster scan:
    blocks row by row, positions row by row inside each block.

    Args:
        grid, block, halo: (rows, columns); lists become tuples.
    Example:
        >>> image = torch.randn(1, 4, 6, 10, 32)  # [batch, heads, rows, cols, dim]
        >>> flat = image.flatten(2, 3)
        >>> out = attention(flat, flat, flat, Local2d((6, 10), block=(4, 4), halo=(1, 2)))
        >>> out.unflatten(2, (6, 10)).shape
        torch.Size([1, 4, 6, 10, 32])
    """

    grid: tuple[int, int]
    block: tuple[int, int]
    halo: tuple[int, int]
    causal: bool = False
    name: ClassVar[str] = "local_2d"
    two_dimensional: ClassVar[bool] = True

    if TYPE_CHECKING:  # what it takes is wider than what it keeps

        def __init__(
            self,
            grid: Sequence[int],
            block: Sequence[int],
            halo: Sequence[int],
            causal: bool = False,
        ) -> None: ...

    def __post_init__(self) -> None:
        check_pair("Local2d", "grid", self.grid, 0)
        check_pair("Local2d", "block", self.block, 1)
        check_pair("Local2d", "halo", self.halo, 0)
        check_flag("Local2d", "causal", self.causal)
        if not type(self.grid) is type(self.block) is type(self.halo) is tuple:
            for name in ("grid", "block", "halo"):  # hashable, and equal however it was written
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def extent(self) -> tuple[int, ...]:
        """Blocks and halos no larger than the canvas, which is as large as any: kernels cut the
        cells of a whole block in tiles."""
        (rows, cols), (bh, bw), (hh, hw) = self.grid, self.block, self.halo
        least: Any = min
        most: Any = max
        if not type(rows) is type(cols) is int:  # symbolic: a choice of one would be a guard, and
            least, most = torch.sym_min, torch.sym_max  # sym_min takes a microsecond
        block = most(least(bh, rows), 1), most(least(bw, cols), 1)
        return (rows, cols, *block, least(hh, rows), least(hw, cols), int(self.causal))

    def order(self, pos: Any) -> Any:
        """Rank of a position in the block raster scan (blocks are cut at the canvas's edge)."""
        (rows, cols), (bh, bw) = self.grid, self.block
        row, col = pos // cols, pos % cols
        top, left = row // bh * bh, col // bw * bw
        height = bh - (top + bh - rows) * (top + bh > rows)
        width = bw - (left + bw - cols) * (left + bw > cols)
        return top * cols + left * height + (row - top) * width + (col - left)

    def visible(self, q_pos: Any, k_pos: Any) -> Any:
        _, cols, bh, bw, hh, hw, _ = self.extent()
        q_top, q_left = q_pos // cols // bh * bh, q_pos % cols // bw * bw
        k_row, k_col = k_pos // cols, k_pos % cols
        seen = (k_row >= q_top - hh) & (k_row < q_top + bh + hh)
        seen = seen & (k_col >= q_left - hw) & (k_col < q_left + bw + hw)
        return seen & (self.order(k_pos) <= self.order(q_pos)) if self.causal else seen

    def blocks(self) -> Iterator[Block]:
        """The canvas's blocks in scan order, each cut at the edge."""
        (rows, cols), (bh, bw) = self.grid, self.block
        for top in range(0, rows, bh):
            for left in range(0, cols, bw):
                yield Block(top, left, min(top + bh, rows), min(left + bw, cols))

    def visible_pairs(self, q_len: int, k_len: int, query_offset: int) -> int:
        (rows, cols), (halo_rows, halo_cols) = self.grid, self.halo
        pairs = 0
        for block in self.blocks():
            top, bottom = max(block.top - halo_rows, 0), min(block.bottom + halo_rows, rows)
            left, right = max(block.left - halo_cols, 0), min(block.right + halo_cols, cols)
            if not self.causal:
                pairs += block.cells * (bottom - top) * (right - left)
                continue
            # Everything above the block and, in its rows, to its left: earlier in the scan, whole.
            before = (block.top - top) * (right - left)
            before += (block.bottom - block.top) * (block.left - left)
            pairs += block.cells * before + block.cells * (block.cells + 1) // 2
        return pairs
