"""What benchmarks.gpu checks and measures: calls, and who else computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, Relative, attention
from attn_kernels.core.geometry import Geometry

DEVICE = "cuda"
OURS = "attn_kernels"

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Work:
    """One call: an operation, a shape, and what is unusual about it.

    features, of a check: "zero" (beyond the table), "rel_v", "one table" (for all heads), "lengths"
    (unseen keys are NaN, and so is the memory behind), and where q, k and v lie: "transposed" (a
    projection's), "odd" (rows begin anywhere), "single" (strides of sizes of 1 mean nothing).
    """

    group: str
    label: str
    geometry: Geometry
    batch: int
    heads: int
    q_len: int
    k_len: int
    dim: int
    k_heads: int
    rows: int = 0  # of the relative table
    backward: bool = False  # where it is timed; checks go both ways
    peers: tuple[str, ...] = ()  # of PROVIDERS
    dtype: torch.dtype = torch.bfloat16
    features: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        way = "backward" if self.backward else "forward"
        return f"{self.group} {way} {self.label} D {self.dim}"

    @property
    def operation(self) -> tuple[object, ...]:
        """What a check of one shape says of the others."""
        return self.group, self.geometry.causal, self.dim, self.dtype, self.features

    @property
    def offset(self) -> int:
        """The position of query 0."""
        return self.k_len - self.q_len

    def lengths(self) -> Tensor | None:
        """key_lengths: all keys, not quite all, none."""
        if "lengths" not in self.features:
            return None
        return torch.tensor([self.k_len, self.k_len - 37, 0][: self.batch], device=DEVICE)

    def inputs(self) -> list[Tensor]:
        """q, k, v and the tables: the same values every time, leaves that want gradients."""
        generator = torch.Generator(DEVICE).manual_seed(0)
        key_size = self.batch, self.k_heads, self.k_len, self.dim
        sizes = [(self.batch, self.heads, self.q_len, self.dim), key_size, key_size]
        if self.rows:
            table = 1 if "one table" in self.features else self.heads, self.rows, self.dim
            sizes += [table] * (1 + ("rel_v" in self.features))
        draw = lambda size: torch.randn(size, generator=generator, device=DEVICE).to(self.dtype)  # noqa: E731
        tensors = [laid_out(draw(size), self.features) for size in sizes]
        if "lengths" in self.features:
            tensors[1:3] = [with_nan(x, self.lengths()) for x in tensors[1:3]]
        return [x.requires_grad_() for x in tensors]

    def score(self, tables: tuple[Tensor, ...]) -> Relative | None:
        beyond = "zero" if "zero" in self.features else "clip"
        return Relative(*tables, beyond=beyond) if tables else None

    def flops(self) -> float:
        """q k^T and p v over visible pairs, and 2.5 times that backward; nothing else counts."""
        pairs = visible_pairs(self.geometry, self.q_len, self.k_len)
        return 4 * self.dim * self.batch * self.heads * pairs * (2.5 if self.backward else 1)


def laid_out(x: Tensor, features: tuple[str, ...]) -> Tensor:
    """The same values, in the memory that the features name."""
    if x.dim() == 4 and "transposed" in features:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if "odd" in features:
        room = x.new_zeros(*x.shape[:-1], x.shape[-1] + 3)[..., 1:-2]
        return room.copy_(x)
    if "single" in features:
        steps = [7 if size == 1 else step for size, step in zip(x.shape, x.stride(), strict=True)]
        return x.as_strided(x.shape, steps).detach()
    return x


def with_nan(x: Tensor, lengths: Tensor) -> Tensor:
    """x as part of a longer cache that is NaN from each entry's length on."""
    room = x.new_full((*x.shape[:2], x.shape[2] + 64, x.shape[3]), float("nan"))
    seen = torch.arange(x.shape[2], device=x.device).view(-1, 1) < lengths.view(-1, 1, 1, 1)
    return room[:, :, : x.shape[2]].copy_(torch.where(seen, x, room[:, :, : x.shape[2]]))


@cache
def visible_pairs(geometry: Geometry, q_len: int, k_len: int) -> int:
    return geometry.visible_pairs(q_len, k_len, k_len - q_len)


def documents(q_pos: Any, k_pos: Any) -> Any:
    """Causal within documents of 1000 tokens."""
    return (k_pos <= q_pos) & (q_pos // 1000 == k_pos // 1000)


# --- Providers ---


def ours(work: Work) -> Call:
    lengths = work.lengths()

    def call(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
        score = work.score(tables)
        return attention(
            q, k, v, work.geometry, score, key_lengths=lengths, backend="triton"
        )  # fmt: skip

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
    geometry, order = work.geometry, None
    if isinstance(geometry, Local2d):
        order = torch.tensor(sorted(range(work.q_len), key=geometry.order), device=DEVICE)
        inverse = order.argsort()

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        return geometry.visible(i, j) if order is None else geometry.visible(order[i], order[j])

    mask = create_block_mask(seen, None, None, work.q_len, work.k_len, device=DEVICE)
    centre = work.rows - 1 if geometry.causal else (work.rows - 1) // 2

    def call(q: Tensor, k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        if order is not None:
            out = compiled(*(x[:, :, order] for x in (q, k, v)), block_mask=mask)
            return out[:, :, inverse]
        if not table:
            return compiled(q, k, v, block_mask=mask)
        by_row = q @ table[0].mT * work.dim**-0.5  # [B, H, L, rows]

        def add(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            row = (j - i + centre).clamp(0, work.rows - 1)
            return score + by_row[b, h, i, row]

        return compiled(q, k, v, score_mod=add, block_mask=mask)

    return call


PROVIDERS: dict[str, Callable[[Work], Call]] = {
    OURS: ours,
    "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "flex": flex,
}


# --- What is timed ---

TORCH = ("cudnn", "flash")
CANVAS = Local2d((64, 64), (8, 8), (4, 4))


def both_ways(works: Iterator[Work]) -> Iterator[Work]:
    for work in works:
        yield from (work, replace(work, backward=True))


def bars() -> Iterator[Work]:
    """What design and README promise, the most telling first; tokens times hidden size stay the
    same, as is usual."""

    def at(dim: int) -> Iterator[Work]:
        heads = 2048 // dim

        def work(group: str, label: str, geometry: Geometry, length: int, batch: int, **more: Any):
            return Work(group, label, geometry, batch, heads, length, length, dim, heads, **more)

        yield work("causal", "L 16384", Causal(), 16384, 1, peers=TORCH)
        yield work("relative", "L 8192 table 1024", Causal(), 8192, 2, rows=1024)
        yield work("causal", "L 8192", Causal(), 8192, 2, peers=TORCH)
        yield work("local_2d", "64x64", CANVAS, 4096, 16)
        yield work("full", "L 4096", Full(), 4096, 4, peers=TORCH)

    for dim in (128, 64):
        yield from both_ways(at(dim))


def rest() -> Iterator[Work]:
    """What is good to know as well."""
    for batch, length, k_heads in ((16, 8192, 8), (1, 131072, 8), (64, 4096, 32)):
        label = f"B {batch} cache {length} heads 32/{k_heads}"
        yield Work("decode", label, Causal(), batch, 32, 1, length, 128, k_heads, peers=TORCH)

    def others() -> Iterator[Work]:
        for geometry, name, rows in ((Full(), "both ways, ", 1025), (Causal(), "", 2048)):
            label = f"{name}L 2048 table {rows}"
            yield Work("relative", label, geometry, 8, 16, 2048, 2048, 128, 16, rows)
        causal = replace(CANVAS, causal=True)
        yield Work("local_2d", "64x64 causal", causal, 16, 32, 4096, 4096, 64, 32)
        wide = Local2d((128, 128), (16, 16), (8, 8))
        yield Work("local_2d", "128x128, blocks of 16", wide, 4, 32, 16384, 16384, 64, 32)
        for length in (4096, 2048):
            size = 16384 // length, 16, length, length, 128, 16
            yield Work("causal", f"L {length}", Causal(), *size, peers=TORCH)
        mask = Pattern.from_function(documents, 2048, 2048)
        yield Work("pattern", "documents L 2048", mask, 8, 16, 2048, 2048, 128, 16)

    yield from both_ways(others())
    for work in bars():  # FlexAttention takes long to compile
        if work.label in ("L 16384", "L 8192 table 1024", "64x64") and not work.backward:
            yield replace(work, label=f"{work.label}, beside FlexAttention", peers=("flex",))


def profiled() -> Iterator[Work]:
    """Whose kernels are timed one by one."""
    works = [x for x in bars() if x.backward and x.label not in ("L 16384", "L 4096")]
    yield from works
    canvas = next(x for x in works if x.group == "local_2d")
    causal = replace(CANVAS, causal=True)
    yield replace(canvas, geometry=causal, label="64x64 causal")


# --- What is compared with float64 ---

MIXED = Pattern.from_function(
    lambda i, j: ((i * 7 + j * 13) % 11 < 4) | ((i // 64 - j // 64).abs() < 2), 500, 500
)
SPLIT = Local2d((20, 25), (8, 4), (3, 5), causal=True)


def checks() -> Iterator[Work]:
    """Every operation out and back, in sizes of which a dense reference has room. The first are
    those of the bars, in the same compiled kernels."""
    for work in bars():
        if not work.backward and work.label != "L 8192":
            canvas = work.group == "local_2d"
            geometry = replace(CANVAS, grid=(32, 64)) if canvas else work.geometry
            n = 2048 if canvas else 1300
            small = replace(work, geometry=geometry, batch=1, q_len=n, k_len=n)
            yield replace(small, label="check", peers=())

    def check(group: str, label: str, geometry: Geometry, lengths: tuple[int, int], dim: int,
              *features: str, batch: int = 2, heads: tuple[int, int] = (4, 4), rows: int = 0,
              dtype: torch.dtype = torch.bfloat16) -> Work:  # fmt: skip
        size = batch, heads[0], *lengths, dim, heads[1], rows
        return Work(group, label, geometry, *size, dtype=dtype, features=features)

    long, short, grouped = (500, 500), (100, 700), (4, 2)
    relative, both, causal = "relative", Full(), Causal()
    yield check("decode", "grouped", causal, (1, 3000), 128, heads=(8, 2))
    yield check("decode", "table", causal, (3, 3000), 64, heads=grouped, rows=200)
    yield check(relative, "clip, both ways", both, long, 64, rows=257)
    yield check(relative, "zero, rel_v", both, long, 64, "zero", "rel_v", rows=257)
    yield check(relative, "zero, one table, grouped", Causal(150), short, 80, "zero", "one table",
                heads=grouped, rows=130)  # fmt: skip
    yield check(relative, "lengths", both, long, 64, "lengths", batch=3, rows=257)
    yield check("causal", "lengths", causal, long, 128, "lengths", batch=3)
    yield check("causal", "transposed, grouped", causal, long, 128, "transposed", heads=grouped)
    yield check(relative, "odd strides", causal, long, 64, "odd", rows=130)
    yield check("causal", "sizes of 1", causal, long, 64, "single", batch=1, heads=(1, 1))
    yield check("local_1d", "blocks of 64", Local1d(64, 64), long, 64)
    yield check("local_2d", "causal, cut", SPLIT, long, 64)
    yield check("pattern", "table", MIXED, long, 128, rows=257)
    yield check(relative, "float16", causal, short, 64, rows=700, dtype=torch.float16)
    yield check(relative, "float32", causal, long, 64, rows=130, dtype=torch.float32)
