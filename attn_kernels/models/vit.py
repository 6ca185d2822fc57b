"""Vision Transformer: an image as a sequence of patches (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels.nn import (
    Attention,
    FeedForward,
    LearnedPositions,
    TransformerLayer,
    TransformerStack,
)
from attn_kernels.nn.checks import check_counts, check_fraction, check_ids, check_tensor
from attn_kernels.nn.layer import Layer

from .config import Config


@dataclass(frozen=True)
class ViTConfig(Config):
    """Sizes of a Vision Transformer; the defaults are ViT-B/16. b, l and h are the paper's table 1,
    s and ti those of the same family in vit_jax; digits is for images of 8 x 8. classes = 0 is no
    head."""

    image: int = 224
    patch: int = 16
    channels: int = 3
    dim: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    classes: int = 1000
    dropout: float = 0.0

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "b16": {},
        "b32": {"patch": 32},
        "l16": {"dim": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "h14": {"patch": 14, "dim": 1280, "layers": 32, "heads": 16, "hidden": 5120},
        "s16": {"dim": 384, "heads": 6, "hidden": 1536},
        "ti16": {"dim": 192, "heads": 3, "hidden": 768},
        "digits": {
            "image": 8, "patch": 2, "channels": 1, "dim": 64, "layers": 4, "heads": 4,
            "hidden": 128, "classes": 10,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_counts(self, "image", "patch", "channels", "dim", "layers", "heads", "hidden")
        check_counts(self, "classes", least=0)
        check_fraction("ViTConfig: dropout", self.dropout)
        if self.image % self.patch:
            raise ValueError(
                f"ViTConfig: image must be a multiple of patch, got {self.image} and {self.patch}"
            )


class ViT(Layer):
    """Classification from the class token of a Transformer encoder (arXiv 2010.11929).

        z_0 = [class; W patch_1; ...; W patch_N] + positions        eq. 1
        z = z + attention(LN(z)), z = z + MLP(LN(z))                eq. 2 and 3, in every layer
        y = LN(z)_0 W_head                                          eq. 4

    Patches in raster order, learned positions for the class token too, GELU with erf, LayerNorm
    with eps 1e-6 (timm's and vit_jax's; Hugging Face has 1e-12), the head starts at 0. Dropout is
    on embeddings, sublayers and hidden units; vit_jax can drop attention weights too.

    Args:
        config: the sizes.
        backend: of every attention, as for `attn_kernels.attention`.
    """

    def __init__(self, config: ViTConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = c = config
        self.patches = nn.Conv2d(c.channels, c.dim, c.patch, c.patch)
        self.class_token = nn.Parameter(torch.empty(c.dim))
        self.positions = LearnedPositions((c.image // c.patch) ** 2 + 1, c.dim)
        self.dropout = nn.Dropout(c.dropout)

        def layer() -> TransformerLayer:
            return TransformerLayer(
                Attention(c.dim, c.heads, backend=backend),
                FeedForward(c.dim, c.hidden, "gelu", c.dropout),
                dropout=c.dropout,
                eps=1e-6,
            )

        self.encoder = TransformerStack((layer() for _ in range(c.layers)), eps=1e-6)
        self.head = nn.Linear(c.dim, c.classes) if c.classes else None
        self.init_parameters()

    def init_parameters(self) -> None:
        """The class token and the head are zero."""
        nn.init.zeros_(self.class_token)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """The class token's and the patches' vectors, [B, 1 + N, dim], of [B, channels, h, w]."""
        c = self.config
        check_tensor("images", images, ("batch", "channels", "height", "width"))
        if images.shape[1:] != (c.channels, c.image, c.image):
            raise ValueError(
                f"images must have shape [batch, {c.channels}, {c.image}, {c.image}],"
                f" got {list(images.shape)}"
            )
        patches = self.patches(images).flatten(2).transpose(1, 2)
        token = self.class_token.expand(len(images), 1, -1)
        x = self.positions(torch.cat((token, patches), 1))
        return self.encoder(self.dropout(x))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes]; without a head, the class token's vector [B, dim]."""
        token = self.features(images)[:, 0]
        return token if self.head is None else self.head(token)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of labels [B]."""
        if self.head is None:
            raise ValueError("labels need a head, got a model with classes = 0")
        check_ids("labels", labels, self.config.classes, ("batch",))
        return F.cross_entropy(self(images), labels)
