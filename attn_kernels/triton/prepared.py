"""Launches that are prepared once, for all calls that differ in nothing but their tensors' memory.

Choosing tiles, writing some fifty arguments and Triton's own search for a compiled kernel, which
looks at each of them, took 300 us of the host's time for a kernel of 10 to 1000 us. `known` finds
what an equal call has left, and a Launch keeps its compiled kernel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor


def form(x: Tensor | None) -> tuple[object, ...] | None:
    """What of a tensor a launch depends on. Triton compiles for addresses that 16 divides."""
    return None if x is None else (x.shape, x.stride(), x.dtype, x.data_ptr() % 16)


@lru_cache(maxsize=1024)
def known(*key: object) -> dict[Any, Any]:
    """What earlier calls with an equal key have prepared: filled by who asks."""
    return {}


def run(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> Any:
    """Launch a kernel and return its compiled form, if Triton does not interpret it.

    benchmarks/compiled.py stands in here, and compiles instead.
    """
    return kernel[grid](*args, **options)


class Launch:
    """A kernel, its grid and all arguments but the tensors, which come first.

    Every call must bring tensors of the same form. The first goes through Triton's search.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *numbers: Any, **options: Any) -> None:
        self.kernel, self.grid, self.numbers, self.options = kernel, grid, numbers, options
        self.compiled = self.rest = None

    def __call__(self, *tensors: Any) -> None:
        if self.compiled is not None:
            self.compiled(*tensors, *self.rest)
            return
        found = run(self.kernel, self.grid, *tensors, *self.numbers, **self.options)
        if found is not None:
            constants = self.kernel.arg_names[len(tensors) + len(self.numbers) :]
            self.rest = *self.numbers, *(self.options[name] for name in constants)
            self.compiled = found[(*self.grid, 1, 1)[:3]]
