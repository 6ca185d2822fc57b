"""Pictures of two handwritten digits with captions like "a three above a seven".

They stand in for emoji where the font is missing: every word of a caption can be checked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import digits
from .emoji import Captioned

# Corner (row, col) of the first digit and of the second, in digits. There is no "below", so that a
# picture has one caption.
RELATIONS = {
    "above": ((0.0, 0.5), (1.0, 0.5)),
    "left of": ((0.5, 0.0), (0.5, 1.0)),
}
CANVAS = 2 * digits.SIDE


def caption(first: int, relation: str, second: int) -> str:
    """The words for two digits and how they lie."""
    return f"a {digits.NAMES[first]} {relation} a {digits.NAMES[second]}"


def place(canvas: Tensor, image: Tensor, corner: tuple[float, float]) -> None:
    """Put a digit on the canvas."""
    top, left = (int(x * digits.SIDE) for x in corner)
    canvas[top : top + digits.SIDE, left : left + digits.SIDE] = image


def compose(found: digits.Digits, count: int, side: int, seed: int) -> Captioned:
    """`count` pictures of these digits, in grey on white: uint8 [count, side, side, 3]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(found.labels), (count, 2), generator=generator).tolist()
    relations = torch.randint(len(RELATIONS), (count,), generator=generator).tolist()
    canvas = torch.zeros(count, CANVAS, CANVAS)
    captions = []
    for picture, (first, second), number in zip(canvas, chosen, relations, strict=True):
        relation = list(RELATIONS)[number]
        for index, corner in zip((first, second), RELATIONS[relation], strict=True):
            place(picture, found.images[index], corner)
        captions.append(caption(int(found.labels[first]), relation, int(found.labels[second])))
    grey = 255 - canvas * (255 / (digits.LEVELS - 1))
    grey = F.interpolate(grey.unsqueeze(1), scale_factor=side // CANVAS, mode="nearest")
    images = grey.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    return Captioned(images, captions)


def load(side: int = 32, train: int = 4000, validation: int = 200) -> tuple[Captioned, Captioned]:
    """Training and validation pictures, of training and validation digits."""
    if side % CANVAS:
        raise ValueError(f"side must be a multiple of {CANVAS}, got {side}")
    found = digits.load()
    return compose(found[0], train, side, seed=0), compose(found[1], validation, side, seed=1)
