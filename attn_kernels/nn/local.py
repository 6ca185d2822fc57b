"""Local self-attention over images (and sequences): the queries of a block see its surroundings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attn_kernels import Local1d, Local2d
from attn_kernels.core.tracing import as_int

from .attention import Attention
from .cache import KeyValueCache
from .checks import check_tensor


class LocalAttention1d(Attention):
    """Blocked local attention along the raster order of [B, L, dim] or [B, rows, cols, dim].

    A query of block b sees the positions [b * block - look_back, (b + 1) * block + look_ahead), and
    nothing behind itself if causal. look_back = block, causal, is Image Transformer's 1-D local
    attention and tensor2tensor's masked_local_attention_1d.

    Args:
        block, look_back, look_ahead, causal: as for `Local1d`.
        options: the keywords of `Attention`, geometry excepted.
    Example:
        >>> LocalAttention1d(64, 8, block=16, look_back=16)(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        block: int,
        look_back: int,
        look_ahead: int = 0,
        causal: bool = True,
        **options: Any,
    ) -> None:
        geometry = Local1d(block, look_back, look_ahead, causal)
        super().__init__(dim, heads, geometry=geometry, **options)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """As Attention.forward, without a context, in the shape of x."""
        if not isinstance(x, Tensor) or x.dim() < 3:
            check_tensor("x", x, ("batch", "length", "dim"), self.dim)
        return super().forward(x.flatten(1, -2), **options).reshape(x.shape)


class LocalAttention2d(Attention):
    """Blocked local attention on the canvas of [B, rows, cols, dim].

    A query sees its block and a halo around it; if causal, only what the block raster scan reaches
    no later than itself (Image Transformer's 2-D local attention).

    Args:
        block, halo, causal: as for `Local2d`.
        options: the keywords of `Attention`, geometry excepted.
    Example:
        >>> layer = LocalAttention2d(64, 8, block=(8, 8), halo=(4, 4))
        >>> layer(torch.randn(2, 20, 30, 64)).shape
        torch.Size([2, 20, 30, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        block: tuple[int, int],
        halo: tuple[int, int],
        causal: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, geometry=Local2d((0, 0), block, halo, causal), **options)

    def forward(
        self, x: Tensor, *, key_lengths: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """[B, rows, cols, dim]; key_lengths count positions in raster order."""
        check_tensor("x", x, ("batch", "rows", "cols", "dim"), self.dim)
        if cache is not None:
            raise NotImplementedError("cache must be None: a canvas is attended to as a whole")
        own = self.geometry
        grid = as_int(x.shape[1]), as_int(x.shape[2])
        geometry = Local2d(grid, own.block, own.halo, own.causal)
        out = super().forward(x.flatten(1, 2), geometry=geometry, key_lengths=key_lengths)
        return out.reshape(x.shape)
