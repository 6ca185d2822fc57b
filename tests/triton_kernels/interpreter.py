"""Triton's interpreter, repaired and made strict: bfloat16 is right, and memory errors raise.

The interpreter of triton 3.6 holds bfloat16 as uint16: its products multiply bit patterns, and its
casts truncate. install() mends both, and checks that every access stays among the elements of the
tensor that its pointer came with, and that no program reads or writes what another one wrote.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as base

APART = 40  # kernels see the tensors of a launch at addresses 2^APART from each other


class OutOfBounds(RuntimeError):
    """An access beside the elements of the tensor that the pointer came with."""


class Race(RuntimeError):
    """Two programs of one launch touch the same bytes, and one of them writes."""


class Region:
    """A storage, with the program that last wrote and read each byte."""

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.writer = np.full(size, -1, np.int32)
        self.reader = np.full(size, -1, np.int32)


class Argument:
    """A tensor of a launch: where kernels see it, what lies there, and where that really is."""

    def __init__(self, x: Any, number: int, region: Region) -> None:
        self.start, self.size, self.region = x.data_ptr(), x.element_size(), region
        self.address = (number << APART) + (1 << APART - 1) + self.start % 4096  # aligned alike
        last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
        self.elements = np.zeros(last + 1 if x.numel() else 1, bool)  # between them may be gaps
        np.lib.stride_tricks.as_strided(self.elements, x.shape, x.stride())[...] = True

    def holds(self, at: np.ndarray) -> np.ndarray:
        """Whether an element begins at these offsets in bytes."""
        inside = (at >= 0) & (at < self.elements.size * self.size) & (at % self.size == 0)
        return inside & self.elements[np.where(inside, at // self.size, 0)]


class CheckedMemory:
    """Stands in for the interpreter's own memory module."""

    def __init__(self, real: Any) -> None:
        self.real, self.program = real, 0
        self.arguments: dict[int, Argument] = {}
        self.regions: dict[int, Region] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("atomic"):
            raise NotImplementedError("atomics are not checked: no kernel has any")
        return getattr(self.real, name)

    def address_of(self, x: Any) -> int:
        """The address at which this launch's kernel sees a tensor."""
        storage, number = x.untyped_storage(), len(self.arguments) + 1
        start = storage.data_ptr()
        if start not in self.regions:
            self.regions[start] = Region(start, storage.nbytes())
        self.arguments[number] = Argument(x, number, self.regions[start])
        return self.arguments[number].address

    def found(self, pointers: Any, mask: Any, size: int, writes: bool) -> np.ndarray:
        """Where active lanes really are: each at an element, and no other program's business."""
        addresses = np.broadcast_to(pointers, mask.shape).astype(np.int64)
        mask = np.asarray(mask, bool)  # they may be the numbers 0 and 1
        active = addresses[mask]
        owners = active >> APART
        for number in np.unique(owners):
            here, argument = owners == number, self.arguments.get(number)
            at = active[here] - argument.address if argument else active[here]
            inside = argument.holds(at) if argument else np.zeros(at.shape, bool)
            if not inside.all() or size != argument.size:
                raise OutOfBounds(f"{'store' if writes else 'load'}: {(~inside).sum()} lanes")
            active[here] = at + argument.start
            self.check_race(argument.region, active[here] - argument.region.start, writes)
        addresses[mask] = active
        return addresses.astype(np.uint64)

    def check_race(self, region: Region, at: np.ndarray, writes: bool) -> None:
        """Raise if these bytes are another program's business."""
        if ((region.writer[at] >= 0) & (region.writer[at] != self.program)).any():
            raise Race(f"program {self.program} touches what another program wrote")
        if writes:
            if ((region.reader[at] >= 0) & (region.reader[at] != self.program)).any():
                raise Race(f"program {self.program} writes what another program read")
            region.writer[at] = self.program
        else:
            region.reader[at] = self.program

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        real = self.found(pointers, mask, np.dtype(dtype).itemsize, writes=False)
        return self.real.load(real, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        real = self.found(pointers, mask, value.dtype.itemsize, writes=True)
        return self.real.store(real, value, mask)


def to_float32(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def widened(handle: Any) -> np.ndarray:
    return to_float32(handle.data) if handle.dtype.scalar == tl.bfloat16 else handle.data


def install() -> CheckedMemory:
    """Replace the interpreter's memory, products, casts and launches. Once per process."""
    memory = CheckedMemory(base._interpreter)
    base._interpreter = memory
    builder = base.InterpreterBuilder
    cast, set_grid_idx = builder.cast_impl, builder.set_grid_idx
    init_args, convert = base.GridExecutor._init_args_hst, base._implicit_cvt

    def create_dot(self: Any, a: Any, b: Any, acc: Any, precision: Any, imprecise: Any) -> Any:
        product = np.matmul(widened(a), widened(b), dtype=acc.data.dtype)
        return base.TensorHandle(product + acc.data, acc.dtype.scalar)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 != source.dtype.scalar:
            return base.TensorHandle(to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
        if source.dtype.scalar == tl.bfloat16 != target.scalar:
            source = base.TensorHandle(to_float32(source.data), tl.float32)
        return cast(self, source, target)

    def set_program(self: Any, x: int, y: int, z: int) -> Any:
        memory.program = (x * self.grid_dim[1] + y) * self.grid_dim[2] + z
        return set_grid_idx(self, x, y, z)

    def begin_launch(self: Any, args: Any, kwargs: Any) -> Any:
        memory.arguments, memory.regions = {}, {}
        return init_args(self, args, kwargs)

    def convert_argument(x: Any) -> Any:
        converted = convert(x)
        if hasattr(x, "data_ptr"):
            converted.handle.data[0] = memory.address_of(x)
        return converted

    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
    builder.set_grid_idx = set_program
    base.GridExecutor._init_args_hst = begin_launch
    base._implicit_cvt = convert_argument
    return memory


def install_backend() -> list[Any]:
    """install(), and backend="triton" computes with CPU tensors. The result has to be kept."""
    memory = install()
    import torch

    from attn_kernels import triton as kernels
    from attn_kernels.core import backends

    library = torch.library.Library("attn_kernels", "IMPL")
    library.impl("fwd", kernels.fwd, "CPU", allow_override=True)
    library.impl("bwd", kernels.bwd, "CPU", allow_override=True)
    backends.can_run = lambda name, *inputs: None
    torch.set_num_threads(1)
    return [memory, library]
