"""Tile sizes: one small table, the predicate that says whether a row fits, and an opt-in search.

The rows were chosen from machine code, not from time: the first of a kind are large tiles that fit
shared memory and compile without spills (`python -m benchmarks.compiled`, triton 3.6.0); those
behind them are for smaller devices and for the search.
ATTN_KERNELS_TUNE=1 times all candidates that fit at the first call of a kind, and keeps the fastest
in a file of its own in ~/.cache/attn_kernels/triton (ATTN_KERNELS_CACHE names another folder).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import torch
import triton

from ..core.pattern_tiles import TILE
from .geometry import cdiv, facts_of, is_causal, power_of_2

DIRECTIONS = ("forward", "grad_q", "grad_kv")
# Shared memory of one program, bytes.
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
AMD_SHARED_LIMIT = 65536
SPLIT_TARGET = 2  # programs per multiprocessor that splitting the keys aims at
MAX_SPLITS = 128


@dataclass(frozen=True)
class Config:
    """How a kernel is cut: rows of queries, of keys, warps and pipeline stages."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    late: bool = False  # forward: a step's values are multiplied during the next step's softmax
    described: bool = False  # a step's rows by tensor descriptors, if Kind says they can
    whole: bool = False  # with a table: nothing of the band is carried from step to step


@dataclass(frozen=True)
class Kind:
    """What decides a configuration; lengths are rounded, so that it is chosen rarely.

    direction: one of DIRECTIONS. rows: of a tile's home (a block, a sequence of queries or, for
    grad_kv, of keys), at most 128.
    """

    direction: str
    arch: int  # 80, 90, 100; 0 for AMD
    dim: int  # the larger of both head dims, padded
    element_size: int
    geometry: str  # GEOMETRY of geometry.py
    rel: str  # REL of score.py
    values: bool  # rel_v as well
    rows: int
    grouped: bool = False  # grad_kv loops over the heads of a group, forward has them in a tile
    describable: bool = False  # tensor descriptors can tell where a step's rows lie

    @property
    def relative(self) -> bool:
        return self.rel != "none"

    @property
    def edges(self) -> int:
        """Ends of the table whose row serves all keys beyond."""
        return 0 if self.rel != "clip" else 1 if is_causal(self.geometry) else 2

    @property
    def pattern(self) -> bool:
        """A tile lies in one of the pattern's 64 x 64."""
        return self.geometry == "pattern"

    @property
    def canvas(self) -> bool:
        """Keys lie in boxes."""
        return facts_of(self.geometry).canvas

    @property
    def blocked(self) -> bool:
        """Spans of keys have ends that take more instructions than a position and a window."""
        return self.geometry.startswith("local_1d") or self.geometry == "window_both"

    @property
    def two_sided(self) -> bool:
        """Spans of keys have a start as well as an end."""
        return facts_of(self.geometry).low


@cache
def arch_of(device: torch.device) -> int:
    """10 * major + minor of an NVIDIA device; 0 for AMD, and where there is no GPU 90."""
    if not torch.cuda.is_available() or device.type != "cuda":
        return 90
    if torch.version.hip:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def shared_limit(arch: int) -> int:
    """Bytes of shared memory that one program may use."""
    if arch == 0:
        return AMD_SHARED_LIMIT
    known = [a for a in SHARED_LIMIT if a <= arch]
    return SHARED_LIMIT[max(known, default=86)]


def shared_bytes(kind: Kind, config: Config) -> int:
    """An upper bound of what the compiler uses, found in its results (a test compares)."""
    home, step = config.block_q, config.block_k
    if kind.direction == "grad_kv":
        home, step = step, home
    row = kind.dim * kind.element_size
    scores = config.block_q * config.block_k
    table = 0
    if kind.relative:
        table = chunks_of(kind, config) * config.block_k * row
        if kind.values:  # forward's weights are sheared into two chunks
            table += 2 * config.block_k * row if kind.direction == "forward" else table
    sums = 8 * step if kind.direction == "grad_kv" else 0  # lse and delta
    staged = config.num_stages * (2 * step * row + table + sums)
    homes = (1 if kind.direction == "forward" else 2) * home * row
    if kind.relative and chunks_of(kind, config) == 1:  # what is carried starts with those before
        homes += cdiv(config.block_q, config.block_k) * (1 + kind.values) * config.block_k * row
    operands = 4 * scores if kind.relative else max(1024, 2 * kind.element_size * scores)
    if kind.pattern:  # words of bits
        operands += 512
    if kind.arch >= 100:  # what goes to tensor memory
        operands += (3 + kind.values) * step * row + 1024
    return staged + homes + operands


def chunks_of(kind: Kind, config: Config) -> int:
    """Chunks of BLOCK_K table rows that a step of the band loads."""
    if kind.direction == "grad_kv":
        return 2
    return 1 + cdiv(config.block_q, config.block_k) if config.whole or kind.pattern else 1


def fits(kind: Kind, config: Config) -> bool:
    """Whether a configuration can run: the only rule that drops one."""
    if kind.relative and config.block_q > band_chunks(kind) * config.block_k:
        return False
    if kind.pattern and max(config.block_q, config.block_k) > TILE:
        return False
    return shared_bytes(kind, config) <= shared_limit(kind.arch)


def band_chunks(kind: Kind) -> int:
    """How often BLOCK_K may go into BLOCK_Q: chunks of a step's band behind the first. Forward
    shears weights for rel_v into two chunks, those of BLOCK_Q = BLOCK_K."""
    return 1 if kind.direction == "grad_kv" or (kind.direction == "forward" and kind.values) else 2


@cache
def candidates(kind: Kind) -> list[Config]:
    """Configurations to choose from, the default first."""
    rows = DEFAULTS[kind.direction](kind)
    if kind.pattern:
        rows = [*pattern_rows(kind), *rows]
    if kind.element_size == 4 and kind.arch > 0:
        rows = [*exact_rows(kind), *rows]
    fitting = [row for row in dict.fromkeys(cut(kind, row) for row in rows) if fits(kind, row)]
    return fitting or [smallest(kind)]


def cut(kind: Kind, row: Config) -> Config:
    """The row with a tile no larger than its home, and no more warps for its rows than before: 8
    warps on 64 rows compute the scores twice (sm_90). On a canvas a step of queries lies in a
    block, too."""
    most = TILE if kind.pattern else 128
    home = "block_q" if kind.direction in ("forward", "grad_q") else "block_k"
    before = getattr(row, home)
    sizes = {"block_q": min(row.block_q, most), "block_k": min(row.block_k, most)}
    sizes[home] = min(sizes[home], max(16, kind.rows))
    if kind.canvas:
        sizes["block_q"] = min(sizes["block_q"], max(16, kind.rows))
    if kind.relative:
        sizes["block_q"] = min(sizes["block_q"], band_chunks(kind) * sizes["block_k"])
    num_warps = min(row.num_warps, max(4, row.num_warps * sizes[home] // before))
    return replace(row, **sizes, num_warps=num_warps)


def smallest(kind: Kind) -> Config:
    """The last resort, for large head dims on small devices."""
    for block in (32, 16):
        config = Config(block, block, 4, 1)
        if fits(kind, config):
            return config
    return Config(16, 16, 4, 1)


def exact_rows(kind: Kind) -> list[Config]:
    """float32 on NVIDIA: ptxas has no registers for more, with operands held for FMA."""
    old = kind.arch < 90
    narrow = kind.relative or kind.dim > 64 or (old and kind.canvas)
    tight = old and kind.dim > 64 and kind.geometry == "causal" and not kind.relative
    stages = 1 if kind.direction == "grad_kv" and (tight or kind.grouped) else 2
    whole = kind.values and kind.direction == "grad_q" and kind.arch >= 100 and kind.dim > 64
    rows = [Config(16, 16, 8, stages, whole=whole), Config(16, 16, 8, 1)]
    return rows if narrow else [Config(32, 32, 8, rows[0].num_stages), *rows]


def forward_rows(kind: Kind) -> list[Config]:
    if kind.element_size == 4:
        block = 64 if kind.dim <= 64 and not kind.relative else 32
        return [Config(block, block, 4, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 1)]
    if kind.dim > 128:
        return [Config(64, 32, 4, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 1)]
    if kind.relative:
        return forward_bands(kind)
    if kind.rows < 128:
        rows = [Config(64, 64, 4, 3), Config(64, 128, 4, 2), Config(64, 64, 4, 2),
                Config(64, 32, 4, 2)]  # fmt: skip
        if 0 < kind.arch < 90 and kind.dim > 64:
            return [Config(64, 32, 4, 3) if kind.canvas else rows[2], *rows]
        return rows
    if kind.dim <= 64:
        rows = [Config(128, 128, 8, 3), Config(128, 64, 8, 3), Config(128, 64, 4, 3),
                Config(64, 64, 4, 3), Config(64, 64, 4, 2)]  # fmt: skip
    else:
        rows = [Config(128, 64, 8, 3), Config(128, 128, 8, 2), Config(128, 64, 8, 2),
                Config(64, 64, 4, 2), Config(64, 32, 4, 2)]  # fmt: skip
        if 0 < kind.arch < 90 and kind.geometry == "local_2d_causal":
            return [Config(128, 32, 8, 3), *rows]
    return rows if kind.arch != 90 or kind.pattern else [*late_rows(kind, rows), *rows]


def late_rows(kind: Kind, rows: list[Config]) -> list[Config]:
    """What asynchronous products offer. A second comparison leaves no registers for 128 keys."""
    late = [replace(row, late=True) for row in rows]
    if kind.describable:
        wide = Config(128, 128, 8, 3 if kind.dim <= 64 else 2, late=True, described=True)
        late = [Config(128, 64, 8, 3, late=True, described=True), *late]
        if not (kind.grouped and kind.dim > 64):
            late = [wide, *late]
    if kind.two_sided:
        late = [row for row in late if row.block_k < 128]
        return [*rows[:1], *late] if kind.dim <= 64 else late
    return late


def forward_bands(kind: Kind) -> list[Config]:
    """With a table. Registers limit tiles: descriptors save those of addresses, and a band that is
    not carried its own."""
    carried, whole = Config(64, 32, 4, 2), Config(32, 64, 4, 2, whole=True)
    rows = [carried, whole, Config(64, 64, 4, 2), Config(64, 64, 4, 2, whole=True),
            Config(32, 32, 4, 2), Config(32, 32, 4, 1)]  # fmt: skip
    if kind.arch == 90:
        return [*hopper_forward_bands(kind), *rows]
    old, wide_dim = 0 < kind.arch < 90, kind.dim > 64
    if kind.values:
        return [Config(32, 32, 4, 2, whole=old and wide_dim), *rows[2:]]
    if kind.arch >= 100 and kind.blocked and kind.edges == 2 and not wide_dim:
        return [rows[3], *rows]
    return [whole, *rows] if old and wide_dim else rows


def hopper_forward_bands(kind: Kind) -> list[Config]:
    """Of sm_90. A wide tile carries its band where registers suffice: fewer products."""
    wide_dim = kind.dim > 64
    if kind.values:
        whole = Config(64, 64, 8, 2, whole=True)
        if not kind.describable:
            return [whole] if not wide_dim else [Config(32, 32, 4, 2)]
        whole = replace(whole, described=True)
        return [whole] if wide_dim else [replace(whole, num_warps=4), whole]
    whole = Config(128, 64, 8, 2, whole=True)
    if not kind.describable:
        return [whole]
    whole = replace(whole, late=True, described=True)
    carried = replace(whole, whole=False, num_stages=2 if wide_dim else 3)
    carries = kind.geometry == "causal" if wide_dim else not kind.blocked
    return [carried, whole] if carries else [whole, carried]


def grad_q_rows(kind: Kind) -> list[Config]:
    if kind.element_size == 4:
        return [Config(32, 32, 4, 1), Config(16, 16, 4, 1)]
    if kind.relative:
        return grad_q_bands(kind)
    if kind.dim <= 128:
        rows = [Config(128, 64, 8, 2), Config(64, 64, 4, 2), Config(64, 32, 4, 2)]
        if kind.arch == 90 and kind.describable:
            return [*(replace(row, described=True) for row in rows[:2]), *rows]
        old = 0 < kind.arch < 90
        if old and (kind.canvas or (kind.two_sided and kind.dim > 64)):
            return rows[::-1]
        if kind.arch >= 100 and kind.geometry == "local_2d":
            return rows[::-1]
        narrower = kind.dim > 64 or kind.geometry == "window_both"
        return rows[1:] + rows[:1] if kind.arch >= 100 and narrower else rows
    return [Config(64, 32, 4, 2), Config(32, 32, 4, 1)]


def grad_q_bands(kind: Kind) -> list[Config]:
    """With a table; see forward_bands."""
    wide_dim = kind.dim > 64
    rows = [Config(32, 32, 4, 2), Config(64, 32, 4, 2, whole=True),
            Config(32, 64, 4, 2, whole=True), Config(64, 64, 4, 2, whole=True),
            Config(64, 64, 4, 2), Config(32, 64, 4, 2), Config(32, 32, 4, 1)]  # fmt: skip
    if kind.arch < 90:  # AMD's too
        if kind.arch == 0 and kind.values and not wide_dim:
            return [replace(rows[0], whole=True), *rows]
        return [rows[2], *rows] if kind.arch > 0 and not wide_dim else rows
    if kind.arch == 90:
        wide = Config(128, 64, 8, 2, described=kind.describable, whole=True)
        narrow = replace(rows[1], described=kind.describable)
        carried = replace(narrow, whole=False)  # two programs a multiprocessor
        if not wide_dim:
            return [wide, narrow, carried, *rows]
        return [narrow, *rows] if kind.values or not kind.describable else [carried, narrow, *rows]
    if kind.values:
        few = [Config(32, 32, 4, 2, whole=True), Config(16, 32, 4, 2)] if wide_dim else []
        return [*few, *rows]
    if wide_dim and kind.geometry == "window":
        return [replace(rows[1], whole=False), *rows]
    return [rows[1], *rows]


def grad_kv_rows(kind: Kind) -> list[Config]:
    if kind.element_size == 4:
        return [Config(32, 32, 4, 1), Config(16, 16, 4, 1)]
    if kind.relative:
        return grad_kv_bands(kind)
    if 0 < kind.arch < 90 and kind.dim <= 128:
        return [Config(32, 64, 8, 2), Config(32, 128, 8, 2), Config(64, 128, 8, 2),
                Config(32, 64, 4, 2)]  # fmt: skip
    if kind.arch >= 100 and kind.grouped and kind.dim <= 128:  # more stages spill
        return [Config(32 if kind.dim <= 64 else 64, 128, 8, 1), Config(32, 32, 4, 2)]
    if kind.dim <= 64:
        wide = Config(64, 128, 8, 2)
        narrow = Config(32, 128, 8, 2)
        first = [narrow, wide] if kind.grouped else [wide, narrow]
        if kind.arch == 0:
            return [Config(32, 64, 4, 2), *first]
        return [*first, Config(64, 64, 4, 2), Config(32, 64, 4, 2)]
    if kind.dim <= 128:
        stages = 3 if kind.two_sided else 2
        rows = [Config(32, 128, 8, stages), Config(32, 64, 4, 2), Config(64, 128, 8, stages)]
        spans = kind.arch == 90 and kind.geometry in ("causal", "window") and not kind.grouped
        if kind.arch == 90 and kind.canvas and kind.rows < 128:
            rows = [Config(32, 64, 4, 1), *rows]
        if kind.arch >= 100 and kind.geometry == "full":
            return [Config(64, 64, 4, 2), *rows]
        wide = kind.rows >= 128 and (spans or kind.arch >= 100)
        return rows[::-1] if wide else rows
    return [Config(32, 64, 4, 1), Config(32, 32, 4, 1)]


def grad_kv_bands(kind: Kind) -> list[Config]:
    """With a table; see forward_bands."""
    wide_dim = kind.dim > 64
    wide, narrow = Config(64, 128, 8, 2), Config(32, 128, 8, 2)
    rows = [Config(32, 32, 4, 2), Config(64, 64, 4, 2), wide, narrow, Config(32, 64, 4, 2),
            Config(32, 32, 4, 1)]  # fmt: skip
    if kind.arch == 0:
        return [Config(16, 32, 4, 2), *rows] if wide_dim else [rows[4], *rows]
    if kind.arch < 90:
        return (
            [Config(64, 64, 8, 2), *rows]
            if wide_dim and kind.edges == 1 and not kind.blocked
            else rows
        )
    if kind.values:
        return rows if wide_dim else [narrow, *rows]
    if not wide_dim:
        described = replace(wide, described=kind.describable)
        if kind.arch == 90 and kind.two_sided:  # a second comparison
            return [narrow if kind.blocked else described, *rows]
        return [wide, described, narrow, *rows]
    if kind.arch >= 100:
        return [rows[1], *rows]
    described = Config(32, 64, 4, 2, described=kind.describable)
    fits_registers = kind.describable and not kind.blocked
    return [described, *rows] if fits_registers or kind.geometry == "causal" else rows


def pattern_rows(kind: Kind) -> list[Config]:
    """Where words of bits leave fewer registers than the first of the usual rows takes."""
    if kind.element_size == 4 or kind.dim > 128:
        return []
    old = 0 < kind.arch < 90
    wide = kind.dim > 64
    rows = {
        "forward": [Config(64, 32, 4, 3)] if old and wide else [],
        "grad_q": [Config(64, 32, 4, 2)] if old or wide else [],
        "grad_kv": [Config(32, 32 if wide else 64, 4, 2)] if old else [],
    }
    if kind.direction == "grad_kv" and kind.arch == 90 and not wide and not kind.relative:
        return [Config(64, 64, 4, 3)]
    if kind.relative:
        keys = 32 if old or (wide and kind.arch == 90) else 64
        rows = {
            "forward": [Config(32, 64, 4, 2)] if wide and not old else [],
            "grad_q": [Config(16 if wide else 32, 32, 4, 2)],
            "grad_kv": [Config(32, keys, 8 if wide and old else 4, 2)],
        }
    return rows[kind.direction]


DEFAULTS: dict[str, Callable[[Kind], list[Config]]] = {
    "forward": forward_rows,
    "grad_q": grad_q_rows,
    "grad_kv": grad_kv_rows,
}


# --- Search ---


FOUND: dict[Path, Config] = {}  # by this process's searches, or on disk


def cache_path(key: str) -> Path:
    """A file for each key: processes that search at the same time need not agree on anything."""
    folder = os.environ.get("ATTN_KERNELS_CACHE") or Path.home() / ".cache" / "attn_kernels"
    return Path(folder) / "triton" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


WARNED: set[tuple[Path, str]] = set()


def warn_once(folder: Path, access: str, message: str) -> None:
    """One warning for all files of a cache."""
    if (folder, access) not in WARNED:
        WARNED.add((folder, access))
        warnings.warn(f"attn_kernels: {message}", stacklevel=2)


def row_of(text: str, kind: Kind) -> Config:
    """The row of a cache's file. Another release may have written it, or anybody: ValueError."""
    found = json.loads(text)
    row = found.get("config") if isinstance(found, dict) else None
    if not isinstance(row, dict) or row.keys() != {field.name for field in fields(Config)}:
        raise ValueError(f"it must have a config with the fields of {Config.__name__}")
    for name, default in asdict(Config(16, 16, 4, 1)).items():
        if type(row[name]) is not type(default):
            raise ValueError(f"{name} must be {type(default).__name__}, got {row[name]!r}")
    config = Config(**row)
    sizes = config.block_q, config.block_k
    if min(sizes) < 16 or any(n != power_of_2(n) for n in (*sizes, config.num_warps)):
        raise ValueError("blocks and warps must be powers of 2, blocks at least 16")
    if config.num_stages < 1 or not fits(kind, config):
        raise ValueError(f"{config} does not fit")
    return config


def tuned(path: Path, kind: Kind) -> Config | None:
    """What a search has found for the key of this path, and left in memory or on disk."""
    if path not in FOUND:
        try:
            FOUND[path] = row_of(path.read_text(), kind)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            what = f"what is bad in {path.parent} is ignored, {path.name} for one"
            warn_once(path.parent, "read", f"{what}: {error}")
    return FOUND.get(path)


def remember(path: Path, key: str, config: Config) -> None:
    """In memory and on disk, whole at once: another process may be reading there."""
    FOUND[path] = config
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"key": key, "config": asdict(config)}, file, indent=1)
        Path(file.name).replace(path)
    except OSError as error:
        what = "ATTN_KERNELS_CACHE must name a folder that takes tile sizes"
        warn_once(path.parent, "write", f"{what}: {error}")


def search_wanted() -> bool:
    return os.environ.get("ATTN_KERNELS_TUNE") == "1"


def settled(kind: Kind, extra: Callable[[], str]) -> Config:
    """The configuration without a search: the default, or what an earlier one has found.

    `extra` tells what also changes the answer: geometry, device, rounded length.
    """
    found = tuned(cache_path(f"{kind} {extra()}"), kind) if search_wanted() else None
    return found or candidates(kind)[0]


def choose(kind: Kind, extra: Callable[[], str], launch: Callable[[Config], object]) -> Config:
    """The configuration to use. `launch` runs the kernel with one; a search times it. `extra`: see
    `settled`."""
    if not search_wanted() or torch.cuda.is_current_stream_capturing():
        return settled(kind, extra)
    key = f"{kind} {extra()}"
    path = cache_path(key)
    config = tuned(path, kind)
    if config is None:
        rows = candidates(kind)
        times = [time_of(launch, row) for row in rows]
        config = rows[times.index(min(times))]
        if min(times) < float("inf"):
            remember(path, key, config)
    return config


def time_of(launch: Callable[[Config], object], config: Config) -> float:
    """Milliseconds of a launch; infinite if it fails. The one that is chosen is launched again: a
    failure that is not the configuration's shows there."""
    try:
        return triton.testing.do_bench(lambda: launch(config), warmup=10, rep=50)
    except triton.runtime.errors.OutOfResources:
        return float("inf")
    except Exception as error:  # compilers', drivers' and assemblers' failures have no common type
        warnings.warn(f"attn_kernels: {config} is not timed: {error}", stacklevel=2)
        return float("inf")


def key_splits(programs: int, k_len: int, block_k: int, multiprocessors: int) -> int:
    """Parts that the keys of few queries are cut in, so that all multiprocessors have work."""
    wanted = cdiv(SPLIT_TARGET * multiprocessors, max(programs, 1))
    most = max(1, k_len // (4 * block_k))  # a part has at least four steps
    return max(1, min(wanted, most, MAX_SPLITS))
