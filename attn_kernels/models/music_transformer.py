"""Music Transformer: relative self-attention over musical events (Huang et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attn_kernels import Causal, Full, Local1d
from attn_kernels.nn import (
    Attention,
    FeedForward,
    ModelCache,
    RelativeAttention,
    SinusoidalPositions,
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
from .performance import END, MELODY_VOCABULARY, START, VOCABULARY
from .sampling import generate
from .training import smoothed_cross_entropy

IGNORED = -100  # a target that does not count
MAGENTA = {"head_dim": 64}  # "att512": 8 heads of 64 for queries and keys, whatever dim is


@dataclass(frozen=True)
class MusicTransformerConfig(Config):
    """Sizes of a Music Transformer. The presets named magenta are Magenta's t_rel_len2048_h..._n...
    with keys of 512 and values of dim channels.

    Args:
        distances: rows of each head's table; default max_length // 2 (Magenta's), or 2 * block of
            local attention, which is all that it can see.
        beyond: farther keys add nothing to the logits ("zero", Magenta's) or use the last row.
        attention: "global", or "local": one's own block and the whole one before it.
        relative: False is the paper's baseline, plain attention.
        absolute: whether sinusoids are added to the input.
        melody_vocab: ids of the melody that conditions the decoder; None is no encoder.
    """

    vocab: int = VOCABULARY
    start: int = START
    end: int | None = END
    max_length: int = 2048
    dim: int = 512
    layers: int = 6
    heads: int = 8
    head_dim: int | None = None
    hidden: int = 1024
    dropout: float = 0.1
    relative: bool = True
    absolute: bool = True
    distances: int | None = None
    beyond: str = "zero"
    share_heads: bool = False
    attention: str = "global"
    block: int = 512
    melody_vocab: int | None = None
    melody_layers: int = 6

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "magenta-h384-n6": MAGENTA | {"dim": 384},
        "magenta-h384-n8": MAGENTA | {"dim": 384, "layers": 8},
        "magenta-h512-n6": MAGENTA,
        "magenta-h512-n8": MAGENTA | {"layers": 8},
        "local": {"attention": "local"},
        "melody": {"melody_vocab": MELODY_VOCABULARY},
        "small": {"dim": 128, "hidden": 512, "layers": 4, "heads": 4, "max_length": 1024},
    }

    def __post_init__(self) -> None:
        check_counts(self, "vocab", "max_length", "dim", "layers", "heads", "hidden", "block")
        check_counts(self, "start", least=0)
        check_fraction("MusicTransformerConfig: dropout", self.dropout)
        check_choice("MusicTransformerConfig: attention", self.attention, ("global", "local"))
        check_choice("MusicTransformerConfig: beyond", self.beyond, ("zero", "clip"))
        if self.start >= self.vocab or (self.end or 0) >= self.vocab:
            raise ValueError(
                f"MusicTransformerConfig: start and end must be below vocab = {self.vocab},"
                f" got {self.start} and {self.end}"
            )
        if self.melody_vocab is not None:
            check_counts(self, "melody_vocab", "melody_layers")

    def table_length(self) -> int:
        """Rows of the relative table for one side."""
        if self.distances is not None:
            return self.distances
        return 2 * self.block if self.attention == "local" else max(self.max_length // 2, 1)


class MusicTransformer(Layer):
    """Relative self-attention over performance events (arXiv 1809.04281, v3).

        s_ij = (q_i . k_j + q_i . E[j - i]) / sqrt(D_h), j <= i            section 3.4, global
        the same, j in the block of i or the one before                    section 3.5, local

    with E of each head and layer. In front: embedding * sqrt(dim) and tensor2tensor's sinusoids;
    around: layers that normalise first, a last normalisation, and a softmax of its own weights, as
    in Magenta's code. With melody_vocab an encoder of two-sided relative attention reads a melody
    and every decoder layer attends to it (the paper's harmonisation).

    Where others differ: beyond the table's last distance tensor2tensor adds nothing (the default
    here), Shaw et al. and some PyTorch versions use the last row (beyond="clip"), others refuse.
    Here nothing is skewed, so no L x L or L x L x D tensor exists. Dropout is on embeddings,
    sublayers and hidden units; Magenta's also drops attention weights.

    Args:
        config: the sizes.
        backend: of every attention, as for `attn_kernels.attention`.
    """

    def __init__(self, config: MusicTransformerConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = nn.Embedding(c.vocab, c.dim)
        self.melody_embedding = None
        if c.melody_vocab is not None:
            self.melody_embedding = nn.Embedding(c.melody_vocab, c.dim)
        self.init_embeddings()
        self.positions = SinusoidalPositions(c.dim, "tensor2tensor")
        self.dropout = nn.Dropout(c.dropout)
        local = Local1d(c.block, c.block)
        own = local if c.attention == "local" else Causal()
        sizes = {"head_dim": c.head_dim, "backend": backend}
        if c.head_dim is not None:
            sizes["value_head_dim"] = c.dim // c.heads

        def attention(geometry: Any) -> Attention:
            if not c.relative:
                return Attention(c.dim, c.heads, geometry=geometry, **sizes)
            return RelativeAttention(
                c.dim, c.heads, geometry=geometry, distances=c.table_length(),
                beyond=c.beyond, share_heads=c.share_heads, **sizes,
            )  # fmt: skip

        def layer(geometry: Any, reads: bool) -> TransformerLayer:
            return TransformerLayer(
                attention(geometry),
                FeedForward(c.dim, c.hidden, dropout=c.dropout),
                Attention(c.dim, c.heads, **sizes) if reads else None,
                dropout=c.dropout,
            )

        reads = c.melody_vocab is not None
        self.encoder = None
        if reads:
            self.encoder = TransformerStack(layer(Full(), False) for _ in range(c.melody_layers))
        self.decoder = TransformerStack(layer(own, reads) for _ in range(c.layers))
        self.output = nn.Linear(c.dim, c.vocab)
        self.init_output()

    def init_embeddings(self) -> None:
        """The standard deviation is dim ** -0.5."""
        for table in (self.embedding, self.melody_embedding):
            if table is not None:
                nn.init.normal_(table.weight, std=self.config.dim**-0.5)

    def init_output(self) -> None:
        """Glorot's uniform initialisation; the bias zero."""
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def init_parameters(self) -> None:
        self.init_embeddings()
        self.init_output()

    def embed(self, tokens: Tensor, table: nn.Embedding, offset: int = 0) -> Tensor:
        """sqrt(dim) * embedding, and sinusoids if the model has them, dropped: [B, L, dim]."""
        stop = offset + tokens.shape[1]
        if stop > self.config.max_length:
            raise ValueError(
                f"tokens must end within max_length = {self.config.max_length}, got {stop}"
            )
        x = table(tokens) * self.config.dim**0.5
        return self.dropout(self.positions(x, offset) if self.config.absolute else x)

    def encode(self, melody: Tensor | None, melody_lengths: Tensor | None = None) -> Tensor | None:
        """What the decoder attends to: [B, S, dim] of a melody [B, S], None without an encoder."""
        if (melody is None) != (self.encoder is None):
            wanted = "None: the model has no" if melody is not None else "given: the model has a"
            raise ValueError(f"melody must be {wanted} melody_vocab")
        if melody is None:
            return None
        check_ids("melody", melody, self.config.melody_vocab)
        x = self.embed(melody, self.melody_embedding)
        return self.encoder(x, key_lengths=melody_lengths)

    def decode(
        self,
        tokens: Tensor,
        memory: Tensor | None = None,
        melody_lengths: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> Tensor:
        """Logits [B, L, vocab] of what follows each token. With a cache, tokens are only those
        that are not in it yet."""
        check_ids("tokens", tokens, self.config.vocab)
        x = self.embed(tokens, self.embedding, cache.length if cache else 0)
        x = self.decoder(x, memory, context_lengths=melody_lengths, cache=cache)
        return self.output(x)

    def forward(
        self, tokens: Tensor, melody: Tensor | None = None, melody_lengths: Tensor | None = None
    ) -> Tensor:
        """Logits [B, L, vocab] for tokens [B, L] and, with an encoder, a melody [B, S] of which
        melody_lengths [B] count (all, if None)."""
        return self.decode(tokens, self.encode(melody, melody_lengths), melody_lengths)

    def loss(
        self,
        tokens: Tensor,
        melody: Tensor | None = None,
        melody_lengths: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of every token of [B, L] but the first, in nats per token: begin with
        config.start where the first event is to count. Tokens at and past lengths [B] do not."""
        logits, targets = self(tokens[:, :-1], melody, melody_lengths), tokens[:, 1:]
        if lengths is not None:
            places = torch.arange(1, tokens.shape[1], device=tokens.device)
            targets = targets.masked_fill(places >= lengths.unsqueeze(1), IGNORED)
        return smoothed_cross_entropy(logits, targets, ignore=IGNORED)

    def generate(
        self,
        steps: int,
        *,
        prompt: Tensor | None = None,
        batch: int = 1,
        melody: Tensor | None = None,
        melody_lengths: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Tensor:
        """Up to `steps` sampled tokens behind the prompt, which is part of the result: [B, L]. In
        training mode dropout acts here too: call eval() first.

        Args:
            prompt: the start of a piece, [B, length], config.start first if training had it.
                None begins anew: config.start for each of `batch` pieces (as many as melodies).
            melody, melody_lengths: what to harmonise, with an encoder.
            temperature, top_k, generator: as for `sample`.
            cached: keep keys and values from step to step; False computes everything again.
        """
        c = self.config
        check_count("steps", steps, 0)
        if prompt is None:
            count = batch if melody is None else len(melody)
            prompt = torch.full((count, 1), c.start, device=self.output.weight.device)
        check_ids("prompt", prompt, c.vocab)
        if prompt.shape[1] + steps > c.max_length:
            raise ValueError(
                f"prompt and steps must fit in max_length = {c.max_length} tokens,"
                f" got {prompt.shape[1]} + {steps}"
            )
        with torch.no_grad():
            memory = self.encode(melody, melody_lengths)
        cache = ModelCache(c.layers) if cached else None

        def logits_of(tokens: Tensor) -> Tensor:
            new = tokens[:, cache.length :] if cache else tokens
            return self.decode(new, memory, melody_lengths, cache)[:, -1]

        return generate(
            logits_of, prompt, steps,
            temperature=temperature, top_k=top_k, generator=generator, end=c.end,
        )  # fmt: skip
