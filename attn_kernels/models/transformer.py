"""The Transformer: an encoder and a decoder of attention (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels import Causal, Full
from attn_kernels.nn import (
    Attention,
    FeedForward,
    ModelCache,
    SinusoidalPositions,
    TransformerLayer,
    TransformerStack,
)
from attn_kernels.nn.checks import check_choice, check_counts, check_fraction, check_ids
from attn_kernels.nn.layer import Layer

from .config import Config
from .sampling import generate
from .search import beam_search
from .tokens import lengths_of
from .training import smoothed_cross_entropy


@dataclass(frozen=True)
class TransformerConfig(Config):
    """Sizes of a Transformer. The presets are the paper's table 3, with its shared vocabularies of
    about 37000 (English-German) and 32000 (English-French) pieces."""

    vocab: int = 37000
    dim: int = 512
    hidden: int = 2048
    layers: int = 6
    heads: int = 8
    dropout: float = 0.1
    label_smoothing: float = 0.1
    norm: str = "post"
    pad: int = 0
    start: int = 1
    end: int = 2

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "base": {},
        "big": {"dim": 1024, "hidden": 4096, "heads": 16, "dropout": 0.3},
        "base-en-fr": {"vocab": 32000},
        "big-en-fr": {"vocab": 32000, "dim": 1024, "hidden": 4096, "heads": 16},
        "small": {"vocab": 1024, "dim": 128, "hidden": 512, "layers": 2, "heads": 4},
    }

    def __post_init__(self) -> None:
        check_counts(self, "vocab", "dim", "hidden", "layers", "heads")
        check_counts(self, "pad", "start", "end", least=0)
        check_fraction("TransformerConfig: dropout", self.dropout)
        check_fraction("TransformerConfig: label_smoothing", self.label_smoothing)
        check_choice("TransformerConfig: norm", self.norm, ("post", "pre"))
        if max(self.pad, self.start, self.end) >= self.vocab:
            raise ValueError(f"TransformerConfig: pad, start and end must be below {self.vocab}")


class Transformer(Layer):
    """Encoder-decoder of "Attention Is All You Need" (arXiv 1706.03762).

    Sections 3.1 to 3.5 and 5.4: N encoder layers (self-attention, feed-forward) and N decoder
    layers (causal self-attention, attention to the encoder, feed-forward), each sublayer as
    LayerNorm(x + Dropout(Sublayer(x))); sinusoids interleaved; one matrix for both embeddings,
    multiplied by sqrt(dim), and for the softmax; label smoothing as `smoothed_cross_entropy`, the
    learning rate as `warmup_rate`, beam search with the length penalty of `beam_search`.

    Where others differ: tensor2tensor's later versions normalise before each sublayer (norm="pre"
    here), concatenate the sinusoids, and drop attention weights and hidden units; here dropout is
    on sublayers and embeddings, as the paper says. Its attention layers have biases, as in most
    implementations (tensor2tensor's have none).

    Args:
        config: the sizes.
        backend: of every attention, as for `attn_kernels.attention`.
    """

    def __init__(self, config: TransformerConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = nn.Parameter(torch.empty(c.vocab, c.dim))
        self.init_parameters()
        self.positions = SinusoidalPositions(c.dim)
        self.dropout = nn.Dropout(c.dropout)

        def attention(geometry: Any) -> Attention:
            return Attention(c.dim, c.heads, geometry=geometry, backend=backend)

        def layer(decodes: bool) -> TransformerLayer:
            return TransformerLayer(
                attention(Causal() if decodes else Full()),
                FeedForward(c.dim, c.hidden),
                attention(Full()) if decodes else None,
                norm=c.norm,
                dropout=c.dropout,
            )

        self.encoder = TransformerStack((layer(False) for _ in range(c.layers)), c.norm)
        self.decoder = TransformerStack((layer(True) for _ in range(c.layers)), c.norm)

    def init_parameters(self) -> None:
        """The embedding's standard deviation is dim ** -0.5."""
        nn.init.normal_(self.embedding, std=self.config.dim**-0.5)

    def embed(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """sqrt(dim) * embedding + sinusoids, dropped: [B, L, dim]."""
        x = F.embedding(tokens, self.embedding) * self.config.dim**0.5
        return self.dropout(self.positions(x, offset))

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output [B, S, dim] for source [B, S], padded on the right; its lengths."""
        check_ids("source", source, self.config.vocab)
        lengths = lengths_of("source", source, self.config.pad)
        return self.encoder(self.embed(source), key_lengths=lengths), lengths

    def decode(
        self, target: Tensor, memory: Tensor, lengths: Tensor, cache: ModelCache | None = None
    ) -> Tensor:
        """Logits [B, T, vocab] of what follows each token of target [B, T], given `encode`'s
        result. With a cache, target holds only the tokens that are not in it yet."""
        check_ids("target", target, self.config.vocab)
        x = self.embed(target, cache.length if cache else 0)
        x = self.decoder(x, memory, context_lengths=lengths, cache=cache)
        return F.linear(x, self.embedding)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits [B, T, vocab]; both inputs are padded on the right with config.pad."""
        return self.decode(target, *self.encode(source))

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        """Smoothed cross-entropy per token of target [B, T], which begins with config.start and
        whose sentences finish with config.end."""
        logits = self(source, target[:, :-1])
        smoothing = self.config.label_smoothing
        return smoothed_cross_entropy(logits, target[:, 1:], smoothing, self.config.pad)

    @torch.no_grad()
    def translate(
        self,
        source: Tensor,
        *,
        beams: int = 4,
        alpha: float = 0.6,
        steps: int | None = None,
        cached: bool = True,
    ) -> Tensor:
        """The translations, [B, length], without config.start and filled up with config.end. In
        training mode dropout acts here too: call eval() first.

        Args:
            source: [B, S], padded on the right.
            beams: 1 is greedy.
            alpha: exponent of the length penalty.
            steps: the longest translation; default S + 50, as in the paper.
            cached: keep keys and values from step to step; False computes everything again.
        """
        c = self.config
        if source.dim() != 2 or source.shape[1] == 0:
            raise ValueError(
                f"source must have shape [batch, length > 0], got {list(source.shape)}"
            )
        steps = source.shape[1] + 50 if steps is None else steps
        memory, lengths = self.encode(source)
        memory, lengths = memory.repeat_interleave(beams, 0), lengths.repeat_interleave(beams, 0)
        cache = ModelCache(c.layers) if cached else None

        def logits_of(tokens: Tensor) -> Tensor:
            new = tokens[:, cache.length :] if cache else tokens
            return self.decode(new, memory, lengths, cache)[:, -1]

        def reorder(entries: Tensor) -> None:
            if cache:
                cache.reorder(entries)

        start = torch.full((len(source),), c.start, device=source.device)
        if beams == 1:
            tokens = generate(logits_of, start.unsqueeze(1), steps, temperature=0, end=c.end)
            return tokens[:, 1:]
        found, _ = beam_search(
            logits_of, reorder, start, beams=beams, end=c.end, steps=steps, alpha=alpha
        )
        return found
