"""What a call allocates beside its results, described before it exists: explain() counts it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Buffer(NamedTuple):
    """A tensor without memory yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def on(self, device: torch.device) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)
