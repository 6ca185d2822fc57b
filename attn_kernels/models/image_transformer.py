"""Image Transformer: images written cell by cell under local attention (Parmar et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels import Full, Local1d, Local2d
from attn_kernels.nn import (
    Attention,
    FeedForward,
    KeyValueCache,
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

from . import logistic
from .canvas import from_canvas, keys_of, read_before, scan_order, to_canvas
from .config import Config
from .constant import Constant
from .image_inputs import ChannelEmbedding, GridPositions, PixelEmbedding
from .sampling import sample

CATEGORICAL, LOGISTIC = "categorical", "logistic"


@dataclass(frozen=True)
class ImageTransformerConfig(Config):
    """Sizes of an Image Transformer.

    Args:
        image, channels, levels: rows and columns, channels, and values 0 .. levels - 1 of each.
        output: "categorical", a softmax for every channel, so the canvas is rows x (cols *
            channels); or "logistic", a mixture for every pixel, and the canvas is rows x cols.
        block, memory: of one number each for 1-D local attention along the raster scan (a query
            block and how many cells before it), of two for 2-D (rows and columns of the canvas).
        classes: 0 is unconditional.
        source, encoder_layers: the size of the small image, for super-resolution.
        head_dim: default dim / heads.
        blockwise_shift: see `read_before`; for weights of tensor2tensor's 2-D models.

    The presets have the sizes of the paper's section 5, and of tensor2tensor's configurations
    (img2img_transformer2d_n103, img2img_transformer_b3) where the paper leaves them open.
    """

    image: tuple[int, int] = (32, 32)
    channels: int = 3
    levels: int = 256
    output: str = CATEGORICAL
    mixtures: int = 10
    layers: int = 12
    dim: int = 512
    heads: int = 4
    head_dim: int | None = None
    hidden: int = 2048
    dropout: float = 0.3
    block: tuple[int, ...] = (256,)
    memory: tuple[int, ...] = (256,)
    positions: str = "sinusoid"
    classes: int = 0
    source: tuple[int, int] | None = None
    encoder_layers: int = 0
    blockwise_shift: bool = False

    presets: ClassVar = {
        "cifar10": {},
        "cifar10-classes": {"classes": 10},
        "cifar10-logistic": {
            "output": LOGISTIC,
            "layers": 14,
            "dim": 256,
            "heads": 8,
            "head_dim": 64,
            "hidden": 512,
            "dropout": 0.1,
            "positions": "learned",
        },
        "imagenet32": {"heads": 8, "dropout": 0.1},
        "superres-1d": {
            "heads": 8,
            "dropout": 0.1,
            "block": (128,),
            "memory": (128,),
            "source": (8, 8),
            "encoder_layers": 6,
        },
        "superres-2d": {
            "heads": 8,
            "dropout": 0.1,
            "block": (8, 32),
            "memory": (8, 64),
            "source": (8, 8),
            "encoder_layers": 6,
        },
        "digits": {
            "image": (8, 8),
            "channels": 1,
            "levels": 17,
            "layers": 3,
            "dim": 64,
            "hidden": 128,
            "dropout": 0.1,
            "block": (16,),
            "memory": (16,),
        },
        "digits-2d": {
            "image": (8, 8),
            "channels": 1,
            "levels": 17,
            "layers": 3,
            "dim": 64,
            "hidden": 128,
            "dropout": 0.1,
            "block": (4, 4),
            "memory": (4, 4),
        },
    }

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_counts(self, "channels", "mixtures", "layers", "dim", "heads", "hidden")
        check_counts(self, "levels", least=2)
        check_counts(self, "classes", "encoder_layers", least=0)
        check_fraction(f"{name}: dropout", self.dropout)
        check_choice(f"{name}: output", self.output, (CATEGORICAL, LOGISTIC))
        check_choice(f"{name}: positions", self.positions, ("sinusoid", "learned"))
        if len(self.block) not in (1, 2) or len(self.memory) != len(self.block):
            raise ValueError(
                f"{name}: block and memory must have one number each or two,"
                f" got {self.block} and {self.memory}"
            )
        if (self.source is None) != (self.encoder_layers == 0):
            raise ValueError(
                f"{name}: source must be given if and only if there are encoder_layers,"
                f" got {self.source} and {self.encoder_layers}"
            )
        if self.blockwise_shift and len(self.block) == 1:
            raise ValueError(f"{name}: blockwise_shift must be False for a 1-D block, got True")
        if self.dim % 4:
            raise ValueError(f"{name}: dim must be a multiple of 4, got {self.dim}")

    @property
    def canvas(self) -> tuple[int, int]:
        """Rows and columns of the canvas that the decoder writes."""
        rows, cols = self.image
        return rows, cols * (self.channels if self.output == CATEGORICAL else 1)

    def geometry(self) -> Local1d | Local2d:
        """What a cell of the canvas sees: memory and block, nothing that is written later."""
        if len(self.block) == 1:
            return Local1d(self.block[0], self.memory[0])
        return Local2d(self.canvas, self.block, self.memory, causal=True)


class ScanAttention(Attention):
    """Local self-attention over a whole canvas in raster order, or, with a cache of what has been
    written, of the one cell that is written next."""

    def forward(
        self,
        x: Tensor,
        *,
        key_lengths: None = None,
        cache: KeyValueCache | None = None,
        keys: slice | Tensor | None = None,
    ) -> Tensor:
        """[B, cells or 1, dim]. keys: which entries of the cache the cell sees."""
        q, k, v = self.project(x, None, cache)
        geometry = self.geometry
        if cache is not None:
            k, v, geometry = k[:, :, keys], v[:, :, keys], Full()
        return self.out(self.attend(q, k, v, geometry).transpose(1, 2).flatten(2))


class ImageTransformer(Layer):
    """Image Transformer (Parmar et al. 2018, arXiv 1802.05751): p(image) = prod p(cell | before).

        x   = embedding of the cell written before + position (+ class)
        x   = LN(x + dropout(attention(x)))                                     equations 1 and 2
        x   = LN(x + dropout(W_1 relu(W_2 x)))

    Cells are written in raster order under 1-D local attention, and block by block under 2-D local
    attention, where a block sees the memory above it and to both sides, and the one to its left
    (section 3.3). For super-resolution an encoder with full attention reads the small image and
    every decoder layer attends to it. `loss` is the mean over all values of an image, in nats.

    Where others differ: tensor2tensor's 2-D models shift the input inside each block
    (`blockwise_shift`), and its masked_local_attention_2d lets padding dilute the softmax where a
    canvas is not a multiple of the block; here such keys do not exist. Attention has biases.
    Dropout is on sublayers and the input.

    Args:
        config: the sizes.
        backend: of every attention, as for `attn_kernels.attention`.
    """

    def __init__(self, config: ImageTransformerConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = c = config
        self.geometry = c.geometry()
        learned, cells = c.positions == "learned", c.canvas[0] * c.canvas[1]
        heads: dict[str, Any] = {"head_dim": c.head_dim, "backend": backend}

        def layer(attention: Attention, decodes: bool) -> TransformerLayer:
            cross = Attention(c.dim, c.heads, **heads) if decodes and c.source else None
            feed_forward = FeedForward(c.dim, c.hidden)
            return TransformerLayer(attention, feed_forward, cross, norm="post", dropout=c.dropout)

        embedding = ChannelEmbedding if c.output == CATEGORICAL else PixelEmbedding
        self.embedding = embedding(c.channels, c.levels, c.dim)
        self.positions = GridPositions(c.canvas, c.dim, learned)
        self.dropout = nn.Dropout(c.dropout)
        if c.classes:
            self.class_embedding = nn.Embedding(c.classes, c.dim)
        if c.source:
            self.source_embedding = ChannelEmbedding(c.channels, c.levels, c.dim)
            grid = (c.source[0], c.source[1] * c.channels)
            self.source_positions = GridPositions(grid, c.dim, learned)
            self.encoder = TransformerStack(
                (
                    layer(Attention(c.dim, c.heads, **heads), decodes=False)
                    for _ in range(c.encoder_layers)
                ),
                "post",
            )
        self.decoder = TransformerStack(
            (
                layer(ScanAttention(c.dim, c.heads, geometry=self.geometry, **heads), decodes=True)
                for _ in range(c.layers)
            ),
            "post",
        )
        categorical = c.output == CATEGORICAL
        outputs = c.levels if categorical else logistic.parameter_count(c.channels, c.mixtures)
        self.head = nn.Linear(c.dim, outputs)
        self.scan = Constant(lambda: scan_order(self.geometry, cells))
        self.before = Constant(lambda: read_before(self.geometry, cells, c.blockwise_shift))

    def cells_of(self, images: Tensor) -> Tensor:
        """images [B, channels, rows, cols] as cells: [B, cells], or [B, cells, channels]."""
        if self.config.output == CATEGORICAL:
            return to_canvas(images).flatten(1)
        return images.flatten(2).mT

    def images_of(self, cells: Tensor) -> Tensor:
        """The inverse of `cells_of`."""
        if self.config.output == CATEGORICAL:
            return from_canvas(cells.unflatten(1, self.config.canvas), self.config.channels)
        return cells.mT.unflatten(2, self.config.image)

    def check_images(self, name: str, images: Any, size: tuple[int, int]) -> None:
        check_ids(name, images, self.config.levels, ("batch", "channels", "rows", "cols"))
        expected = (self.config.channels, *size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"{name} must have shape [batch, {', '.join(map(str, expected))}],"
                f" got {list(images.shape)}"
            )

    def condition(
        self, count: int, labels: Tensor | None, source: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The class embeddings [B, 1, dim], and the encoded source [B, cells, dim]."""
        c = self.config
        for name, given, wanted in (("labels", labels, c.classes), ("source", source, c.source)):
            if (given is not None) != bool(wanted):
                rule = "given: the model is" if wanted else "None: the model is not"
                raise ValueError(f"{name} must be {rule} conditioned on them")
            if given is not None and len(given) != count:
                raise ValueError(f"{name} must have batch {count}, got {len(given)}")
        classes = context = None
        if labels is not None:
            check_ids("labels", labels, c.classes, ("batch",))
            classes = self.class_embedding(labels).unsqueeze(1)
        if source is not None:
            self.check_images("source", source, c.source)
            canvas = to_canvas(source).flatten(1)
            cells = torch.arange(canvas.shape[1], device=canvas.device)
            x = self.source_positions(self.source_embedding(canvas, cells))
            context = self.encoder(self.dropout(x))
        return classes, context

    def decode(self, cells: Tensor, classes: Tensor | None, context: Tensor | None) -> Tensor:
        """The head's outputs [B, cells, P]: at each cell, of its own distribution."""
        everywhere = torch.arange(cells.shape[1], device=cells.device)
        x = F.pad(self.embedding(cells, everywhere), (0, 0, 0, 1))
        x = self.positions(x[:, self.before.on(x.device)])
        x = x if classes is None else x + classes
        return self.head(self.decoder(self.dropout(x), context))

    def decode_next(
        self,
        cells: Tensor,
        rank: int,
        classes: Tensor | None,
        context: Tensor | None,
        cache: ModelCache,
    ) -> Tensor:
        """`decode` at the cell written as number `rank` alone, [B, P]; the cache holds those before
        it."""
        place = int(self.scan.value[rank])
        before = int(self.before.value[place])
        if before < cells.shape[1]:
            cell = torch.arange(before, before + 1, device=cells.device)
            x = self.embedding(cells[:, before : before + 1], cell)
        else:
            x = self.head.weight.new_zeros(len(cells), 1, self.config.dim)
        x = self.positions(x, place)
        x = x if classes is None else x + classes
        keys = keys_of(self.geometry, self.scan.on(cells.device), rank)
        x = self.decoder(self.dropout(x), context, cache=cache, keys=keys)
        return self.head(x).squeeze(1)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, source: Tensor | None = None
    ) -> Tensor:
        """What the model expects at every value, given those written before it.

        Args:
            images: int64 [B, channels, rows, cols] in [0, levels).
            labels: int64 [B], for a model with classes.
            source: int64 [B, channels, *config.source], for super-resolution.
        Returns:
            Logits [B, channels, rows, cols, levels], or [B, rows, cols, P] of `logistic`.
        """
        self.check_images("images", images, self.config.image)
        out = self.decode(self.cells_of(images), *self.condition(len(images), labels, source))
        out = out.unflatten(1, self.config.canvas)
        return from_canvas(out, self.config.channels) if self.config.output == CATEGORICAL else out

    def loss(
        self, images: Tensor, labels: Tensor | None = None, source: Tensor | None = None
    ) -> Tensor:
        """-log p(images) per value (a channel of a pixel), in nats. Arguments as for forward."""
        out = self(images, labels, source)
        if self.config.output == CATEGORICAL:
            return F.cross_entropy(out.flatten(0, -2), images.flatten())
        log_p = logistic.log_probability(out, images.movedim(1, -1), self.config.levels)
        return -log_p.mean() / self.config.channels

    @torch.no_grad()
    def bits_per_dim(
        self, images: Tensor, labels: Tensor | None = None, source: Tensor | None = None
    ) -> float:
        """`loss` in bits: what the paper reports."""
        return self.loss(images, labels, source).item() / math.log(2)

    @torch.no_grad()
    def generate(
        self,
        count: int,
        labels: Tensor | None = None,
        source: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Tensor:
        """`count` images, int64 [count, channels, rows, cols]. Call eval() first.

        Args:
            labels, source: as for forward, one per image.
            temperature: below 1 is more likely images; 0 always takes the likeliest value.
            generator: draws the same images for the same seed.
            cached: keep keys and values from cell to cell; False computes everything again.
        """
        c = self.config
        check_count("count", count)
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        conditions = self.condition(count, labels, source)
        shape = (count, len(self.scan.value)) + ((c.channels,) if c.output == LOGISTIC else ())
        cells = torch.zeros(shape, dtype=torch.int64, device=self.head.weight.device)
        cache = ModelCache(c.layers)
        for rank, place in enumerate(self.scan.value.tolist()):
            if cached:
                out = self.decode_next(cells, rank, *conditions, cache)
            else:
                out = self.decode(cells, *conditions)[:, place]
            options = {"temperature": temperature, "generator": generator}
            if c.output == CATEGORICAL:
                cells[:, place] = sample(out, **options)
            else:
                cells[:, place] = logistic.draw(out, c.channels, c.levels, **options)
        return self.images_of(cells)
