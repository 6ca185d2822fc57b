"""What a run records: plain data, and the JSON files that hold it. Files carry a format version."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

OURS = "attn_kernels"
# Times that are noise: the rounds of ours, or of the best peer, are spread wider than this part of
# the median, or ours is faster than the machine's peak, which is itself known to a few percent.
MOST_SPREAD, MOST_OF_PEAK = 0.25, 1.05
FORMAT = 2  # written; read: this one, 1, and the files of benchmarks.gpu
DIRECTIONS = {
    "forward": "forward",
    "backward": "forward + backward",
    "backward alone": "backward alone",
}


@dataclass
class Entry:
    """One provider (ours or a peer) on one shape: its rounds, or the reason why it was left out."""

    seconds: list[float] = field(default_factory=list)
    skipped: str = ""
    errors: tuple[float, float] | None = None  # against the first peer: largest, mean
    extra_bytes: int | None = None  # peak memory beyond inputs and results

    @property
    def median(self) -> float:
        """Seconds per call."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


@dataclass
class Result:
    """Everything measured for one shape, dtype, direction and number of threads."""

    op: str
    title: str
    shape: str
    sizes: dict[str, list[int]]
    source: str
    dtype: str
    direction: str  # of DIRECTIONS; "backward" is forward and backward together
    threads: int  # 0 on a GPU
    visible_pairs: int
    flops: float
    input_bytes: int
    result_bytes: int
    reads_only: bool  # its limit is reading the inputs once, not arithmetic
    peers: list[str]
    entries: dict[str, Entry]
    limits: list[float]  # what the machine could do, before each round: operations or bytes/s
    axis: str = ""  # of a sweep: length, heads, window, threads
    value: int = 0  # along the axis

    @property
    def group(self) -> tuple[str, str, str, int]:
        """What shares a table."""
        return self.op, self.dtype, self.direction, self.threads

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from every other result of one machine."""
        return (*map(str, self.group), self.shape, self.axis, str(self.value))

    @property
    def best_peer(self) -> str | None:
        """The fastest peer that ran."""
        ran = [name for name in self.peers if self.entries.get(name, Entry()).seconds]
        return min(ran, key=lambda name: self.entries[name].median, default=None)

    @property
    def speedup(self) -> float | None:
        """The best peer's time over ours."""
        if self.best_peer is None or not self.entries[OURS].seconds:
            return None
        return self.entries[self.best_peer].median / self.entries[OURS].median

    @property
    def rate(self) -> float:
        """Our useful operations per second; bytes per second where reading is the limit."""
        amount = self.input_bytes if self.reads_only else self.flops
        return amount / self.entries[OURS].median

    @property
    def part_of_peak(self) -> float | None:
        """Our rate relative to what the machine could do meanwhile."""
        if not self.limits:
            return None
        halved = self.dtype == "float64" and not self.reads_only
        return self.rate / statistics.median(self.limits) * (2 if halved else 1)

    @property
    def doubt(self) -> str:
        """Why the times say nothing, or "".

        Float16 may be faster than the peak it is compared with, which is that of float32.
        """
        times = [self.entries[name] for name in (OURS, self.best_peer) if name is not None]
        if any(entry.spread > MOST_SPREAD for entry in times):
            return f"the rounds are spread by more than ±{MOST_SPREAD:.0%}"
        if self.dtype != "float16" and (self.part_of_peak or 0.0) > MOST_OF_PEAK:
            return f"the rate is more than {MOST_OF_PEAK:.0%} of the machine's peak"
        return ""

    def total_bytes(self, name: str) -> int | None:
        """Memory of a call: inputs, results and what it takes besides."""
        extra = self.entries[name].extra_bytes
        return None if extra is None else self.input_bytes + self.result_bytes + extra


@dataclass
class Recording:
    """A file: where and with what was measured, and the results."""

    environment: dict
    results: list[Result]
    path: Path | None = None

    @property
    def device(self) -> str:
        """The machine's name, as far as the file tells."""
        return self.environment.get("device", "an unknown device")


class UnknownFormat(ValueError):
    """A file that this version cannot read; the message names it and says why."""


def save(recording: Recording, path: Path) -> None:
    """Write a file of the current format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = [asdict(result) for result in recording.results]
    data = {"format": FORMAT, "environment": recording.environment, "results": results}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)  # at once: a run may be cut short while it writes


def load(path: Path) -> Recording:
    """Read a file of any format that was ever written."""
    from . import older

    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise UnknownFormat(f"{path} is not JSON: {error}") from None
    parts = {"environment": dict, "results": list}
    if not isinstance(data, dict) or not all(isinstance(data.get(k), parts[k]) for k in parts):
        raise UnknownFormat(f"{path} is not a recording of this benchmark suite")
    version = data.get("format", "gpu" if "checks" in data else None)
    readers = {"gpu": older.from_gpu, 1: older.from_format_1, FORMAT: lambda rows: rows}
    if version not in readers:
        raise UnknownFormat(f"{path} has format {version}; this version reads 1 and {FORMAT}")
    try:
        results = [from_data(row) for row in readers[version](data["results"])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UnknownFormat(f"{path} has a result that cannot be read ({reason})") from None
    return Recording(data["environment"], results, path)


def from_data(data: dict) -> Result:
    """A result of the current format."""
    entries = {name: Entry(**entry) for name, entry in data["entries"].items()}
    if not entries[OURS].seconds:
        raise ValueError(f"no times of {OURS}")
    return Result(**{**data, "entries": entries})


def trusted(results: list[Result]) -> list[Result]:
    """Those that count in means of ratios: a peer ran beside, and the times are not noise."""
    return [r for r in results if r.speedup is not None and not r.doubt]
