"""An Image Transformer writes handwritten digits pixel by pixel, under local attention.

--task classes (the default) draws a digit of a class, unconditional any digit, super-resolution
makes 8 x 8 pixels of 4 x 4. --two-dimensional attends to blocks of 4 x 4 pixels and those around
them instead of the pixels before the query in the raster scan; --logistic predicts a mixture of
logistics instead of one of 17 values. The figure is bits per pixel of validation digits; the
baseline knows how often each pixel has each value. samples.png holds drawn digits;
superresolution.png has rows of sources, drawn digits and originals.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_kernels.models import ImageTransformer, ImageTransformerConfig

from . import pictures
from .data import digits
from .data.digits import Digits
from .options import Options, common, parser
from .quality import Quality, main, report
from .training import Training, shuffled

TASKS = ("classes", "unconditional", "super-resolution")
STATED = {"classes": 2.05}  # bits per pixel; of the other tasks: better than trivial
BATCH = 64
SMALL = 4  # side of a source image
SHOWN = 16  # digits in a row
TEMPERATURE = 0.9


def reduced(images: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, rounded: int64 [n, 1, 4, 4]."""
    factor = digits.SIDE // SMALL
    return F.avg_pool2d(images.float(), factor).round().long()


def arguments_of(task: str, found: Digits) -> dict[str, Tensor]:
    """What the model takes for these digits."""
    images = found.images.unsqueeze(1)
    if task == "classes":
        return {"images": images, "labels": found.labels}
    return {"images": images} | ({"source": reduced(images)} if task != "unconditional" else {})


def marginal_bits(train: Tensor, validation: Tensor) -> float:
    """Bits per pixel for who knows the frequency of each pixel's values, one more than seen."""
    counts = F.one_hot(train.flatten(1), digits.LEVELS).sum(0) + 1.0  # [pixels, levels]
    chances = counts / counts.sum(1, keepdim=True)
    found = chances.expand(len(validation), -1, -1).gather(2, validation.flatten(1).unsqueeze(2))
    return float(-found.log2().mean())


def save_samples(options: Options, task: str, model: ImageTransformer, shown: Digits) -> None:
    """Pictures of what the model draws."""
    dice = torch.Generator(options.device).manual_seed(options.seed)
    count = digits.CLASSES * SHOWN if task != "super-resolution" else len(shown.labels)
    given = {}
    if task == "classes":
        given["labels"] = torch.arange(digits.CLASSES).repeat_interleave(SHOWN)
    if task == "super-resolution":
        given["source"] = reduced(shown.images.unsqueeze(1))
    given = {name: x.to(options.device) for name, x in given.items()}
    drawn = model.generate(count, **given, temperature=TEMPERATURE, generator=dice)
    images, name = drawn.cpu().squeeze(1), "samples.png"
    if task == "super-resolution":
        source = given["source"].cpu().squeeze(1)
        source = source.repeat_interleave(2, 1).repeat_interleave(2, 2)
        images, name = torch.cat([source, images, shown.images]), "superresolution.png"
    grey = pictures.grey_levels(images, digits.LEVELS)
    pictures.save_grid(options.out / name, grey, SHOWN, scale=4)


def run(arguments: list[str] | None = None) -> None:
    """Train, draw and report."""
    made = parser("image_transformer", __doc__, steps=500)
    made.add_argument("--task", choices=TASKS, default=TASKS[0])
    made.add_argument("--two-dimensional", action="store_true", help="local 2-D attention")
    made.add_argument("--logistic", action="store_true", help="mixture of logistics")
    found = made.parse_args(arguments)
    options, task = common(found), found.task
    train, validation = digits.load()
    config = ImageTransformerConfig.preset(
        "digits-2d" if found.two_dimensional else "digits",
        output="logistic" if found.logistic else "categorical",
        classes=digits.CLASSES if task == "classes" else 0,
        source=(SMALL, SMALL) if task == "super-resolution" else None,
        encoder_layers=2 if task == "super-resolution" else 0,
    )
    model = ImageTransformer(config, backend=options.backend)

    def batch(step: int) -> dict[str, Tensor]:
        chosen = shuffled(len(train.labels), BATCH, options.seed, step)
        return arguments_of(task, Digits(train.images[chosen], train.labels[chosen]))

    def loss(given: dict[str, Tensor]) -> Tensor:
        return model.loss(**{name: x.to(options.device) for name, x in given.items()})

    baseline = marginal_bits(train.images, validation.images)
    checked = arguments_of(task, validation)
    trained = Training(
        options,
        "image_transformer",
        model,
        batch=batch,
        loss=loss,
        validate=lambda: loss(checked),
        config={"model": config.to_dict(), "batch": BATCH},
        learning_rate=3e-3,
        baseline=("frequencies of each pixel", baseline * math.log(2)),
    ).run()
    save_samples(options, task, model, Digits(*(x[:SHOWN] for x in validation)))
    bits = trained.validation_loss / math.log(2)
    name = "frequencies of each pixel"
    report(
        options,
        [Quality("bits per pixel", bits, name, baseline, STATED.get(task, baseline))],
        trained.seconds,
        task=task,
    )


if __name__ == "__main__":
    main(run)
