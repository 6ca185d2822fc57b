"""Pictures with captions: emoji where their font is found, else pairs of digits."""

from __future__ import annotations

import sys
from pathlib import Path

from . import digit_pairs, emoji
from .emoji import Captioned

KINDS = ("emoji", "digits")


def load(
    kind: str | None = None, side: int = 32, font: str | Path | None = None
) -> tuple[str, Captioned, Captioned]:
    """What was loaded, training and validation.

    kind None chooses; an explicit one never falls back.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "digits":
        return (kind, *digit_pairs.load(side))
    if kind is None and font is None and emoji.find_font() is None:
        print(f"no emoji here ({emoji.INSTALL}): pairs of digits instead", file=sys.stderr)
        return ("digits", *digit_pairs.load(side))
    return ("emoji", *emoji.load(side, font))
