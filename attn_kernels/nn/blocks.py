"""What surrounds attention in a Transformer: the feed-forward network, residuals, a whole layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .cache import LayerCache, ModelCache
from .checks import check_choice, check_count, check_fraction
from .layer import Layer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class FeedForward(Layer):
    """W_2 activation(W_1 x + b_1) + b_2, the same at every position.

    Args:
        dim, hidden: of x and the result, and between the two products.
        activation: "relu", "gelu" (with erf) or "gelu_tanh" (its approximation, GPT-2's).
        dropout: on the hidden units.
        device, dtype: of the parameters.
    Example:
        >>> FeedForward(64, 256, "gelu")(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: str = "relu",
        dropout: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_fraction("dropout", dropout)
        check_count("dim", dim)
        check_count("hidden", hidden)
        self.activation = activation
        factory = {"device": device, "dtype": dtype}
        self.inner = nn.Linear(dim, hidden, **factory)
        self.outer = nn.Linear(hidden, dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.init_parameters()

    def init_parameters(self) -> None:
        """Glorot's uniform initialisation; biases zero."""
        for projection in (self.inner, self.outer):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(ACTIVATIONS[self.activation](self.inner(x))))


class Residual(Layer):
    """A sublayer with its residual connection, dropout and layer normalisation.

    norm="pre"      x + dropout(sublayer(LN(x)))
    norm="post"     LN(x + dropout(sublayer(x)))

    Example:
        >>> Residual(64)(torch.randn(2, 100, 64), FeedForward(64, 256)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        norm: str = "pre",
        dropout: float = 0.0,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("pre", "post"))
        check_fraction("dropout", dropout)
        self.before = norm == "pre"
        self.norm = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.before:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class TransformerLayer(Layer):
    """Self-attention, attention to a context if there is one, and a feed-forward network, each in
    a `Residual`. With norm="pre" a model normalises once more behind its last layer.

    Args:
        attention: self-attention, any layer that is called like `Attention`.
        feed_forward: called with x.
        cross: attention to the context, for decoders.
        norm, dropout, eps: as for `Residual`.
        device, dtype: of the normalisations; the sublayers have their own.
    Example:
        >>> layer = TransformerLayer(Attention(64, 8, geometry=Causal()), FeedForward(64, 256))
        >>> layer(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: nn.Module,
        cross: Attention | None = None,
        *,
        norm: str = "pre",
        dropout: float = 0.0,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        residual = partial(Residual, attention.dim, norm, dropout, eps, device=device, dtype=dtype)
        self.attention, self.feed_forward, self.cross = attention, feed_forward, cross
        self.attention_residual = residual()
        self.cross_residual = residual() if cross is not None else None
        self.feed_forward_residual = residual()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        context_lengths: Tensor | None = None,
        cache: LayerCache | None = None,
        **options: Any,
    ) -> Tensor:
        """x in its own shape.

        Args:
            context: [B, Lk, context_dim], for layers with cross-attention.
            key_lengths, context_lengths: int tensors [B]: where x and the context end.
            cache: for generation, see `LayerCache`.
            options: more keywords of the self-attention: geometry, memory.
        """
        if (self.cross is None) != (context is None):
            wanted = "None: the layer has no" if self.cross is None else "given: the layer has"
            raise ValueError(f"context must be {wanted} cross-attention")
        own = options | {"key_lengths": key_lengths, "cache": cache.own if cache else None}
        x = self.attention_residual(x, lambda x: self.attention(x, **own))
        if self.cross is not None:
            other = {"key_lengths": context_lengths, "cache": cache.context if cache else None}
            x = self.cross_residual(x, lambda x: self.cross(x, context, **other))
        return self.feed_forward_residual(x, self.feed_forward)


class TransformerStack(Layer):
    """Layers one after the other, and with norm="pre" a last normalisation.

    Args:
        layers: each called like `TransformerLayer`.
        norm, eps: as the layers'.
        device, dtype: of the last normalisation.
    Example:
        >>> def layer():
        ...     return TransformerLayer(Attention(64, 8), FeedForward(64, 256))
        >>> TransformerStack([layer(), layer()])(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        layers: Iterable[TransformerLayer],
        norm: str = "pre",
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if len(self.layers) == 0:
            raise ValueError("layers must hold at least one layer, got none")
        dim = self.layers[0].attention.dim
        last = nn.LayerNorm if norm == "pre" else nn.Identity
        self.norm = last(dim, eps, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, cache: ModelCache | None = None,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        """x in its own shape; options are those of `TransformerLayer`."""
        caches = [None] * len(self.layers) if cache is None else cache.layers
        for layer, own in zip(self.layers, caches, strict=True):
            x = layer(x, context, cache=own, **options)
        return self.norm(x)
