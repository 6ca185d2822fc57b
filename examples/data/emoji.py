"""Emoji: the colour bitmaps of Noto Color Emoji, each with its Unicode name in words."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..progress import announce
from .source import MissingData, package, split_by_content

FONT = "NotoColorEmoji.ttf"
PLACES = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
INSTALL = "apt-get install fonts-noto-color-emoji (Debian, Ubuntu), or pass the font's path"
WHITE = (255, 255, 255, 255)


class Captioned(NamedTuple):
    """images: uint8 [n, side, side, channels]; captions: words in lower case, one for each."""

    images: Tensor
    captions: list[str]


def find_font() -> Path | None:
    """Noto Color Emoji where systems keep fonts."""
    for place in PLACES:
        for path in sorted(Path(place).expanduser().glob(f"**/{FONT}")):
            return path
    return None


def caption(character: str) -> str | None:
    """The character's Unicode name as words; None for letters, digits and signs without one."""
    name = unicodedata.name(character, "").lower().replace("-", " ")
    return None if ord(character) < 0x2000 or not name else name


def bitmaps(path: Path) -> dict[str, bytes]:
    """Every single character's PNG."""
    fonts = package("fontTools.ttLib", "fonttools")
    try:
        font = fonts.TTFont(path, lazy=True)
        glyphs, strike = font.getBestCmap(), font["CBDT"].strikeData[0]
        found = ((chr(code), strike.get(name)) for code, name in sorted(glyphs.items()))
        return {character: glyph.imageData for character, glyph in found if glyph is not None}
    except (OSError, fonts.TTLibError, KeyError) as error:
        raise MissingData(f"{path} is no {FONT} with bitmaps ({error}): {INSTALL}") from error


def picture(png: bytes, side: int) -> np.ndarray:
    """The bitmap on white, made square and as small as asked: uint8 [side, side, 3]."""
    images = package("PIL.Image", "Pillow")
    image = images.open(io.BytesIO(png)).convert("RGBA")
    size = max(image.size)
    canvas = images.new("RGBA", (size, size), WHITE)
    canvas.alpha_composite(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(canvas.convert("RGB").resize((side, side), images.Resampling.BOX))


def load(side: int = 32, path: str | Path | None = None) -> tuple[Captioned, Captioned]:
    """Training and validation emoji."""
    path = find_font() if path is None else Path(path)
    if path is None:
        raise MissingData(f"{FONT} is not in {', '.join(PLACES)}: {INSTALL}")
    announce(f"reading the emoji of {path}")
    found = {character: (caption(character), png) for character, png in bitmaps(path).items()}
    pairs = [(name, picture(png, side)) for name, png in found.values() if name is not None]
    split = split_by_content(name.encode() for name, _ in pairs)
    return tuple(
        Captioned(
            torch.from_numpy(np.stack([pairs[i][1] for i in part])), [pairs[i][0] for i in part]
        )
        for part in split
    )
