"""What generation keeps from step to step: the keys and values of the positions so far."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_all
from .seen import Seen

FIRST_CAPACITY = 64


class KeyValueCache:
    """Keys [B, Hk, length, D] and values [B, Hk, length, Dv] of the positions so far.

    They lie in buffers that double when they are full, so n steps copy O(n) rows in all. A cache
    records no gradients.

    One that holds a context's keys and values remembers the context, and refuses another. The
    tensor from which it was filled is recognised; another one must have the same values, which
    `check_all` checks. After `reorder` the next context is taken for the reordered one if its shape
    is right.
    Example:
        >>> layer, cache = Attention(64, 8, geometry=Causal()), KeyValueCache()
        >>> with torch.no_grad():
        ...     steps = [layer(x, cache=cache) for x in torch.randn(2, 5, 64).split(1, 1)]
        >>> cache.length
        5
    """

    def __init__(self) -> None:
        self.length = 0
        self.has_context = False
        self._context: Seen | None = None
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    @property
    def k(self) -> Tensor:
        return self._k[:, :, : self.length]

    @property
    def v(self) -> Tensor:
        return self._v[:, :, : self.length]

    def remember(self, context: Tensor) -> None:
        """Everything in the cache is of this context [B, length, any]."""
        self.has_context, self._context = True, Seen(context)

    def check_context(self, context: Tensor) -> None:
        """Raise unless the cache holds the keys and values of this context [B, length, any]."""
        if not self.has_context:
            raise ValueError("context must be None with a cache of x's own keys, got a tensor")
        if context.shape[:2] != (self._k.shape[0], self.length):
            raise ValueError(
                f"context must have shape [{self._k.shape[0]}, {self.length}, *] as cached,"
                f" got {list(context.shape)}"
            )
        known = self._context
        if torch.compiler.is_compiling():
            return
        if known is None:
            self.remember(context)
        elif known.changed():
            raise ValueError(
                "context must be as it was when the cache was filled, got it changed"
                " in place: start a new cache"
            )
        elif known.x is not context:
            check_all(
                "context must be the one that the cache was filled from",
                context == known.x,
                lambda: "another: start a new cache",
            )
            self.remember(context)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k [B, Hk, n, D] and v [B, Hk, n, Dv] at the end; return all of both, as views."""
        if k.requires_grad or v.requires_grad:
            raise RuntimeError("a cache records no gradients: generate under torch.no_grad()")
        if self._k is not None:
            self._check("k", self._k, k)
            self._check("v", self._v, v)
        stop = self.length + k.shape[2]
        if self._k is None or stop > self._k.shape[2]:
            capacity = max(2 * stop, FIRST_CAPACITY)
            self._k = self._grown(self._k, k, capacity)
            self._v = self._grown(self._v, v, capacity)
        self._k[:, :, self.length : stop] = k
        self._v[:, :, self.length : stop] = v
        self.length = stop
        return self.k, self.v

    def _check(self, name: str, cached: Tensor, x: Tensor) -> None:
        """One head, or one of another layer's, would be copied to all that are cached."""
        (batch, heads, _, dim), shape = cached.shape, x.shape
        if (shape[0], shape[1], shape[3]) != (batch, heads, dim):
            raise ValueError(
                f"{name} must have shape [{batch}, {heads}, *, {dim}] as cached, got {list(shape)}"
            )

    def _grown(self, buffer: Tensor | None, like: Tensor, capacity: int) -> Tensor:
        grown = like.new_zeros(*like.shape[:2], capacity, like.shape[3])
        if buffer is not None:
            grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown

    def reorder(self, entries: Tensor) -> None:
        """Batch entry i becomes what entry entries[i] was: beam search keeps some, drops others."""
        if self._k is not None:
            self._k = self._k.index_select(0, entries)
            self._v = self._v.index_select(0, entries)
        self._context = None


class LayerCache:
    """What one decoder layer keeps: its own keys and values, and those of the context it reads.

    Example:
        >>> layer = TransformerLayer(Attention(64, 8, geometry=Causal()), FeedForward(64, 256))
        >>> cache = LayerCache()
        >>> with torch.no_grad():
        ...     newest = layer(torch.randn(2, 1, 64), cache=cache)
        >>> cache.own.length
        1
    """

    def __init__(self) -> None:
        self.own = KeyValueCache()
        self.context = KeyValueCache()


class ModelCache:
    """The caches of all layers of a decoder.

    Example:
        >>> layer = TransformerLayer(Attention(64, 8, geometry=Causal()), FeedForward(64, 256))
        >>> decoder, cache = TransformerStack([layer]), ModelCache(layers=1)
        >>> with torch.no_grad():
        ...     newest = decoder(torch.randn(2, 1, 64), cache=cache)
        >>> cache.length
        1
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]

    @property
    def length(self) -> int:
        """How many positions have been decoded."""
        return self.layers[0].own.length

    def reorder(self, entries: Tensor) -> None:
        """As KeyValueCache.reorder, in every layer."""
        for layer in self.layers:
            layer.own.reorder(entries)
            layer.context.reorder(entries)
