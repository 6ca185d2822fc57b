"""A GPT-style decoder: a language model of causal attention (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels import Causal
from attn_kernels.nn import (
    ACTIVATIONS,
    Attention,
    FeedForward,
    LearnedPositions,
    ModelCache,
    TransformerLayer,
    TransformerStack,
)
from attn_kernels.nn.checks import (
    check_choice,
    check_count,
    check_counts,
    check_fraction,
    check_ids,
)
from attn_kernels.nn.layer import Layer

from .config import Config
from .sampling import generate
from .training import smoothed_cross_entropy


@dataclass(frozen=True)
class GPTConfig(Config):
    """Sizes of a GPT. The presets named gpt2 are those of the released models.

    windows is repeated over the layers: (None,) is dense attention everywhere, (None, 256)
    alternates dense layers with ones that see the last 256 tokens, as GPT-3 does with a band whose
    width its paper (arXiv 2005.14165, section 2.1) leaves open.
    """

    vocab: int = 50257
    max_length: int = 1024
    dim: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int | None = None  # 4 * dim
    kv_heads: int | None = None  # as many as heads
    activation: str = "gelu_tanh"
    dropout: float = 0.1
    windows: tuple[int | None, ...] = (None,)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt2": {},
        "gpt2-medium": {"dim": 1024, "layers": 24, "heads": 16},
        "gpt2-large": {"dim": 1280, "layers": 36, "heads": 20},
        "gpt2-xl": {"dim": 1600, "layers": 48, "heads": 25},
        "small": {"vocab": 256, "max_length": 256, "dim": 128, "layers": 4, "heads": 4},
    }

    def __post_init__(self) -> None:
        check_counts(self, "vocab", "max_length", "dim", "layers", "heads")
        check_fraction("GPTConfig: dropout", self.dropout)
        check_choice("GPTConfig: activation", self.activation, ACTIVATIONS)
        if not isinstance(self.windows, tuple) or not self.windows:
            raise TypeError(f"GPTConfig: windows must be a tuple, not empty, got {self.windows!r}")


class GPT(Layer):
    """Decoder-only language model: GPT-2's architecture.

        x = embedding[tokens] + positions
        x = x + W attention(LN(x)), x = x + feed_forward(LN(x))       in every layer
        logits = LN(x) embedding^T

    Layers normalise first, positions are learned, GELU is the tanh approximation, the softmax
    shares the embedding, weights start from N(0, 0.02) and those that end a residual branch from
    N(0, 0.02 / sqrt(2 layers)). GPT-2 also drops attention weights: here embeddings and sublayers.

    Args:
        config: the sizes.
        backend: of every attention, as for `attn_kernels.attention`.
    """

    def __init__(self, config: GPTConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = nn.Parameter(torch.empty(c.vocab, c.dim))
        self.positions = LearnedPositions(c.max_length, c.dim)
        self.dropout = nn.Dropout(c.dropout)

        def layer(index: int) -> TransformerLayer:
            geometry = Causal(c.windows[index % len(c.windows)])
            attention = Attention(
                c.dim, c.heads, kv_heads=c.kv_heads, geometry=geometry, backend=backend
            )
            hidden = 4 * c.dim if c.hidden is None else c.hidden
            return TransformerLayer(
                attention, FeedForward(c.dim, hidden, c.activation), dropout=c.dropout
            )

        self.decoder = TransformerStack(layer(index) for index in range(c.layers))
        self.init_parameters()

    def init_parameters(self) -> None:
        """GPT-2's initialisation."""
        nn.init.normal_(self.embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for layer in self.decoder.layers:
            for last in (layer.attention.out, layer.feed_forward.outer):
                nn.init.normal_(last.weight, std=0.02 * (2 * self.config.layers) ** -0.5)

    def forward(self, tokens: Tensor, cache: ModelCache | None = None) -> Tensor:
        """Logits [B, L, vocab] of what follows each token of [B, L]. With a cache, tokens are only
        those that are not in it yet."""
        check_ids("tokens", tokens, self.config.vocab)
        x = F.embedding(tokens, self.embedding)
        x = self.dropout(self.positions(x, cache.length if cache else 0))
        return F.linear(self.decoder(x, cache=cache), self.embedding)

    def loss(self, tokens: Tensor) -> Tensor:
        """Cross-entropy of every token of [B, L] but the first, in nats per token."""
        return smoothed_cross_entropy(self(tokens[:, :-1]), tokens[:, 1:])

    def generate(
        self,
        prompt: Tensor,
        steps: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        end: int | None = None,
        cached: bool = True,
    ) -> Tensor:
        """prompt [B, L] continued by up to `steps` tokens; the options are those of `generate` in
        models/sampling.py. cached=False computes every step from the beginning. In training mode
        dropout acts here too: call eval() first."""
        check_ids("prompt", prompt, self.config.vocab)
        check_count("steps", steps, 0)
        if prompt.shape[1] + steps > self.config.max_length:
            raise ValueError(
                f"prompt and steps must fit in max_length = {self.config.max_length} tokens,"
                f" got {prompt.shape[1]} + {steps}"
            )
        cache = ModelCache(self.config.layers) if cached else None

        def logits_of(tokens: Tensor) -> Tensor:
            return self(tokens[:, cache.length :] if cache else tokens, cache)[:, -1]

        return generate(
            logits_of, prompt, steps,
            temperature=temperature, top_k=top_k, generator=generator, end=end,
        )  # fmt: skip
