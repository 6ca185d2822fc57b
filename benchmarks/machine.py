"""The machine: its name, and what its cores can do at best.

python -m benchmarks.machine      prints the peaks for 1 to all threads
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from attn_kernels.core.backends import status

WIDTHS = (128, 256, 512)  # bits of a vector; one that the CPU lacks is emulated, and slower
READ_FLOATS = 1 << 25  # 128 MiB for each thread: more than its share of any cache
TRIES = 3


@dataclass(frozen=True)
class Peaks:
    """The measured limits of so many threads together."""

    threads: int
    fma_flops: float  # float32 operations per second, a fused multiply-add counted as two
    fma_bits: int  # the vector width that reached it
    bf16_flops: float  # the same for native bfloat16 products, 0 if the CPU has none
    read_bytes: float  # per second, from main memory
    copy_bytes: float  # per second, read and written


def cpu_name() -> str:
    """The processor's own name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def kernels_error() -> str:
    """Why the kernels cannot be measured here, in one line, or ""."""
    reason = status("cpu").reason
    return reason and f"nothing to measure: {reason}"


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


@cache
def library(source: Path, include: Path | None = None) -> ctypes.CDLL | None:
    """A C++ file, compiled once for this machine into the user's cache; None where that fails.

    include: the folder of its headers.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return None
    flags = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-w", "-shared", "-fPIC"]
    command = [*compiler.split(), *flags]
    headers = []
    if include is not None:
        command.append(f"-I{include}")
        headers = sorted(include.rglob("*.h"))
    content = b"".join(path.read_bytes() for path in (source, *headers))
    key = hashlib.sha256(content + f"{command}{cpu_name()}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attn_kernels"
    path = folder / f"{source.stem}-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary, path.name)
            if subprocess.run([*command, "-o", built, source]).returncode:
                return None  # the compiler has said why
            built.replace(path)  # at once: another run may be building it too
    return ctypes.CDLL(str(path))


@cache
def peaks_library() -> ctypes.CDLL | None:
    """peak.cpp, with the types of its functions."""
    loaded = library(Path(__file__).with_name("peak.cpp"))
    if loaded is None:
        return None
    seconds, pointer, count = ctypes.c_double, ctypes.c_void_p, ctypes.c_int64
    for name, arguments in {
        **{f"fma_flops_{width}": [seconds] for width in WIDTHS},
        "bf16_flops": [seconds],
        "read_bytes": [pointer, count, seconds],
        "copy_bytes": [pointer, pointer, count, seconds],
    }.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, ctypes.c_double
    return loaded


class Gauge:
    """Measures one limit of some threads together: "fma_flops_256" and so on, "read" or "copy"."""

    def __init__(self, kind: str, threads: int) -> None:
        self.kind, self.threads, self.library = kind, threads, peaks_library()
        self.pool = ThreadPoolExecutor(threads)  # C functions called by ctypes run in parallel
        shape = (threads if kind in ("read", "copy") else 0, READ_FLOATS)
        self.source, self.target = torch.ones(shape), torch.zeros(shape)

    def one(self, thread: int, seconds: float) -> float:
        """What one thread does per second."""
        c = self.library
        if self.kind == "read":
            return c.read_bytes(self.source[thread].data_ptr(), READ_FLOATS, seconds)
        if self.kind == "copy":
            source, target = self.source[thread].data_ptr(), self.target[thread].data_ptr()
            return c.copy_bytes(source, target, READ_FLOATS, seconds)
        return getattr(c, self.kind)(seconds)

    def __call__(self, seconds: float = 0.02) -> float:
        """What all threads do per second, operations or bytes, measured now."""
        return sum(self.pool.map(self.one, range(self.threads), [seconds] * self.threads))


@cache
def measure(threads: int, seconds: float = 0.2) -> Peaks | None:
    """The limits of `threads` threads, the best of some tries; None if a compiler is missing."""
    if peaks_library() is None:
        return None

    def best(kind: str) -> float:
        gauge = Gauge(kind, threads)
        return max(gauge(seconds) for _ in range(TRIES))

    flops = {width: best(f"fma_flops_{width}") for width in WIDTHS}
    width = max(flops, key=flops.get)
    bf16 = best("bf16_flops")
    return Peaks(threads, flops[width], width, bf16, best("read"), best("copy"))


@cache
def limit_gauge(threads: int, dtype: torch.dtype, reads_only: bool) -> Gauge | None:
    """What limits the work: reading memory, or arithmetic at the best width.

    That is the rate of float32, also for float64 and float16, and of native bfloat16 if there is.
    """
    peaks = measure(threads)
    if peaks is None:
        return None
    if reads_only:
        return Gauge("read", threads)
    native = dtype == torch.bfloat16 and peaks.bf16_flops > peaks.fma_flops
    return Gauge("bf16_flops" if native else f"fma_flops_{peaks.fma_bits}", threads)


def main() -> None:
    """Print the peaks for every number of threads."""
    print(f"{cpu_name()}, {usable_cores()} cores usable")
    for threads in range(1, usable_cores() + 1):
        peaks = measure(threads)
        if peaks is None:
            print("no C++ compiler: nothing can be measured")
            return
        print(
            f"{threads} threads: {peaks.fma_flops / 1e9:.1f} GFLOP/s float32 FMA"
            f" ({peaks.fma_bits}-bit vectors), {peaks.bf16_flops / 1e9:.1f} native bfloat16,"
            f" read {peaks.read_bytes / 1e9:.1f} GB/s, copy {peaks.copy_bytes / 1e9:.1f} GB/s"
        )


if __name__ == "__main__":
    main()
