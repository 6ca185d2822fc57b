"""Discrete VAE: images as grids of codes, learned through the Gumbel softmax (DALL-E's stage 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels.nn.checks import check_all, check_counts, check_ids, check_tensor
from attn_kernels.nn.layer import Layer

from .config import Config

MARGIN = 0.1  # pixels are moved into [0.1, 0.9], inside the support of the logit-Laplace


@dataclass(frozen=True)
class DiscreteVaeConfig(Config):
    """Sizes of a discrete VAE. `groups` of `blocks` residual blocks on each side, with `hidden`
    channels at the image's size and twice as many at every halving. kl_weight is the paper's beta.

    The preset "dalle" has the published networks: 256 x 256 pixels, 32 x 32 codes of 8192. In its
    loss the mean divergence of a code weighs 6.6 / 192; the other presets keep that weight.
    """

    image: tuple[int, int] = (256, 256)
    channels: int = 3
    codes: int = 8192
    hidden: int = 256
    code_dim: int = 128
    groups: int = 4
    blocks: int = 2
    kl_weight: float = 6.6

    presets: ClassVar = {
        "dalle": {},
        "small": {
            "image": (32, 32),
            "codes": 256,
            "hidden": 32,
            "code_dim": 32,
            "groups": 3,
            "kl_weight": 1.65,
        },
        "digits": {
            "image": (8, 8),
            "channels": 1,
            "codes": 32,
            "hidden": 16,
            "code_dim": 16,
            "groups": 2,
            "blocks": 1,
            "kl_weight": 0.14,
        },
    }

    def __post_init__(self) -> None:
        names = ("channels", "codes", "hidden", "code_dim", "groups", "blocks")
        check_counts(self, *names)
        factor = 2 ** (self.groups - 1)
        if any(side < factor or side % factor for side in self.image):
            raise ValueError(
                f"DiscreteVaeConfig: image must have sides that are multiples of {factor},"
                f" got {self.image}"
            )
        if self.hidden % 4:
            raise ValueError(
                f"DiscreteVaeConfig: hidden must be a multiple of 4, got {self.hidden}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        factor = 2 ** (self.groups - 1)
        return self.image[0] // factor, self.image[1] // factor


class Convolution(nn.Conv2d):
    """A convolution that keeps the image's size; weights of variance 1 / fan-in, no bias yet."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.bias)


class ResidualBlock(Layer):
    """x + gain * four rectified convolutions of x, narrow in the middle."""

    def __init__(self, inputs: int, outputs: int, sizes: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        widths = [inputs, *[outputs // 4] * (len(sizes) - 1), outputs]
        layers: list[nn.Module] = []
        for size, before, after in zip(sizes, widths[:-1], widths[1:], strict=True):
            layers += [nn.ReLU(), Convolution(before, after, size)]
        self.path = nn.Sequential(*layers)
        changes = inputs != outputs
        self.shortcut = Convolution(inputs, outputs, 1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.gain * self.path(x)


def residual_groups(
    widths: list[int], blocks: int, sizes: tuple[int, ...], between: type[nn.Module], **options: Any
) -> list[nn.Module]:
    """Groups of residual blocks from widths[0] to widths[1], ...; `between` changes the size."""
    layers: list[nn.Module] = []
    groups = len(widths) - 1
    for group, (before, after) in enumerate(pairwise(widths)):
        if group:
            layers.append(between(**options))
        for block in range(blocks):
            inputs = after if block else before
            layers.append(ResidualBlock(inputs, after, sizes, 1 / (groups * blocks) ** 2))
    return layers


class DiscreteVae(Layer):
    """The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092, section 2.1, appendix A).

        q(z | x)   a softmax over K codes at every cell of a grid
        z~         softmax((log q + Gumbel noise) / temperature)      the relaxation, in training
        p(x | z)   logit-Laplace around what the decoder paints of the codes' vectors
        loss     = (-log p(x | z~) + kl_weight * KL(q || uniform)) / values of an image

    Temperature falls from 1 to 1 / 16 in the paper. Convolutions start from a normal distribution
    of variance 1 / fan-in, as in the published code (inference only), whose networks these are.
    There is no attention for `backend` to compute; the argument is here because every model has it.
    """

    def __init__(self, config: DiscreteVaeConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        c = config
        widths = [c.hidden << group for group in range(c.groups)]
        self.encoder = nn.Sequential(
            Convolution(c.channels, c.hidden, 7),
            *residual_groups(
                [c.hidden, *widths], c.blocks, (3, 3, 3, 1), nn.MaxPool2d, kernel_size=2
            ),
            nn.ReLU(),
            Convolution(widths[-1], c.codes, 1),
        )
        self.codebook = Convolution(c.codes, c.code_dim, 1)  # a row for each code, and a bias
        self.decoder = nn.Sequential(
            *residual_groups(
                [c.code_dim, *reversed(widths)], c.blocks, (1, 3, 3, 3), nn.Upsample, scale_factor=2
            ),
            nn.ReLU(),
            Convolution(c.hidden, 2 * c.channels, 1),
        )

    def logits(self, images: Tensor) -> Tensor:
        """Of the codes: [B, codes, *grid], for images [B, channels, rows, cols] in [0, 1]."""
        c = self.config
        check_tensor("images", images, ("batch", "channels", "rows", "cols"))
        expected = (c.channels, *c.image)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images must have shape [batch, {', '.join(map(str, expected))}],"
                f" got {list(images.shape)}"
            )
        least, most = images.aminmax()
        check_all(
            "images must lie in [0, 1]",
            (least >= 0) & (most <= 1),
            lambda: f"{float(least)} to {float(most)}",
        )
        return self.encoder(into_margin(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The likeliest codes, int64 [B, *grid]."""
        return self.logits(images).argmax(1)

    def paint(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log scale of the logit-Laplace, each [B, channels, rows, cols], for weights
        [B, codes, *grid] of the codes."""
        return self.decoder(self.codebook(weights)).chunk(2, 1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, channels, rows, cols] in [0, 1] of codes [B, *grid]: the location, without
        noise."""
        check_ids("codes", codes, self.config.codes, ("batch", "rows", "cols"))
        if codes.shape[1:] != self.config.grid:
            raise ValueError(
                f"codes must have shape [batch, {self.config.grid[0]}, {self.config.grid[1]}],"
                f" got {list(codes.shape)}"
            )
        weights = F.one_hot(codes, self.config.codes).movedim(-1, 1)
        location, _ = self.paint(weights.to(self.codebook.weight.dtype))
        return ((torch.sigmoid(location) - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)

    def forward(self, images: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Location, log scale and the codes' logits, with relaxed codes: random."""
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        logits = self.logits(images)
        return *self.paint(F.gumbel_softmax(logits, temperature, dim=1)), logits

    def loss(self, images: Tensor, temperature: float = 1.0) -> Tensor:
        """The negative evidence bound per value of an image, with kl_weight, in nats."""
        location, log_scale, logits = self(images, temperature)
        log_q = logits.log_softmax(1)
        divergence = math.log(self.config.codes) + (log_q.exp() * log_q).sum(1)  # [B, *grid]
        values = images[0].numel()
        painted = logit_laplace(into_margin(images), location, log_scale)
        return self.config.kl_weight * divergence.sum((1, 2)).mean() / values - painted.mean()


def into_margin(images: Tensor) -> Tensor:
    """[0, 1] to [0.1, 0.9]."""
    return MARGIN + (1 - 2 * MARGIN) * images


def logit_laplace(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """log density of x in (0, 1) where logit(x) is Laplace-distributed (appendix A.3):

    1 / (2 b x (1 - x)) * exp(-|logit(x) - location| / b),    b = exp(log_scale)
    """
    away = (torch.logit(x) - location).abs() * torch.exp(-log_scale)
    return -math.log(2) - log_scale - torch.log(x * (1 - x)) - away
