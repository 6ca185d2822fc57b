"""Self-Attention GAN: a block of attention in convolutional networks (Zhang et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from attn_kernels import Full, attention
from attn_kernels.nn.checks import check_count, check_counts, check_ids, check_tensor
from attn_kernels.nn.layer import Layer

from .config import Config


@dataclass(frozen=True)
class SaganConfig(Config):
    """Sizes of both networks. classes=0 is unconditional. A network has log2(image / bottom)
    residual blocks that halve or double the image; `width` channels at the image's side doubled
    from block to block; and attention where the features are attention_at x attention_at.

    The preset "sagan128" is the published code's for ImageNet; its attention at 32 x 32 features is
    the best of the paper's table 1.
    """

    image: int = 128
    image_channels: int = 3
    bottom: int = 4
    width: int = 64
    latent: int = 128
    classes: int = 1000
    attention_at: int = 32
    pool: bool = True

    presets: ClassVar = {
        "sagan128": {},
        "digits": {
            "image": 8,
            "image_channels": 1,
            "bottom": 2,
            "width": 32,
            "latent": 32,
            "classes": 10,
            "attention_at": 4,
        },
    }

    def __post_init__(self) -> None:
        check_counts(self, "image", "image_channels", "bottom", "width", "latent")
        check_counts(self, "classes", least=0)
        if self.blocks < 1 or self.bottom << self.blocks != self.image:
            raise ValueError(
                "SaganConfig: image must be bottom times a power of 2, at least twice bottom,"
                f" got {self.image} and bottom {self.bottom}"
            )
        sides = [self.bottom << block for block in range(1, self.blocks)]
        if self.attention_at not in sides:
            raise ValueError(
                f"SaganConfig: attention_at must be one of {sides}, got {self.attention_at}"
            )

    @property
    def blocks(self) -> int:
        return (self.image // self.bottom).bit_length() - 1


def init_normed(layer: nn.Module, init: Callable[[Tensor], Any]) -> None:
    """Fill the weight by `init` and the bias, if there is one, with 0. Behind spectral norm it is
    the weight before the division, and the estimated singular vectors begin anew too."""
    normed = is_parametrized(layer)
    weight = layer.parametrizations.weight.original if normed else layer.weight
    init(weight)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    if normed:
        fresh = nn.Module()
        fresh.weight = nn.Parameter(weight.detach())
        estimates = spectral_norm(fresh).parametrizations.weight[0].state_dict()
        layer.parametrizations.weight[0].load_state_dict(estimates)


class NormedConv2d(nn.Conv2d):
    """A convolution that keeps the image's size, its largest singular value normalised to 1."""

    def __init__(self, inputs: int, outputs: int, size: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2, bias=bias)
        spectral_norm(self)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init_normed(self, nn.init.xavier_uniform_)


class NormedLinear(nn.Linear):
    """A linear map, its largest singular value normalised to 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        spectral_norm(self)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init_normed(self, nn.init.xavier_uniform_)


class NormedEmbedding(nn.Embedding):
    """A table of vectors, its largest singular value normalised to 1."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__(count, dim)
        spectral_norm(self)

    def reset_parameters(self) -> None:
        init_normed(self, nn.init.normal_)


class SelfAttention2d(Layer):
    """Self-attention over the cells of x [B, C, rows, cols] (section 3 of arXiv 1805.08318).

        q = W_f x,  k = pool(W_g x),  v = pool(W_h x)      1 x 1 convolutions to C/8, C/8 and C/2
        o = softmax(q^T k) v                               unscaled
        y = x + gamma W_v o                                gamma starts at 0

    As in the published code, keys and values are maxima of 2 x 2 cells, values have C/2 channels
    (the paper writes C/8), there are no biases, and every convolution has spectral norm. A popular
    PyTorch port does not pool, keeps C channels of values, and has biases but no W_v.

    Args:
        channels: C.
        key_channels, value_channels: default C // 8 and C // 2.
        pool: False attends to every cell.
        backend: as for `attention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        value_channels: int | None = None,
        pool: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        keys = max(channels // 8, 1) if key_channels is None else key_channels
        values = max(channels // 2, 1) if value_channels is None else value_channels
        check_count("key_channels", keys)
        check_count("value_channels", values)
        self.channels, self.pool, self.backend = channels, pool, backend
        self.query = NormedConv2d(channels, keys, 1, bias=False)
        self.key = NormedConv2d(channels, keys, 1, bias=False)
        self.value = NormedConv2d(channels, values, 1, bias=False)
        self.out = NormedConv2d(values, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.empty(()))
        self.init_parameters()

    def init_parameters(self) -> None:
        """gamma is zero."""
        nn.init.zeros_(self.gamma)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, 1, cells, dk], k and v [B, 1, cells or cells / 4, dk or dv]."""
        check_tensor("x", x, ("batch", "channels", "rows", "cols"))
        if x.shape[1] != self.channels or (self.pool and (x.shape[2] % 2 or x.shape[3] % 2)):
            even = " of an even size" if self.pool else ""
            raise ValueError(
                f"x must have shape [batch, {self.channels}, rows, cols]{even}, got {list(x.shape)}"
            )
        k, v = self.key(x), self.value(x)
        if self.pool:
            k, v = F.max_pool2d(k, 2), F.max_pool2d(v, 2)
        return tuple(each.flatten(2).mT.unsqueeze(1) for each in (self.query(x), k, v))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)
        out = attention(q, k, v, Full(), scale=1.0, backend=self.backend)  # [B, 1, cells, dv]
        out = out.squeeze(1).mT.unflatten(2, x.shape[2:])
        return x + self.gamma * self.out(out)

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> Tensor:
        """Where every cell looks, for people to look at: [B, rows, cols, key rows, key cols]."""
        q, k, _ = self.project(x)
        weights = (q @ k.mT).softmax(-1).squeeze(1)
        step = 2 if self.pool else 1
        keys = (x.shape[2] // step, x.shape[3] // step)
        return weights.unflatten(1, x.shape[2:]).unflatten(-1, keys)


class ClassNorm(Layer):
    """Batch normalisation with a gain and a bias for each class (or one, without classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Parameter(torch.empty(max(classes, 1), channels))
        self.bias = nn.Parameter(torch.empty(max(classes, 1), channels))
        self.init_parameters()

    def init_parameters(self) -> None:
        """Gains are one, biases zero."""
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        gain, bias = self.gain[labels], self.bias[labels]
        return self.norm(x) * gain[:, :, None, None] + bias[:, :, None, None]


class GeneratorBlock(Layer):
    """Doubles the image: x and two convolutions of it, added."""

    def __init__(self, inputs: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ClassNorm(inputs, classes), ClassNorm(outputs, classes)
        self.conv1, self.conv2 = NormedConv2d(inputs, outputs, 3), NormedConv2d(outputs, outputs, 3)
        self.shortcut = NormedConv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, labels)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, labels)))
        return self.shortcut(F.interpolate(x, scale_factor=2)) + h


class DiscriminatorBlock(Layer):
    """x and two convolutions of it, added, and halved if `halve`. The first block sees pixels: it
    does not rectify them."""

    def __init__(self, inputs: int, outputs: int, halve: bool = True, first: bool = False) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        self.conv1, self.conv2 = NormedConv2d(inputs, outputs, 3), NormedConv2d(outputs, outputs, 3)
        reshapes = halve or inputs != outputs
        self.shortcut = NormedConv2d(inputs, outputs, 1) if reshapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        out = h + self.shortcut(x)  # the mean of a sum is the sum of the means
        return F.avg_pool2d(out, 2) if self.halve else out


def checked_labels(labels: Tensor | None, count: int, classes: int, device: object) -> Tensor:
    """labels [count], or zeros for a model without classes."""
    if classes == 0:
        if labels is not None:
            raise ValueError("labels must be None for a model without classes")
        return torch.zeros(count, dtype=torch.int64, device=device)
    if labels is None:
        raise ValueError(f"labels must be given: the model has {classes} classes")
    check_ids("labels", labels, classes, ("batch",))
    if len(labels) != count:
        raise ValueError(f"labels must have shape [{count}], got {list(labels.shape)}")
    return labels


class SaganGenerator(Layer):
    """Noise to images in [-1, 1]: a linear map, residual blocks that double the image, with class
    conditional batch norm, attention between two of them; spectral norm on every weight."""

    def __init__(self, config: SaganConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = c = config
        channels = c.width << (c.blocks - 1)
        self.first = NormedLinear(c.latent, channels * c.bottom**2)
        self.blocks = nn.ModuleList()
        for block in reversed(range(c.blocks)):
            self.blocks.append(GeneratorBlock(channels, c.width << block, c.classes))
            channels = c.width << block
            if c.image >> block == c.attention_at:
                self.attention = SelfAttention2d(channels, pool=c.pool, backend=backend)
        self.norm = nn.BatchNorm2d(channels)
        self.last = NormedConv2d(channels, c.image_channels, 3)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, image_channels, image, image] of noise [B, latent] and labels [B]."""
        c = self.config
        check_tensor("noise", noise, ("batch", "latent"), c.latent)
        labels = checked_labels(labels, len(noise), c.classes, noise.device)
        x = self.first(noise).unflatten(1, (-1, c.bottom, c.bottom))
        for block in self.blocks:
            x = block(x, labels)
            if x.shape[2] == c.attention_at:
                x = self.attention(x)
        return torch.tanh(self.last(F.relu(self.norm(x))))

    @torch.no_grad()
    def generate(
        self,
        count: int,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`count` images of standard normal noise. Call eval() first."""
        check_count("count", count)
        like = self.norm.weight
        noise = torch.randn(
            count, self.config.latent, generator=generator, dtype=like.dtype, device=like.device
        )
        return self(noise, labels)

    def loss(self, judged: Tensor) -> Tensor:
        """-E D(G(z)), for the discriminator's judgement of generated images [B]."""
        return -judged.mean()


class SaganDiscriminator(Layer):
    """Images to judgements: residual blocks that halve the image, attention between two of them, a
    sum over cells, and a linear map plus a product with the class embedding (Miyato & Koyama 2018);
    spectral norm on every weight."""

    def __init__(self, config: SaganConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = c = config
        self.blocks, channels = nn.ModuleList(), c.image_channels
        for block in range(c.blocks):
            self.blocks.append(DiscriminatorBlock(channels, c.width << block, first=block == 0))
            channels = c.width << block
            if c.image >> (block + 1) == c.attention_at:
                self.attention = SelfAttention2d(channels, pool=c.pool, backend=backend)
        self.blocks.append(DiscriminatorBlock(channels, channels, halve=False))
        self.last = NormedLinear(channels, 1)
        if c.classes:
            self.embedding = NormedEmbedding(c.classes, channels)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judgements [B] of images [B, image_channels, image, image] with labels [B]."""
        c = self.config
        check_tensor("images", images, ("batch", "channels", "rows", "cols"))
        if images.shape[1:] != (c.image_channels, c.image, c.image):
            raise ValueError(
                f"images must have shape [batch, {c.image_channels}, {c.image}, {c.image}],"
                f" got {list(images.shape)}"
            )
        labels = checked_labels(labels, len(images), c.classes, images.device)
        x = images
        for block in self.blocks:
            x = block(x)
            if x.shape[2] == c.attention_at:
                x = self.attention(x)
        x = F.relu(x).sum((2, 3))
        judged = self.last(x).squeeze(1)
        return judged + (self.embedding(labels) * x).sum(1) if c.classes else judged

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Hinge: E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))), of judgements [B] of both kinds."""
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
