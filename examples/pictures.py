"""What a person can look at: loss curves, grids of images, attention maps."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.source import package

MARGIN = 2  # pixels between the images of a grid
SMOOTHING = 0.95  # of the training loss in a curve


def figure(width: float, height: float) -> tuple[object, object]:
    """matplotlib's figure without a window, and its one pair of axes."""
    package("matplotlib", "matplotlib")
    from matplotlib.figure import Figure

    made = Figure((width, height), layout="constrained")
    return made, made.subplots()


def smooth(values: list[float]) -> list[float]:
    """An exponential average that starts unbiased."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(total / weight)
    return result


def save_curve(
    path: Path, name: str, history: dict[str, list], baseline: tuple[str, float] | None
) -> None:
    """Training and validation loss over the steps, and the baseline as a line."""
    made, axes = figure(7, 4)
    train = history["train"]
    steps = range(1, len(train) + 1)
    axes.plot(steps, train, color="0.85", linewidth=0.6)
    axes.plot(steps, smooth(train), color="C0", label="training")
    if history["validation"]:
        axes.plot(*zip(*history["validation"], strict=True), "o-", color="C1", label="validation")
    if baseline is not None:
        axes.axhline(baseline[1], color="C3", linestyle="--", label=baseline[0])
    axes.set(title=name, xlabel="step", ylabel="loss")
    axes.legend()
    made.savefig(path, dpi=110)


def save_grid(path: Path, images: Tensor, columns: int, scale: int = 1) -> None:
    """uint8 images [n, height, width] or [n, height, width, 3] in rows, each pixel `scale` wide."""
    library = package("PIL.Image", "Pillow")
    images = images.cpu()
    if images.dim() == 3:
        images = images.unsqueeze(-1).expand(-1, -1, -1, 3)
    missing = -len(images) % columns
    images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing), value=255)
    images = images.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    images = F.pad(images, (0, 0, MARGIN, MARGIN, MARGIN, MARGIN), value=255)
    rows = images.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    library.fromarray(rows.contiguous().numpy()).save(path)


def grey_levels(images: Tensor, levels: int) -> Tensor:
    """Values 0..levels - 1 as uint8, dark on white."""
    return (255 - images.float() * (255 / (levels - 1))).round().to(torch.uint8)


def save_attention(path: Path, image: Tensor, words: list[str], maps: Tensor) -> None:
    """Where a caption's words looked: image uint8 [side, side, 3], maps [words, rows, cols]."""
    package("matplotlib", "matplotlib")
    from matplotlib.figure import Figure

    made = Figure((1.4 * (len(words) + 1), 1.7), layout="constrained")
    axes = made.subplots(1, len(words) + 1)
    side = image.shape[0]
    large = F.interpolate(maps.unsqueeze(1).float(), size=(side, side), mode="bicubic").squeeze(1)
    for index, each in enumerate(axes):
        each.imshow(image.numpy())
        each.axis("off")
        if index > 0:
            each.imshow(large[index - 1].numpy(), alpha=0.6, cmap="inferno")
            each.set_title(words[index - 1], fontsize=8)
    made.savefig(path, dpi=120)


def save_matrix(path: Path, weights: Tensor, rows: list[str], columns: list[str]) -> None:
    """Attention weights [rows, columns] as an alignment of two sentences."""
    made, axes = figure(1 + 0.32 * len(columns), 1 + 0.32 * len(rows))
    axes.imshow(weights.float().numpy(), cmap="Greys", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    made.savefig(path, dpi=120)
