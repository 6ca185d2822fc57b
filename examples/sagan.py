"""A self-attention GAN draws handwritten digits of 8 x 8 pixels, each class when asked for it.

The figure is the Fréchet distance of generated and validation digits: of the two normal
distributions with the mean and covariance of their pixels (0..1). The baseline draws every pixel by
itself, from its own frequencies for the class, and so knows everything but how pixels go together.
samples.png has a row for each class, attention.png shows where four cells of the features look.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attn_kernels.models import SaganConfig, SaganDiscriminator, SaganGenerator

from . import pictures
from .data import digits
from .data.digits import Digits
from .options import Options, common, parser
from .quality import Quality, main, report
from .training import Training, random_numbers, shuffled

BATCH = 64
RATES = {"generator": 5e-4, "discriminator": 1e-3}
BETAS = (0.0, 0.9)
COPIES = 8  # generated digits for each validation digit
SHOWN = 16  # digits in a row


def scaled(images: Tensor) -> Tensor:
    """Values 0..16 as [n, 1, 8, 8] in -1..1."""
    return images.unsqueeze(1).float() / (digits.LEVELS - 1) * 2 - 1


def root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the rows' means and covariances."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    cov_a, cov_b = a.mT.cov(), b.mT.cov()
    half = root(cov_a)
    cross = root(half @ cov_b @ half).trace()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + cov_a.trace() + cov_b.trace() - 2 * cross)


def independent_pixels(train: Digits, labels: Tensor, dice: torch.Generator) -> Tensor:
    """Digits of these classes whose every pixel comes from another training digit."""
    found = torch.empty(len(labels), digits.SIDE**2, dtype=torch.int64)
    for index, label in enumerate(labels.tolist()):
        known = train.images[train.labels == label].flatten(1)
        chosen = torch.randint(len(known), (1, known.shape[1]), generator=dice)
        found[index] = known.gather(0, chosen)[0]
    return found.unflatten(1, (digits.SIDE, digits.SIDE))


class GanTraining(Training):
    """Two optimizers in turn; the loss on record is the discriminator's."""

    def __init__(self, options: Options, model: nn.ModuleDict, **arguments: Any) -> None:
        super().__init__(options, "sagan", model, loss=lambda batch: batch, **arguments)
        self.optimizers = {
            name: torch.optim.Adam(model[name].parameters(), rate, BETAS)
            for name, rate in RATES.items()
        }

    def descend(self, name: str, loss: Tensor) -> float:
        """One step of one network."""
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[name].step()
        return loss.item()

    def update(self, batch: Any) -> float:
        """The discriminator learns from real and generated digits, then the generator from it."""
        real, labels = (x.to(self.options.device) for x in batch)
        generator, discriminator = self.model["generator"], self.model["discriminator"]
        noise = torch.randn(2, len(real), generator.config.latent, device=real.device)
        with torch.no_grad():
            fake = generator(noise[0], labels)
        judged = discriminator.loss(discriminator(real, labels), discriminator(fake, labels))
        loss = self.descend("discriminator", judged)
        fooled = generator.loss(discriminator(generator(noise[1], labels), labels))
        self.descend("generator", fooled)
        return loss


def generate(generator: SaganGenerator, labels: Tensor, options: Options) -> Tensor:
    """Digits of these classes, values 0..1, [n, 8, 8]; the same ones for the same seed."""
    dice = torch.Generator(options.device).manual_seed(options.seed)
    found = generator.generate(len(labels), labels.to(options.device), generator=dice)
    return (found.squeeze(1).cpu() + 1) / 2


def save_pictures(options: Options, generator: SaganGenerator) -> None:
    """A row of digits for each class; where cells of the features before attention look."""
    labels = torch.arange(digits.CLASSES).repeat_interleave(SHOWN)
    grey = 255 - (generate(generator, labels, options) * 255).round().to(torch.uint8)
    pictures.save_grid(options.out / "samples.png", grey, SHOWN, scale=4)
    features: list[Tensor] = []
    hook = generator.attention.register_forward_pre_hook(lambda _, x: features.append(x[0]))
    generate(generator, labels[:1], options)
    hook.remove()
    maps = generator.attention.attention_maps(features[0])[0]  # [rows, cols, key rows, key cols]
    cells = [(row, col) for row in (1, 2) for col in (1, 2)]
    names = [f"cell {row}, {col}" for row, col in cells]
    chosen = torch.stack([maps[cell] for cell in cells]).cpu()
    image = grey[0].unsqueeze(-1).expand(-1, -1, 3)
    pictures.save_attention(options.out / "attention.png", image, names, chosen)


def run(arguments: list[str] | None = None) -> None:
    """Train, draw and report."""
    options = common(parser("sagan", __doc__, steps=1000).parse_args(arguments))
    train, validation = digits.load()
    config = SaganConfig.preset("digits")
    networks = (SaganGenerator, SaganDiscriminator)
    model = nn.ModuleDict(
        {n: make(config, options.backend) for n, make in zip(RATES, networks, strict=True)}
    )
    real = validation.images / (digits.LEVELS - 1)
    labels = validation.labels.repeat(COPIES)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = shuffled(len(train.labels), BATCH, options.seed, step)
        return scaled(train.images[chosen]), train.labels[chosen]

    def distance() -> float:
        return frechet_distance(generate(model["generator"], labels, options), real)

    drawn = independent_pixels(train, labels, random_numbers(options.seed, 0))
    baseline = frechet_distance(drawn / (digits.LEVELS - 1), real)
    trained = GanTraining(
        options,
        model,
        batch=batch,
        validate=distance,
        config={"model": config.to_dict(), "batch": BATCH},
        baseline=("independent pixels", baseline),
    ).run()
    save_pictures(options, model["generator"])
    figure = ("Fréchet distance of pixels", trained.validation_loss)
    quality = Quality(*figure, "independent pixels", baseline, stated=0.62)
    report(options, [quality], trained.seconds)


if __name__ == "__main__":
    main(run)
