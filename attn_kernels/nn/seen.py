"""Seen: a tensor as it was at one moment, which is recognised without reading its values."""

from __future__ import annotations

from torch import Tensor


class Seen:
    """Remembers a tensor and how often it had been written to, which torch does not count for
    tensors of inference mode."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.version = version_of(x)

    def changed(self) -> bool:
        """Whether somebody has written to the tensor since."""
        return version_of(self.x) != self.version


def version_of(x: Tensor) -> int | None:
    """How often x was written to; None if torch does not count."""
    return None if x.is_inference() else x._version
