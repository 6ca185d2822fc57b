"""What benchmarks.gpu measures: shapes, and who computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, Relative, attention
from attn_kernels.core.geometry import Geometry

DEVICE = "cuda"
OURS = "attn_kernels"
DENSE_BYTES = 24 << 30  # an eager peer may allocate so much

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Work:
    """One shape of one operation."""

    group: str
    label: str
    geometry: Geometry
    batch: int
    heads: int
    q_len: int
    k_len: int
    dim: int
    k_heads: int
    rows: int = 0  # of the relative table, one per head
    backward: bool = False
    peers: tuple[str, ...] = ()  # of PROVIDERS

    @property
    def offset(self) -> int:
        """The position of query 0."""
        return self.k_len - self.q_len

    def inputs(self, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        """q, k, v and the table: the same values every time."""
        generator = torch.Generator(DEVICE).manual_seed(0)
        sizes = [
            (self.batch, self.heads, self.q_len, self.dim),
            *[(self.batch, self.k_heads, self.k_len, self.dim)] * 2,
        ]
        if self.rows:
            sizes.append((self.heads, self.rows, self.dim))
        draw = lambda size: torch.randn(size, generator=generator, device=DEVICE).to(dtype)  # noqa: E731
        return [draw(size).requires_grad_(self.backward) for size in sizes]

    def flops(self) -> float:
        """q k^T and p v over visible pairs, and 2.5 times that backward; nothing else counts."""
        pairs = visible_pairs(self.geometry, self.q_len, self.k_len)
        return 4 * self.dim * self.batch * self.heads * pairs * (2.5 if self.backward else 1)


@cache
def visible_pairs(geometry: Geometry, q_len: int, k_len: int) -> int:
    return geometry.visible_pairs(q_len, k_len, k_len - q_len)


def documents(q_pos: Any, k_pos: Any) -> Any:
    """Causal within documents of 1000 tokens."""
    return (k_pos <= q_pos) & (q_pos // 1000 == k_pos // 1000)


# --- Providers ---


def ours(work: Work) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        score = Relative(table[0]) if table else None
        return attention(q, k, v, work.geometry, score, backend="triton")

    return call


def sdpa(backend: SDPBackend) -> Callable[[Work], Call]:
    """torch's own kernels, where the geometry is one of theirs."""

    def prepare(work: Work) -> Call:
        full = work.geometry == Full() or (work.geometry == Causal() and work.q_len == 1)
        if work.rows or not (full or (work.geometry == Causal() and work.q_len == work.k_len)):
            raise NotImplementedError("not a mask that it knows")

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                grouped = work.heads != work.k_heads
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=not full, enable_gqa=grouped
                )

        return call

    return prepare


def flex(work: Work) -> Call:
    """FlexAttention, compiled. Canvases are reordered block by block first: its masks need that."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()  # it counts the shapes of one function, and stops compiling after 8
    torch._functorch.config.donated_buffer = False  # or the graph cannot be kept from call to call
    compiled = torch.compile(flex_attention, dynamic=False)
    offset, geometry = work.offset, work.geometry
    order = inverse = None
    if isinstance(geometry, Local2d):
        order = torch.tensor(sorted(range(work.q_len), key=geometry.order), device=DEVICE)
        inverse = order.argsort()

    # a pattern has no formula; documents() is the one that is timed
    visible = documents if isinstance(geometry, Pattern) else geometry.visible

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        if order is None:
            return visible(i + offset, j)
        return geometry.visible(order[i], order[j])

    mask = None
    if geometry != Full() and work.q_len > 1:
        mask = create_block_mask(seen, None, None, work.q_len, work.k_len, device=DEVICE)
    options = {"block_mask": mask, "enable_gqa": work.heads != work.k_heads}
    centre = work.rows - 1 if geometry.causal else (work.rows - 1) // 2

    def call(q: Tensor, k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        if order is not None:
            out = compiled(*(x[:, :, order] for x in (q, k, v)), **options)
            return out[:, :, inverse]
        if not table:
            return compiled(q, k, v, **options)
        by_row = q @ table[0].mT * work.dim**-0.5  # [B, H, L, rows]

        def add(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            row = (j - i - offset + centre).clamp(0, work.rows - 1)
            return score + by_row[b, h, i, row]

        return compiled(q, k, v, score_mod=add, **options)

    return call


def eager(work: Work) -> Call:
    """The best composition without a fused kernel: a dense mask or bias, or gathered blocks."""
    geometry = work.geometry
    if isinstance(geometry, Local2d):
        return eager_blocks(work, geometry)
    pairs = work.q_len * work.k_len
    if pairs * work.batch * work.heads * (8 if work.backward else 4) > DENSE_BYTES:
        raise NotImplementedError("its bias does not fit")
    q_pos = torch.arange(work.q_len, device=DEVICE).view(-1, 1) + work.offset
    k_pos = torch.arange(work.k_len, device=DEVICE)
    visible = geometry.visible(q_pos, k_pos)
    centre = work.rows - 1 if geometry.causal else (work.rows - 1) // 2
    row = (k_pos - q_pos + centre).clamp(0, max(work.rows - 1, 0))

    def call(q: Tensor, k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        bias = visible
        if table:
            by_row = q @ table[0].mT * work.dim**-0.5
            bias = by_row.gather(-1, row.expand(*by_row.shape[:2], -1, -1))
            bias = bias.masked_fill(~visible, -math.inf)
        grouped = work.heads != work.k_heads
        return F.scaled_dot_product_attention(q, k, v, bias, enable_gqa=grouped)

    return call


def eager_blocks(work: Work, geometry: Local2d) -> Call:
    """Gather the keys of every block, then attend with the blocks as a batch."""
    rows, cols = geometry.grid
    (bh, bw), (hh, hw) = geometry.block, geometry.halo
    if rows % bh or cols % bw:
        raise NotImplementedError("blocks cut at the edge")
    tops, lefts = range(0, rows, bh), range(0, cols, bw)
    grid = torch.arange(rows * cols, device=DEVICE).view(rows, cols)
    queries = torch.stack([grid[t : t + bh, x : x + bw].flatten() for t in tops for x in lefts])
    padded = F.pad(grid, (hw, hw, hh, hh), value=-1)
    keys = torch.stack(
        [padded[t : t + bh + 2 * hh, x : x + bw + 2 * hw].flatten() for t in tops for x in lefts]
    )
    visible = geometry.visible(queries.unsqueeze(2), keys.unsqueeze(1)) & (keys >= 0).unsqueeze(1)
    keys, inverse = keys.clamp(min=0), queries.flatten().argsort()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [x[:, :, at].flatten(0, 1) for x, at in ((q, queries), (k, keys), (v, keys))]
        out = F.scaled_dot_product_attention(*parts, visible)  # [B * H, blocks, queries, D]
        return out.flatten(1, 2)[:, inverse].unflatten(0, q.shape[:2])

    return call


PROVIDERS: dict[str, Callable[[Work], Call]] = {
    OURS: ours,
    "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "flex": flex,
    "eager": eager,
}


# --- Shapes ---

TORCH = ("cudnn", "flash")


def causal_works() -> Iterator[Work]:
    """Tokens times hidden size stay the same, as is usual."""
    for dim in (128, 64):
        for length in (16384, 8192, 4096, 2048, 1024):
            heads = 2048 // dim
            size = (16384 // length, heads, length, length, dim, heads)
            peers = (*TORCH, "flex") if (length, dim) == (16384, 128) else TORCH
            yield Work("causal", f"L {length} D {dim}", Causal(), *size, peers=peers)


def relative_works() -> Iterator[Work]:
    """Tables of 1024 rows that are clipped, and tables for every offset."""
    for rows in (1024, 0):
        for geometry, name in ((Causal(), "causal"), (Full(), "both")):
            for length in (8192, 2048):
                whole = length if geometry.causal else 2 * length - 1
                n_rows = whole if rows == 0 else rows if geometry.causal else rows | 1
                size = (16384 // length, 16, length, length, 128, 16, n_rows)
                label = f"{name} L {length} table {n_rows}"
                peers = ("flex", "eager") if rows else ("eager",)
                yield Work("relative", label, geometry, *size, peers=peers)


def local_2d_works() -> Iterator[Work]:
    for causal in (False, True):
        for side, block, halo in ((64, 8, 4), (128, 8, 4), (256, 16, 8)):
            length = side * side
            geometry = Local2d((side, side), (block, block), (halo, halo), causal)
            size = (max(1, 65536 // length), 16, length, length, 64, 16)
            label = f"{side}x{side}{' causal' if causal else ''}"
            peers = ("eager",) if causal else ("flex", "eager")
            yield Work("local_2d", label, geometry, *size, peers=peers)


def pattern_works() -> Iterator[Work]:
    for length in (16384, 4096):
        geometry = Pattern.from_function(documents, length, length)
        size = (16384 // length, 16, length, length, 128, 16)
        yield Work("pattern", f"documents L {length}", geometry, *size, peers=("flex", "eager"))


def decode_works() -> Iterator[Work]:
    for batch, length in ((16, 8192), (1, 131072), (1, 8192), (64, 4096)):
        for k_heads in (8, 32):
            label = f"B {batch} cache {length} heads 32/{k_heads}"
            peers = (*TORCH, "flex") if (batch, k_heads) == (16, 8) else TORCH
            size = (batch, 32, 1, length, 128, k_heads)
            yield Work("decode", label, Causal(), *size, peers=peers)


GROUPS: dict[str, Callable[[], Iterator[Work]]] = {
    "causal": causal_works,
    "relative": relative_works,
    "local_2d": local_2d_works,
    "pattern": pattern_works,
    "decode": decode_works,
}


def works(groups: list[str]) -> Iterator[Work]:
    """What is timed: the most telling shape of every group, then the next ones."""
    for row in zip_longest(*(GROUPS[name]() for name in groups)):
        for work in filter(None, row):
            ways = (False,) if work.group == "decode" else (False, True)
            for backward in ways:
                way = "backward" if backward else "forward"
                yield replace(work, label=f"{way} {work.label}", backward=backward)


MIXED = Pattern.from_function(
    lambda i, j: ((i * 7 + j * 13) % 11 < 4) | ((i // 64 - j // 64).abs() < 2), 500, 500
)
CHECKED = (
    ("full", Full(), 333, 333, 4, 0),
    ("causal", Causal(), 500, 500, 4, 0),
    ("causal, grouped, cross", Causal(), 100, 700, 2, 0),
    ("window", Causal(150), 500, 500, 4, 0),
    ("local 1-D", Local1d(64, 64), 500, 500, 4, 0),
    ("local 2-D", Local2d((20, 25), (8, 8), (4, 4)), 500, 500, 4, 0),
    ("local 2-D causal", Local2d((20, 25), (8, 4), (3, 5), True), 500, 500, 4, 0),
    ("relative, table short", Causal(), 500, 500, 4, 130),
    ("relative, table long", Causal(), 500, 500, 2, 700),
    ("relative, both ways", Full(), 500, 500, 4, 257),
    ("pattern", MIXED, 500, 500, 2, 0),
    ("relative, pattern", MIXED, 500, 500, 4, 257),
    ("decode", Causal(), 1, 3000, 2, 0),
    ("decode, relative", Causal(), 3, 3000, 4, 200),
)
CHECKED_TYPES = (
    (torch.bfloat16, (64, 128, 80)),
    (torch.float16, (64,)),
    (torch.float32, (64, 128)),
)


def checked() -> Iterator[tuple[Work, torch.dtype]]:
    """What is compared with float64, every gradient included."""
    for dtype, dims in CHECKED_TYPES:
        for dim in dims:
            for name, geometry, q_len, k_len, k_heads, rows in CHECKED:
                size = (2, 4, q_len, k_len, dim, k_heads, rows)
                yield Work("check", name, geometry, *size, backward=True), dtype
