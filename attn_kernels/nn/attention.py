"""Multi-head attention as a layer: projections around the public operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attn_kernels import Full, Relative, attention
from attn_kernels.core.geometry import check_geometry

from .cache import KeyValueCache
from .checks import check_count, check_tensor
from .layer import Layer


class Attention(Layer):
    """Multi-head self- or cross-attention under any geometry.

        q = x W_q, k = y W_k, v = y W_v           y is the context, or x itself
        out = concat_h(attention(q_h, k_h, v_h)) W_o

    Heads are views of the projections, [B, H, L, D] of [B, L, H * D]: nothing is copied. There is
    no dropout on attention weights (the kernels never hold them): drop the layer's output instead.
    A subclass adds a score by overriding `score`, or changes the arithmetic in `attend`.

    Args:
        dim: of x and of the result.
        heads, kv_heads: query heads, and key/value heads (default as many; must divide heads).
        head_dim, value_head_dim: of q and k, and of v, per head. Default dim / heads, and head_dim.
        context_dim: of the context, default dim.
        bias, out_bias: of the three projections, and of the last one (default as `bias`).
        geometry: which keys a query sees, unless forward gets another one.
        scale: of the logits, default head_dim ** -0.5.
        backend: as for `attention`; `set_backend` changes it later.
        device, dtype: of the parameters.
    Example:
        >>> layer = Attention(64, 8, kv_heads=2, geometry=Causal(window=32))
        >>> layer(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        value_head_dim: int | None = None,
        context_dim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        geometry: Any = Full(),  # noqa: B008 (frozen)
        scale: float | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("heads", heads)
        kv_heads = heads if kv_heads is None else kv_heads
        check_count("kv_heads", kv_heads)
        if heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {heads} and {kv_heads}")
        if head_dim is None and dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.value_head_dim = self.head_dim if value_head_dim is None else value_head_dim
        check_count("head_dim", self.head_dim)
        check_count("value_head_dim", self.value_head_dim)
        self.context_dim = dim if context_dim is None else context_dim
        check_count("context_dim", self.context_dim)
        check_geometry(geometry)
        self.geometry, self.scale, self.backend = geometry, scale, backend
        factory = {"device": device, "dtype": dtype}
        self.query = nn.Linear(dim, heads * self.head_dim, bias, **factory)
        self.key = nn.Linear(self.context_dim, kv_heads * self.head_dim, bias, **factory)
        self.value = nn.Linear(self.context_dim, kv_heads * self.value_head_dim, bias, **factory)
        self.out = nn.Linear(
            heads * self.value_head_dim, dim, bias if out_bias is None else out_bias, **factory
        )
        self.init_parameters()

    def init_parameters(self) -> None:
        """Glorot's uniform initialisation; biases zero."""
        for projection in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def score(self, q: Tensor, k_len: int) -> tuple[Tensor, Relative | None]:
        """The queries of the content term, and what is added to the logits."""
        return q, None

    def split_heads(self, x: Tensor, head_dim: int) -> Tensor:
        """[B, L, H * D] as [B, H, L, D]."""
        return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)

    def project(
        self, x: Tensor, context: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q of x, and k and v of x or the context, those in the cache included."""
        check_tensor("x", x, ("batch", "length", "dim"), self.dim)
        q = self.split_heads(self.query(x), self.head_dim)
        source = x if context is None else context
        check_tensor("context", source, ("batch", "length", "dim"), self.context_dim)
        if context is not None and cache is not None and cache.length:
            cache.check_context(context)
            return q, cache.k, cache.v
        k = self.split_heads(self.key(source), self.head_dim)
        v = self.split_heads(self.value(source), self.value_head_dim)
        if cache is not None:
            k, v = cache.append(k, v)
            if context is not None:
                cache.remember(context)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, geometry: Any, **options: Any) -> Tensor:
        """[B, H, Lq, Dv] of the heads; options are key_lengths and query_offset."""
        q, score = self.score(q, k.shape[2])
        return attention(
            q, k, v, geometry, score, scale=self.scale, backend=self.backend, **options
        )

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        geometry: Any = None,
        key_lengths: Tensor | None = None,
        query_offset: int | Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """[B, L, dim] for x [B, L, dim].

        Args:
            context: [B, Lk, context_dim], what is attended to; None is x itself.
            geometry: in place of the layer's own.
            key_lengths, query_offset: as for `attention`.
            cache: x's keys and values are appended to it, and all that it holds is attended to.
                With a context, the first call fills the cache and later calls only read it; they
                must give the same context.
        """
        q, k, v = self.project(x, context, cache)
        geometry = self.geometry if geometry is None else geometry
        out = self.attend(q, k, v, geometry, key_lengths=key_lengths, query_offset=query_offset)
        return self.out(out.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kv_heads={self.kv_heads}, geometry={self.geometry}"


def set_backend(module: nn.Module, backend: str | None) -> nn.Module:
    """Make every attention layer inside `module` compute with this backend; return `module`.

    Example:
        >>> set_backend(Attention(64, 8), "reference").backend
        'reference'
    """
    for layer in module.modules():
        if hasattr(layer, "backend"):
            layer.backend = backend
    return module
