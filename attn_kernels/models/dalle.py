"""DALL-E: one transformer over text and image tokens (Ramesh et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels import Pattern
from attn_kernels.nn import Attention, FeedForward, ModelCache, TransformerLayer, TransformerStack
from attn_kernels.nn.checks import (
    check_choice,
    check_count,
    check_counts,
    check_fraction,
    check_ids,
)
from attn_kernels.nn.layer import Layer

from .config import Config
from .sampling import sample
from .tokens import lengths_of

PATTERNS = ("row", "column", "conv", "full")
WRAPS = ("raster", "torus")
TEXT_SHARE = 1 / 8  # of the loss


@dataclass(frozen=True)
class DalleConfig(Config):
    """Sizes of DALL-E.

    text_length: positions of text, the first of which holds a start token.
    grid: rows and columns of the image's codes.
    patterns: one of "row", "column", "conv", "full" for each layer; None is the paper's schedule.
    kernel, wrap: of "conv", see `sees`.
    pad: the text id that fills up a text.
    """

    text_vocab: int = 16_384
    text_length: int = 256
    codes: int = 8192
    grid: int = 32
    dim: int = 3968
    heads: int = 62
    layers: int = 64
    dropout: float = 0.1
    patterns: tuple[str, ...] | None = None
    kernel: int = 11
    wrap: str = "raster"
    pad: int = 0

    presets: ClassVar = {
        "dalle": {},
        "small": {
            "text_vocab": 1024,
            "text_length": 16,
            "codes": 256,
            "grid": 8,
            "dim": 128,
            "heads": 4,
            "layers": 4,
            "kernel": 5,
        },
        "digits": {
            "text_vocab": 16,
            "text_length": 4,
            "codes": 32,
            "grid": 4,
            "dim": 64,
            "heads": 4,
            "layers": 4,
            "kernel": 3,
        },
    }

    def __post_init__(self) -> None:
        names = ("text_vocab", "text_length", "codes", "grid", "dim", "heads", "layers", "kernel")
        check_counts(self, *names)
        check_counts(self, "pad", least=0)
        check_fraction("DalleConfig: dropout", self.dropout)
        check_choice("DalleConfig: wrap", self.wrap, WRAPS)
        for pattern in self.layer_patterns:
            check_choice("DalleConfig: patterns", pattern, PATTERNS)
        if len(self.layer_patterns) != self.layers:
            raise ValueError(
                f"DalleConfig: patterns must have one entry for each of {self.layers} layers,"
                f" got {len(self.layer_patterns)}"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"DalleConfig: kernel must be odd, got {self.kernel}")
        if self.text_length < 2:
            raise ValueError(f"DalleConfig: text_length must be at least 2, got {self.text_length}")
        if self.pad >= self.text_vocab:
            raise ValueError(f"DalleConfig: pad must be below {self.text_vocab}, got {self.pad}")

    @property
    def layer_patterns(self) -> tuple[str, ...]:
        """Of layers 1, 2, ...: row, column, row, row, and so on; the last is convolutional."""
        if self.patterns is not None:
            return self.patterns
        rest = range(1, self.layers)
        return (*("column" if (i - 2) % 4 == 0 else "row" for i in rest), "conv")


def sees(config: DalleConfig, pattern: str, query: Tensor, key: Tensor) -> Tensor:
    """Whether image token `query` sees image token `key`, raster indices on a grid of side S.

        row       query - key <= S: itself and the S tokens before it, the cell above the last
        column    the cells of its column, down to itself
        conv      the kernel around it, up to itself; wrap="raster" counts columns along the raster
                  as "row" does: beyond one edge lies the other, one row on (figure 11 d, "similar
                  to the row attention"); wrap="torus" closes rows and columns, as ru-dalle's first
                  versions did
        full      every token up to itself

    dalle-pytorch has three other patterns of these names: the same row alone, and a kernel whose
    last corner is the query.
    """
    side, reach = config.grid, config.kernel // 2
    offset = query - key
    before = offset >= 0
    if pattern == "full":
        return before
    if pattern == "row":
        return before & (offset <= side)
    if pattern == "column":
        return before & (offset % side == 0)
    if config.wrap == "raster":
        rows = torch.arange(-reach, reach + 1).view(-1, 1, 1)
        return before & ((offset - rows * side).abs() <= reach).any(0)
    rows, cols = query // side - key // side, query % side - key % side
    near = [torch.minimum(x % side, -x % side) <= reach for x in (rows, cols)]
    return before & near[0] & near[1]


def stream_pattern(config: DalleConfig, pattern: str) -> Pattern:
    """What each token of the whole stream sees: text causally, an image token all of the text and
    the image tokens of its pattern. One softmax goes over both kinds of keys."""
    text, length = config.text_length, config.text_length + config.grid**2

    def visible(query: Tensor, key: Tensor) -> Tensor:
        of_image = sees(config, pattern, query - text, key - text)
        return (key <= query) & ((key < text) | of_image)

    with torch.device("cpu"):
        return Pattern.from_function(visible, length, length)


Rank = Callable[[Tensor, Tensor], Tensor]


class Dalle(Layer):
    """The transformer of DALL-E (arXiv 2102.12092, section 2.2 and appendix B).

    The stream is a start token, the text, and the image's codes (`DiscreteVae`) in raster order. A
    text position without a token has a learned padding token of its own, which is attended to like
    a word. Text has learned positions, the image learned rows and columns. Layers normalise first;
    their attention is `sees`. The loss is 1/8 cross-entropy of the text and 7/8 of the image, each
    per token of its kind.

    Differences: text and image have a softmax of their own instead of a shared one; padding is
    not predicted; the paper's arrangement for mixed precision and its compressed gradients are not
    here.

    Args:
        config: the sizes.
        backend: of every attention, as for `attn_kernels.attention`.
    """

    def __init__(self, config: DalleConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = c = config
        # Words, then the padding token of each position, then the start token.
        self.text_embedding = nn.Embedding(c.text_vocab + c.text_length + 1, c.dim)
        self.image_embedding = nn.Embedding(c.codes, c.dim)
        self.text_positions = nn.Parameter(torch.empty(c.text_length, c.dim))
        self.row_positions = nn.Parameter(torch.empty(c.grid, 1, c.dim))
        self.col_positions = nn.Parameter(torch.empty(1, c.grid, c.dim))
        self.dropout = nn.Dropout(c.dropout)
        patterns = {name: stream_pattern(c, name) for name in dict.fromkeys(c.layer_patterns)}

        def layer(name: str) -> TransformerLayer:
            return TransformerLayer(
                Attention(c.dim, c.heads, geometry=patterns[name], backend=backend),
                FeedForward(c.dim, 4 * c.dim, "gelu"),
                dropout=c.dropout,
            )

        self.layers = TransformerStack(layer(name) for name in c.layer_patterns)
        self.text_head = nn.Linear(c.dim, c.text_vocab)
        self.image_head = nn.Linear(c.dim, c.codes)
        self.init_parameters()

    def init_parameters(self) -> None:
        """Embeddings and positions have a standard deviation of 0.02."""
        for parameter in (
            self.text_embedding.weight,
            self.image_embedding.weight,
            self.text_positions,
            self.row_positions,
            self.col_positions,
        ):
            nn.init.normal_(parameter, std=0.02)

    def text_tokens(self, text: Tensor) -> Tensor:
        """Rows of the text embedding for text [B, up to text_length - 1]: [B, text_length]."""
        c = self.config
        check_ids("text", text, c.text_vocab)
        if text.shape[1] >= c.text_length:
            raise ValueError(
                f"text must have at most {c.text_length - 1} tokens, got {text.shape[1]}"
            )
        lengths_of("text", text, c.pad)
        text = F.pad(text, (0, c.text_length - 1 - text.shape[1]), value=c.pad)
        positions = torch.arange(1, c.text_length, device=text.device)
        words = torch.where(text == c.pad, c.text_vocab + positions, text)
        return F.pad(words, (1, 0), value=c.text_vocab + c.text_length)

    def embed_text(self, text: Tensor) -> Tensor:
        return self.text_embedding(self.text_tokens(text)) + self.text_positions

    def embed_image(self, codes: Tensor, first: int = 0) -> Tensor:
        """[B, n, dim] of codes [B, n], the first of which is image token `first`."""
        positions = (self.row_positions + self.col_positions).flatten(0, 1)
        return self.image_embedding(codes) + positions[first : first + codes.shape[1]]

    def check_codes(self, codes: Tensor, count: int) -> None:
        side = self.config.grid
        check_ids("codes", codes, self.config.codes, ("batch", "rows", "cols"))
        if codes.shape != (count, side, side):
            raise ValueError(
                f"codes must have shape [{count}, {side}, {side}], got {list(codes.shape)}"
            )

    def forward(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What the model expects of every token, given those before it.

        Args:
            text: ids [B, up to text_length - 1], padded on the right with config.pad.
            codes: int64 [B, grid, grid].
        Returns:
            Logits [B, text_length - 1, text_vocab] and [B, grid, grid, codes].
        """
        c = self.config
        embedded = self.embed_text(text)
        self.check_codes(codes, len(text))
        stream = torch.cat([embedded, self.embed_image(codes.flatten(1))], 1)
        out = self.layers(self.dropout(stream))
        image = self.image_head(out[:, c.text_length - 1 : -1])
        return self.text_head(out[:, : c.text_length - 1]), image.unflatten(1, (c.grid, c.grid))

    def loss(self, text: Tensor, codes: Tensor) -> Tensor:
        """1/8 of the text's and 7/8 of the image's cross-entropy, each per token, in nats."""
        of_text, of_image = self(text, codes)
        words = F.pad(text, (0, of_text.shape[1] - text.shape[1]), value=self.config.pad)
        text_loss = F.cross_entropy(
            of_text.flatten(0, 1), words.flatten(), ignore_index=self.config.pad
        )
        image_loss = F.cross_entropy(of_image.flatten(0, 2), codes.flatten())
        return TEXT_SHARE * text_loss + (1 - TEXT_SHARE) * image_loss

    @torch.no_grad()
    def generate(
        self,
        text: Tensor,
        *,
        prime: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Tensor:
        """An image's codes for each text, int64 [B, grid, grid]. Call eval() first.

        Args:
            text: as for forward.
            prime: [B, n] codes of the first n image tokens, to be continued.
            temperature, top_k, generator: as for `sample`.
            cached: keep keys and values from token to token; False computes everything again.
        """
        c = self.config
        codes = text.new_zeros(len(text), 0) if prime is None else prime
        check_ids("prime", codes, c.codes)
        if len(codes) != len(text) or codes.shape[1] > c.grid**2:
            raise ValueError(
                f"prime must have shape [{len(text)}, at most {c.grid**2}], got {list(codes.shape)}"
            )
        cache = ModelCache(c.layers) if cached else None
        new = torch.cat([self.embed_text(text), self.embed_image(codes)], 1)
        stream = new
        while codes.shape[1] < c.grid**2:
            out = self.layers(self.dropout(new if cached else stream), cache=cache)
            drawn = sample(
                self.image_head(out[:, -1]),
                temperature=temperature,
                top_k=top_k,
                generator=generator,
            ).unsqueeze(1)
            new = self.embed_image(drawn, codes.shape[1])
            codes = torch.cat([codes, drawn], 1)
            stream = stream if cached else torch.cat([stream, new], 1)
        return codes.unflatten(1, (c.grid, c.grid))

    @torch.no_grad()
    def generate_ranked(
        self, text: Tensor, count: int, rank: Rank, **options: object
    ) -> tuple[Tensor, Tensor]:
        """`count` candidates for each text, best first, as the paper reranks its samples by CLIP.

        Args:
            rank: rank(text [N, length], codes [N, grid, grid]) -> scores [N], larger is better. It
                may decode the codes to images with `DiscreteVae.decode`.
            options: of generate.
        Returns:
            Codes [B, count, grid, grid] and scores [B, count].
        """
        check_count("count", count)
        repeated = text.repeat_interleave(count, 0)
        prime = options.pop("prime", None)
        if prime is not None:
            options["prime"] = prime.repeat_interleave(count, 0)
        codes = self.generate(repeated, **options)
        scores = rank(repeated, codes)
        if scores.shape != (len(repeated),):
            raise ValueError(f"rank must return scores [{len(repeated)}], got {list(scores.shape)}")
        scores, order = scores.unflatten(0, (-1, count)).sort(1, descending=True)
        entries = torch.arange(len(text), device=text.device).unsqueeze(1)
        return codes.unflatten(0, (-1, count))[entries, order], scores
