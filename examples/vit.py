"""A small Vision Transformer reads handwritten digits.

1628 digits of 8 x 8 pixels to learn from, 169 others to validate with; the figure is accuracy.
predictions.png shows the validation digits, a row for each class that the model found.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_kernels.models import ViT, ViTConfig

from . import pictures
from .data import digits
from .options import common, parser
from .quality import Quality, main, report
from .training import Training, evaluating, shuffled

BATCH = 64
SHOWN = 16  # digits in a row


def scaled(images: Tensor) -> Tensor:
    """Values 0..16 as [n, 1, 8, 8] around 0."""
    return images.unsqueeze(1).float() / (digits.LEVELS - 1) * 2 - 1


def save_predictions(path: str, images: Tensor, found: Tensor) -> None:
    """A row of digits for each class."""
    rows = []
    for label in range(digits.CLASSES):
        row = images[found == label][:SHOWN]
        rows.append(F.pad(row, (0, 0, 0, 0, 0, SHOWN - len(row))))
    grey = pictures.grey_levels(torch.cat(rows), digits.LEVELS)
    pictures.save_grid(path, grey, SHOWN, scale=4)


def run(arguments: list[str] | None = None) -> None:
    """Train, draw and report."""
    options = common(parser("vit", __doc__, steps=1000).parse_args(arguments))
    train, validation = digits.load()
    config = ViTConfig.preset("digits", dropout=0.1)
    model, device = ViT(config, backend=options.backend), options.device
    checked, labels = scaled(validation.images).to(device), validation.labels.to(device)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = shuffled(len(train.labels), BATCH, options.seed, step)
        return scaled(train.images[chosen]), train.labels[chosen]

    majority = int(train.labels.bincount().argmax())
    trained = Training(
        options,
        "vit",
        model,
        batch=batch,
        loss=lambda x: model.loss(x[0].to(device), x[1].to(device)),
        validate=lambda: model.loss(checked, labels),
        config={"model": config.to_dict(), "batch": BATCH},
        learning_rate=2e-3,
        weight_decay=0.05,
    ).run()
    with evaluating(model):
        found = model(checked).argmax(1)
    model.eval()
    save_predictions(options.out / "predictions.png", validation.images, found.cpu())
    accuracy = float((found == labels).float().mean())
    baseline = float((validation.labels == majority).float().mean())
    quality = Quality(
        "accuracy", accuracy, "the most frequent class", baseline, 0.95, higher_is_better=True
    )
    report(options, [quality], trained.seconds)


if __name__ == "__main__":
    main(run)
