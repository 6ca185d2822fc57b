"""What torch's tracers cannot follow: functions of tensors' values, and sizes that are tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def by_values(reason: str) -> Callable[[Function], Function]:
    """What the function returns is decided by tensors' values, which a graph does not have.
    torch.compile breaks its graph there; fullgraph=True and torch.export give the reason; in a
    trace of torch.jit it is a constant."""

    def decorate(function: Function) -> Function:
        untraced = None

        def real(*args: Any, **options: Any) -> Any:
            if torch.compiler.is_compiling():  # by torch.export, in which tensors are fake
                raise RuntimeError(reason)
            if not torch.jit.is_tracing():
                return function(*args, **options)
            torch_c: Any = torch._C  # whose stubs lack the second of these
            state = torch_c._get_tracing_state()
            torch_c._set_tracing_state(None)
            try:
                return function(*args, **options)
            finally:
                torch_c._set_tracing_state(state)

        @wraps(function)
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal untraced
            # torch.compiler.disable imports all of the compiler: not before somebody else has.
            if untraced is None and "torch._dynamo" in sys.modules:
                untraced = torch.compiler.disable(real, reason=reason)
            return (untraced or real)(*args, **options)

        # What torch.compiler.disable would set: nobody inlines the function.
        marks: Any = wrapped
        marks._torchdynamo_disable = True
        marks._torchdynamo_disable_msg = reason
        return marks

    return decorate


def as_int(size: Any) -> Any:
    """A size as a number: torch.jit.trace has tensors instead. It is then a constant of the trace,
    as torch warns."""
    return int(size) if isinstance(size, Tensor) else size
