"""Where Python reads the values of tensors: on a GPU the host would wait for the device there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

METHODS = ("item", "tolist", "cpu", "numpy", "nonzero", "equal", "allclose", "__bool__")
OPERATORS = (
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
)


class Methods(TorchFunctionMode):
    """Lists the calls that read values, as Python names them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, called: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(called, "__name__", "") in METHODS:
            self.found.append(called.__name__)
        return called(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Lists the operators that read values, also those that torch itself calls."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, called: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if called in OPERATORS:
            self.found.append(str(called))
        return called(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """What is read inside, listed at its end."""
    found: list[str] = []
    with Methods() as methods, Operators() as operators:
        yield found
    found += methods.found + operators.found
