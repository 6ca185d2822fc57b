"""Blocked local attention on a canvas against unfolded windows, dense masks and FlexAttention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_kernels import Local2d, attention

from .case import Call, Case, Inputs, Peer, Shape
from .peers import FLEX, SDPA_WITH_MASK


@dataclass(frozen=True)
class CanvasShape(Shape):
    """A canvas in raster order, cut in blocks; a query sees its block and a halo around it."""

    grid: tuple[int, int] = (0, 0)
    block: tuple[int, int] = (8, 8)
    halo: tuple[int, int] = (4, 4)
    causal: bool = False

    @property
    def geometry(self) -> Local2d:
        """Blocks and halo on this canvas."""
        return Local2d(self.grid, self.block, self.halo, self.causal)

    @property
    def label(self) -> str:
        """Canvas, block and halo in rows x columns."""
        (rows, cols), (bh, bw), (hh, hw) = self.grid, self.block, self.halo
        sizes = f"[{self.batch},{self.heads},{rows}x{cols},{self.dim}]"
        return f"{sizes} block {bh}x{bw} halo {hh},{hw}{' causal' * self.causal}"


def canvas(
    grid: tuple[int, int],
    block: tuple[int, int],
    halo: tuple[int, int],
    causal: bool = False,
    batch: int = 1,
    heads: int = 8,
    dim: int = 64,
    source: str = "",
) -> CanvasShape:
    """A canvas shape from what tells it from others."""
    return CanvasShape(
        batch, heads, grid[0] * grid[1], dim,
        grid=grid, block=block, halo=halo, causal=causal, source=source,
    )  # fmt: skip


def ours(shape: CanvasShape, dtype: torch.dtype) -> Call:
    """attention() with the geometry: what local_attention_2d calls."""
    geometry = shape.geometry
    return lambda x: attention(x.q, x.k, x.v, geometry)


def unfold_sdpa(shape: CanvasShape, dtype: torch.dtype) -> Call:
    """Each block's window of keys and values copied out, as HaloNet does, then one SDPA call."""
    (rows, cols), (bh, bw), (hh, hw) = shape.grid, shape.block, shape.halo
    down, right = -rows % bh, -cols % bw  # cells that complete the last blocks
    n_down, n_right = (rows + down) // bh, (cols + right) // bw
    mask = window_mask(shape)

    def windows(x: Tensor) -> Tensor:
        x = F.pad(x.unflatten(2, (rows, cols)), (0, 0, hw, hw + right, hh, hh + down))
        x = x.unfold(2, bh + 2 * hh, bh).unfold(3, bw + 2 * hw, bw)  # [B, H, nd, nr, D, wh, ww]
        return x.permute(0, 2, 3, 1, 5, 6, 4).flatten(4, 5).flatten(0, 2)

    def blocks(x: Tensor) -> Tensor:
        x = F.pad(x.unflatten(2, (rows, cols)), (0, 0, 0, right, 0, down))
        x = x.unflatten(3, (n_right, bw)).unflatten(2, (n_down, bh))  # [B, H, nd, bh, nr, bw, D]
        return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)

    def call(x: Inputs) -> Tensor:
        out = F.scaled_dot_product_attention(blocks(x.q), windows(x.k), windows(x.v), mask)
        out = out.unflatten(2, (bh, bw)).unflatten(0, (-1, n_down, n_right))
        out = out.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
        return out[:, :, :rows, :cols].flatten(2, 3)

    return call


def window_mask(shape: CanvasShape) -> Tensor:
    """Which cells of its window a query sees, [B * blocks, 1, block, window], by the geometry."""
    (rows, cols), (bh, bw), (hh, hw) = shape.grid, shape.block, shape.halo
    tops, lefts = torch.arange(0, rows, bh), torch.arange(0, cols, bw)

    def cells(top: Tensor, left: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        row = (top.view(-1, 1) + torch.arange(height)).view(-1, 1, height, 1)
        col = (left.view(-1, 1) + torch.arange(width)).view(1, -1, 1, width)
        inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
        position = torch.where(inside, row * cols + col, 0)
        return position.flatten(2).flatten(0, 1), inside.flatten(2).flatten(0, 1)

    queries, real = cells(tops, lefts, bh, bw)
    keys, inside = cells(tops - hh, lefts - hw, bh + 2 * hh, bw + 2 * hw)
    mask = shape.geometry.visible(queries.unsqueeze(2), keys.unsqueeze(1)) & inside.unsqueeze(1)
    mask |= ~real.unsqueeze(2)  # a query of no cell: any keys, its output is dropped
    return mask.unsqueeze(1).repeat(shape.batch, 1, 1, 1)


SHAPES = (
    canvas((32, 32), (8, 8), (4, 4), source="CIFAR-sized image"),
    canvas((32, 32), (8, 8), (8, 64), causal=True, source="Image Transformer, CIFAR"),
    canvas((64, 64), (8, 8), (4, 4), source="HaloNet"),
    canvas((64, 64), (8, 8), (4, 4), causal=True, source="HaloNet's window, causal"),
    canvas((64, 64), (8, 16), (8, 8), source="wide blocks"),
    canvas((64, 64), (16, 16), (8, 8), source="large blocks"),
    canvas((96, 160), (8, 8), (4, 4), heads=4, source="a frame of video"),
    canvas((96, 160), (16, 16), (8, 64), causal=True, heads=4, source="Image Transformer, wide"),
)
CASE = Case(
    name="local_2d",
    title="local attention on a canvas",
    shapes=SHAPES,
    quick=(SHAPES[0], SHAPES[2], SHAPES[3]),
    small=canvas((11, 19), (4, 8), (3, 5), causal=True, heads=3, dim=40),
    ours=ours,
    peers={
        "unfold+sdpa": Peer(unfold_sdpa),
        "mask+sdpa": SDPA_WITH_MASK,
        "flex": FLEX,
    },
)
