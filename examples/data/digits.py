"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels, values 0..16, ten classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..progress import announce
from .source import package, split_by_content

LEVELS = 17  # of a pixel
CLASSES = 10
SIDE = 8
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(NamedTuple):
    """images: int64 [n, 8, 8] of 0..16; labels: int64 [n]."""

    images: Tensor
    labels: Tensor


def load() -> tuple[Digits, Digits]:
    """Training and validation digits."""
    announce("loading scikit-learn's digits")
    datasets = package("sklearn.datasets", "scikit-learn")
    found = datasets.load_digits()
    images = torch.from_numpy(found.images).to(torch.int64)
    labels = torch.from_numpy(found.target).to(torch.int64)
    split = split_by_content(image.to(torch.uint8).numpy().tobytes() for image in images)
    return tuple(Digits(images[part], labels[part]) for part in split)
