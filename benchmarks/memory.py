"""Peak memory of a call, measured in a process of its own, where freed memory goes back at once."""

from __future__ import annotations

import ctypes
import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from attn_kernels import use_backend

from .case import Case, Shape
from .worker import JobError, Worker

M_MMAP_THRESHOLD, SMALLEST_MAPPING = -3, 1 << 16
MOST_SECONDS = 600  # for two calls, in a process that has to start first


def total_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def return_freed_memory() -> None:
    """Have malloc map every larger block by itself, so that freeing it shows."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALLEST_MAPPING)


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field}")


def extra_bytes(
    case_name: str,
    provider: str,
    shape: Shape,
    dtype: torch.dtype,
    backward: bool,
    threads: int,
    backend: str | None,
) -> int | None:
    """Peak memory of the second call, beyond inputs and results; None where Linux does not tell.

    Runs in the other process.
    """
    from .cases import CASES
    from .common import make_step, providers

    return_freed_memory()
    torch.set_num_threads(threads)
    prepare = providers(CASES[case_name])[provider].prepare
    with use_backend(backend):
        step = make_step(prepare, shape, dtype, [shape.inputs(dtype)], backward)
        step()
        gc.collect()
        with ThreadPoolExecutor(1) as pool:  # a new thread keeps no scratch memory of earlier calls
            pool.submit(int).result()
            try:
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
                before = resident("VmRSS")
                results = pool.submit(step).result()
                peak = resident("VmHWM")
            except OSError:
                return None
    kept = sum(result.untyped_storage().nbytes() for result in results)
    return max(0, peak - before - kept)


class MemoryMeter:
    """Measures in the other process; None also where that fails, for lack of memory, say."""

    def __init__(self) -> None:
        self.worker = Worker()

    def __call__(self, case: Case, provider: str, *rest: object) -> int | None:
        """extra_bytes() of one provider of a case."""
        try:
            return self.worker.run((extra_bytes, case.name, provider, *rest), MOST_SECONDS)
        except JobError:
            return None

    def close(self) -> None:
        """End the other process."""
        self.worker.stop()
