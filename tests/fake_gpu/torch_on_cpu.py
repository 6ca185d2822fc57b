"""Importing this gives torch's own operators right values on the fake GPU: they compute on the CPU.

The device's memory is the host's, so the CPU's kernel of an operator can read and write a tensor of
the device where it lies. An operator that only GPUs have raises. cuDNN, flash and memory-efficient
attention are switched off: torch then chooses what there is a CPU kernel for.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# These are right on the fake GPU as they are: they allocate, or read the device like on a GPU.
AS_THEY_ARE = {
    "_local_scalar_dense", "_pin_memory", "empty", "empty_strided", "is_pinned", "is_set_to",
    "record_stream", "resize_", "set_",
}  # fmt: skip


def on_cpu(x: Tensor) -> Tensor:
    """A CPU tensor over the same memory."""
    size = x.untyped_storage().nbytes()
    if not size or not x.numel():
        return torch.empty(x.shape, dtype=x.dtype)
    memory = (ctypes.c_char * size).from_address(x.untyped_storage().data_ptr())
    flat = torch.frombuffer(memory, dtype=x.dtype, count=size // x.element_size())
    return flat.as_strided(x.shape, x.stride(), x.storage_offset())


def on_cuda(x: Tensor, device: torch.device) -> Tensor:
    out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    on_cpu(out).copy_(x)
    return out


def generator_on_cpu(x: torch.Generator) -> torch.Generator:
    """A generator that goes on where x stands; x moves on."""
    x.set_offset(x.get_offset() + 4)
    return torch.Generator().manual_seed(x.initial_seed() + x.get_offset())


def computed_on_cpu(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator for CUDA tensors."""
    takes_numbers = torch._C._should_allow_numbers_as_tensors(operator._opname)
    only_tensors = [
        str(x.type) == "Tensor" and not takes_numbers for x in operator._schema.arguments
    ]

    def kernel(*values: Any, **options: Any) -> Any:
        arguments: list[tuple[Tensor, Tensor]] = []  # on the CPU, on the device
        devices: list[torch.device] = []  # the first is the result's

        def to_cpu(x: Any) -> Any:
            if isinstance(x, Tensor) and x.is_cuda:
                arguments.append((on_cpu(x), x))
                devices.append(x.device)
                return arguments[-1][0]
            if isinstance(x, torch.Generator):
                return generator_on_cpu(x)
            if isinstance(x, torch.device):
                devices.insert(0, x)
                return torch.device("cpu")
            return x

        def to_cuda(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            for ours, theirs in arguments:
                if x is ours:  # the operator wrote into an argument, and perhaps made it larger
                    if x.shape != theirs.shape:
                        on_cpu(theirs.resize_(x.shape)).copy_(x)
                    return theirs
            return on_cuda(x, devices[0])

        values, options = tree_map(to_cpu, (values, options))
        # A number that torch had made a tensor comes as a number, which not every operator takes.
        like = next((x for x in values if isinstance(x, Tensor)), torch.empty(0))
        values = tuple(
            torch.tensor(x, dtype=torch.result_type(like, x))
            if only_tensor and isinstance(x, bool | int | float)
            else x
            for x, only_tensor in zip(values, only_tensors, strict=False)
        )
        with torch._C._AutoDispatchBelowAutograd():
            return tree_map(to_cuda, operator(*values, **options))

    return kernel


def copy_of(original: Any) -> Callable[..., Tensor]:
    """copy_: torch's own between device and host, which synchronises like on a GPU."""

    def copy(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if to.is_cuda and source.is_cuda:
            on_cpu(to).copy_(on_cpu(source))
            return to
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return original.call_boxed(keys, to, source, non_blocking)

    return copy


def refused(name: str) -> Callable[..., Any]:
    def kernel(*values: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{name} has no CPU kernel: the fake GPU cannot compute it")

    return kernel


def lstm_cell(x: Tensor, h: Tensor, cell: Tensor, *biases: Tensor | None) -> tuple[Tensor, ...]:
    """What GPUs have as one operator, in differentiable ones."""
    for bias in filter(lambda bias: bias is not None, biases):
        x = x + bias
    i, f, g, o = (x + h).chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell, x


def gru_cell(x: Tensor, h: Tensor, hidden: Tensor, *biases: Tensor | None) -> tuple[Tensor, ...]:
    x, h = (a if b is None else a + b for a, b in zip((x, h), biases or (None, None), strict=True))
    (r, z, n), (r_h, z_h, n_h) = x.chunk(3, 1), h.chunk(3, 1)
    n = (n + (r + r_h).sigmoid() * n_h).tanh()
    return n + (z + z_h).sigmoid() * (hidden - n), x


def install() -> torch.library.Library:
    """Replace the kernels; they stay while the result is kept."""
    library = torch.library.Library("aten", "IMPL")
    copy = copy_of(torch.library.get_kernel("aten::copy_", "CUDA"))
    library.impl("copy_", copy, "CUDA")
    for full_name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        space, _, name = full_name.partition("::")
        base, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
        if space != "aten" or operator is None or base in AS_THEY_ARE or operator.is_view:
            continue
        if torch._C._dispatch_has_computed_kernel_for_dispatch_key(full_name, "CPU"):
            kernel = computed_on_cpu(operator)
        else:
            kernel = refused(full_name)
        library.impl(name, kernel, "CUDA", allow_override=True)
    for name, kernel in (("_thnn_fused_lstm_cell", lstm_cell), ("_thnn_fused_gru_cell", gru_cell)):
        for key in ("CUDA", "AutogradCUDA"):
            library.impl(name, kernel, key, allow_override=True)
    return library


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that kernels are replaced
    _library = install()
torch.backends.cudnn.enabled = False
torch.backends.cuda.enable_flash_sdp(False)
torch.backends.cuda.enable_mem_efficient_sdp(False)
