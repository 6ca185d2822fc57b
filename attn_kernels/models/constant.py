"""Constant: a tensor that follows from a model's sizes alone, wherever the model computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Constant:
    """A tensor that is no part of a module's state, so nothing has to fill it: a module that is
    made on meta has it as well, after to_empty and load_state_dict(assign=True) too.

    It is made on the CPU once, outside of inference mode, because training may use it later.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        with torch.device("cpu"), torch.inference_mode(False):
            self.value = make()
        self._copy = self.value

    def on(self, device: torch.device) -> Tensor:
        """The tensor on that device, of which the last one asked for is kept."""
        copy = self._copy  # another thread may ask for another device at the same time
        if copy.device != device:
            with torch.inference_mode(False):
                self._copy = copy = self.value.to(device)
        return copy
