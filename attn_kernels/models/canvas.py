"""Images as canvases of tokens, and the order in which a model writes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_kernels import Local1d, Local2d


def to_canvas(images: Tensor) -> Tensor:
    """images [B, channels, rows, cols] as [B, rows, cols * channels]: a pixel's channels side by
    side."""
    return images.permute(0, 2, 3, 1).flatten(2)


def from_canvas(canvas: Tensor, channels: int) -> Tensor:
    """The inverse of `to_canvas`; further axes of the canvas stay last."""
    return canvas.unflatten(2, (-1, channels)).movedim(3, 1)


def scan_order(geometry: Local1d | Local2d, cells: int) -> Tensor:
    """The cells in the order in which they are written, as raster indices [cells]: raster order
    under Local1d, the block raster scan under Local2d."""
    raster = torch.arange(cells)
    return geometry.order(raster).argsort() if isinstance(geometry, Local2d) else raster


def read_before(geometry: Local1d | Local2d, cells: int, blockwise: bool) -> Tensor:
    """Which cell is the input at each cell [cells]: the one written before it, or `cells` for none.

    The shift goes along the whole scan. blockwise: it starts anew in every block of Local2d, as in
    tensor2tensor's right_shift_blockwise; then the last cell of a block is nobody's input.
    """
    scan = scan_order(geometry, cells)
    before = F.pad(scan[:-1], (1, 0), value=cells)
    if blockwise:
        (_, cols), (block_rows, block_cols) = geometry.grid, geometry.block
        block = torch.stack([scan // cols // block_rows, scan % cols // block_cols])
        same = (block == block.roll(1, 1)).all(0)
        before = torch.where(same, before, cells)
    return torch.empty_like(before).index_copy(0, scan, before)


def keys_of(geometry: Local1d | Local2d, scan: Tensor, rank: int) -> slice | Tensor:
    """What the cell written as number `rank` sees, as numbers in writing order."""
    if isinstance(geometry, Local1d):
        first, stop = geometry.span(rank)
        return slice(max(first, 0), stop)
    return geometry.visible(scan[rank], scan[: rank + 1]).nonzero().squeeze(1)
