"""Triton's interpreter, repaired and made strict: bfloat16 is right, and memory errors raise.

The interpreter of triton 3.6 holds bfloat16 as uint16: its products multiply bit patterns, and its
casts truncate. install() mends both, and checks every access against the tensors of the launch, and
that no program reads or writes what another one wrote.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as base


class OutOfBounds(RuntimeError):
    """An access outside every tensor that the kernel was given."""


class Race(RuntimeError):
    """Two programs of one launch touch the same bytes, and one of them writes."""


class Region:
    """A tensor's memory, with the program that last wrote and read each byte."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.size = start, size
        self.writer = np.full(size, -1, np.int32)
        self.reader = np.full(size, -1, np.int32)


class CheckedMemory:
    """Stands in for the interpreter's own memory module."""

    def __init__(self, real: Any) -> None:
        self.real, self.regions, self.program = real, [], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def check(self, pointers: np.ndarray, mask: np.ndarray, size: int, writes: bool) -> None:
        """Raise unless every active lane is inside a tensor and no other program's business."""
        active = np.broadcast_to(pointers, mask.shape)[mask].astype(np.int64)
        inside = np.zeros(active.shape, bool)
        for region in self.regions:
            at = active - region.start
            here = (at >= 0) & (at + size <= region.size)
            inside |= here
            at = at[here]
            if ((region.writer[at] >= 0) & (region.writer[at] != self.program)).any():
                raise Race(f"program {self.program} touches what another program wrote")
            if writes:
                if ((region.reader[at] >= 0) & (region.reader[at] != self.program)).any():
                    raise Race(f"program {self.program} writes what another program read")
                region.writer[at] = self.program
            else:
                region.reader[at] = self.program
        if not inside.all():
            raise OutOfBounds(f"{'store' if writes else 'load'}: {(~inside).sum()} lanes")

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self.check(pointers, mask, np.dtype(dtype).itemsize, writes=False)
        return self.real.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        self.check(pointers, mask, value.dtype.itemsize, writes=True)
        return self.real.store(pointers, value, mask)


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
    init_args = base.GridExecutor._init_args_hst

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

    def take_regions(self: Any, args: Any, kwargs: Any) -> Any:
        host = init_args(self, args, kwargs)
        storages = {}
        for x in (*host[0], *host[1].values()):
            if hasattr(x, "untyped_storage"):
                storage = x.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        memory.regions = [Region(start, size) for start, size in storages.items()]
        return host

    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
    builder.set_grid_idx = set_program
    base.GridExecutor._init_args_hst = take_regions
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
