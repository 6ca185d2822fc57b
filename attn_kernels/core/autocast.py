"""The operators inside autocast: every floating tensor but lse is cast, as for torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ops import bwd, fwd, lib

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
KEPT = {"lse", "grad_lse"}


def _cast(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, (list, tuple)):
        return [_cast(part, dtype) for part in x]
    return x.to(dtype) if isinstance(x, Tensor) and x.dtype in FLOATS else x


def _register(op: Any, device: str) -> None:
    key = f"Autocast{device.upper()}"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    names = [argument.name for argument in op._schema.arguments]

    def cast_and_call(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        cast = [x if name in KEPT else _cast(x, dtype) for name, x in zip(names, args, strict=True)]
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*cast)

    lib.impl(op._schema.name.split("::")[1], cast_and_call, key)


for _device in ("cpu", "cuda"):
    _register(fwd, _device)
    _register(bwd, _device)
