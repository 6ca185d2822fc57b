"""What this machine can run, and the reason when it cannot."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..score.base import Score
from ..score.relative import Relative

REFERENCE = "reference"
NAMES = ("cpu", "triton", REFERENCE)
NATIVE = {  # by device: the backend that is chosen, and why
    "cpu": ("cpu", "inputs are on the CPU"),
    "cuda": ("triton", "inputs are on a GPU"),
}
MAX_HEAD_DIM = 512
MAX_TRITON_HEAD_DIM = 256


@dataclass(frozen=True)
class Backend:
    """One backend: whether it can run here, why not, and what it found (its instruction set)."""

    name: str
    available: bool
    reason: str = ""
    detail: str = ""


def how_to_build() -> str:
    """The command that brings the compiled library to where this file lies: in a clone Python
    imports the clone's folder, which would hide what pip installs elsewhere."""
    root = Path(__file__).parents[2]
    if (root / "setup.py").exists():
        return f"run `make build` in {root}"
    return "run `pip install --no-build-isolation .`"


def not_built() -> str:
    """Why there is no compiled library beside this file: an installed copy may have one."""
    here = Path(__file__).parents[1]
    for path in map(Path, sys.path):
        other = (path / here.name).resolve()
        if any(other.glob("_C*.so")):
            return (
                f"{here} hides the installed {other}: {how_to_build()}, or start Python elsewhere"
            )
    return f"the C++ extension is not built: {how_to_build()}"


class CpuLibrary:
    """The compiled library: loading it registers the operators; its C functions tell of the CPU."""

    def __init__(self) -> None:
        self.c: Any = None
        self.load_error = self.isa_error = ""
        paths = sorted(Path(__file__).parents[1].glob("_C*.so"))
        if not paths:
            self.load_error = not_built()
            return
        try:
            torch.ops.load_library(paths[0])
        except OSError as error:
            self.load_error = f"the C++ extension does not load ({error}): {how_to_build()}"
            return
        self.c = ctypes.CDLL(str(paths[0]))
        for name in ("isa", "isas", "isa_error"):
            getattr(self.c, f"attn_kernels_cpu_{name}").restype = ctypes.c_char_p
        self.c.attn_kernels_cpu_set.restype = ctypes.c_void_p
        self.isa_error = self.c.attn_kernels_cpu_isa_error().decode()

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self.c.attn_kernels_cpu_isa().decode()

    @property
    def isas(self) -> list[str]:
        """The instruction sets this CPU has, best first."""
        return self.c.attn_kernels_cpu_isas().decode().split(",")

    def use_isa(self, name: str) -> None:
        """Switch the instruction set of the whole process; "" is the best one."""
        self.c.attn_kernels_cpu_use_isa(name.encode())
        self.isa_error = self.c.attn_kernels_cpu_isa_error().decode()
        if error := self.error():
            raise RuntimeError(error)

    def plan(
        self, sizes: list[int], is_double: bool, geometry: str, extent: tuple[int, ...]
    ) -> list[int]:
        """How a call is cut and what memory it takes: see csrc/bindings.cpp."""
        numbers = ctypes.c_int64 * len(sizes)
        extents = ctypes.c_int64 * len(extent)
        plan = (ctypes.c_int64 * 7)()
        self.c.attn_kernels_cpu_plan(
            numbers(*sizes),
            is_double,
            geometry.encode(),
            extents(*extent),
            ctypes.c_int64(len(extent)),
            plan,
        )
        return list(plan)

    def error(self) -> str:
        """Why the CPU backend cannot run, or "". No call of C: torch.compile traces this."""
        return self.load_error or self.isa_error


cpu_library = CpuLibrary()


# Asked when this file loads: torch.compile, which traces what follows, cannot trace the question.
HAS_TRITON = find_spec("triton") is not None


def triton_error(device: torch.device | None = None) -> str:
    """Why the Triton backend cannot run on a GPU, or "". None is the current one, which changes."""
    if device is None or torch.compiler.is_compiling():  # which sees no caches
        return find_triton_error(device)
    return known_triton_error(device)


def find_triton_error(device: torch.device | None) -> str:
    if not HAS_TRITON:
        return "triton is not installed: run `pip install triton`"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip is None and (found.major, found.minor) < (8, 0):
        return f"it needs compute capability 8.0, got {found.name}"
    return ""


known_triton_error = cache(find_triton_error)


def status(name: str) -> Backend:
    """One backend's status on this machine, whatever the inputs."""
    if name == REFERENCE:
        return Backend(name, True, detail="dense, O(Lq * Lk) memory")
    if name == "cpu":
        error = cpu_library.error()
        if error:
            return Backend(name, False, error)
        found = f"{cpu_library.isa} (this CPU has: {', '.join(cpu_library.isas)})"
        return Backend(name, True, detail=found)
    error = triton_error()
    return Backend(name, not error, error, "" if error else torch.cuda.get_device_name())


def backends() -> dict[str, Backend]:
    """Every backend by name: what runs here, and why the others do not.

    Example:
        >>> backends()["reference"].available
        True
        >>> why_not = {name: found.reason for name, found in backends().items()}
    """
    return {name: status(name) for name in NAMES}


def can_run(name: str, q: Tensor, v: Tensor, score: Score | None) -> str | None:
    """The reason why `name` cannot run these inputs, or None."""
    if name == REFERENCE:
        return None
    if name == "triton":
        return triton_error(q.device if q.is_cuda else None) or triton_limit(q, v, score)
    if not q.is_cpu:
        return f"inputs are on {q.device}"
    dim = max(q.size(3), v.size(3))
    if dim > MAX_HEAD_DIM:
        return f"head dim is at most {MAX_HEAD_DIM}, got {dim}"
    if score is not None and len({term.name for term in score.terms}) < len(score.terms):
        return "a score has at most one term of each kind"
    return cpu_library.error() or None


def triton_limit(q: Tensor, v: Tensor, score: Score | None) -> str | None:
    """The reason why these inputs are beyond the Triton kernels, or None."""
    if q.device.type != "cuda":
        return f"inputs are on {q.device}"
    if q.dtype == torch.float64:
        return "it has no float64"
    if max(q.shape[3], v.shape[3]) > MAX_TRITON_HEAD_DIM:
        return f"head dim is at most {MAX_TRITON_HEAD_DIM}, got {max(q.shape[3], v.shape[3])}"
    terms = () if score is None else score.terms
    known = all(isinstance(term, Relative) and term.zero_row is None for term in terms)
    if not known or len(terms) > 1:
        return "its only score is one Relative without a zero_row"
    return None


def require(name: str, q: Tensor, v: Tensor, score: Score | None = None) -> None:
    """Raise the reason why `name` cannot run these inputs."""
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)} or None, got {name!r}")
    reason = can_run(name, q, v, score)
    if reason is None:
        return
    if status(name).available:
        raise NotImplementedError(f'backend="{name}" cannot run this: {reason}')
    raise RuntimeError(f'backend="{name}" is not available: {reason}')


_forced: str | None = None
_warned: set[str] = set()


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Within the context, attention() without an explicit backend uses this one, in all threads.

    Example:
        >>> q, k, v = (torch.randn(1, 4, 50, 32) for _ in range(3))
        >>> with use_backend("reference"):
        ...     out = attention(q, k, v, Causal())
    """
    global _forced
    if name is not None and name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)} or None, got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def choose(
    requested: str | None, q: Tensor, v: Tensor, score: Score | None = None
) -> tuple[str, str]:
    """The backend for these inputs, and why. An explicit request never falls back."""
    explicit = requested or _forced
    if explicit is not None:
        require(explicit, q, v, score)
        return explicit, "requested" if requested else "set by use_backend"
    native, why = NATIVE["cuda" if q.is_cuda else "cpu"]
    reason = can_run(native, q, v, score)
    if reason is None:
        return native, why
    if q.device.type in NATIVE and reason not in _warned and not torch.compiler.is_compiling():
        _warned.add(reason)
        warnings.warn(
            f"attn_kernels uses the dense reference, O(Lq * Lk) memory: {reason}", stacklevel=4
        )
    return REFERENCE, reason
