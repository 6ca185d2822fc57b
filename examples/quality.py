"""What a training must reach, how it compares with a trivial baseline, and a record of both."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import attn_kernels

from .checkpoint import write_atomically
from .data import MissingData
from .options import Options

FAILED, WRONG_INPUT = 1, 2  # exit statuses
NO_BACKEND = "none: plain torch"  # of models that have no attention of this library


@dataclass(frozen=True)
class Quality:
    """One figure on the validation data.

    Args:
        name, value: what was measured.
        baseline_name, baseline: the same figure of something trivial.
        stated: what the example promises, on the good side of the baseline.
        higher_is_better: on which side good is.
    """

    name: str
    value: float
    baseline_name: str
    baseline: float
    stated: float
    higher_is_better: bool = False

    @property
    def reached(self) -> bool:
        """Whether the figure keeps the promise and beats the baseline."""
        sign = 1 if self.higher_is_better else -1
        return sign * self.value >= sign * self.stated and sign * self.value > sign * self.baseline

    def line(self) -> str:
        """For a reader."""
        verdict = "reached" if self.reached else "NOT reached"
        return (
            f"{self.name}: {self.value:.4g} ({self.baseline_name}: {self.baseline:.4g};"
            f" stated: {self.stated:.4g}): {verdict}"
        )


def environment(options: Options) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "machine": f"{processor()}, {torch.get_num_threads()} threads"
        if options.device == "cpu"
        else torch.cuda.get_device_name(options.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "attn_kernels": attn_kernels.__version__,
        "backend": options.backend,
        "seed": options.seed,
        "steps": options.steps,
    }


def processor() -> str:
    """The CPU's name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(x.partition(":")[2].strip() for x in file if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(options: Options, qualities: list[Quality], seconds: float, **more: Any) -> None:
    """Print the figures and write figures.json; exit with 1 if --check finds one missed."""
    for quality in qualities:
        print(quality.line())
    print(f"trained in {seconds:.0f} s of processor time; see {options.out}")
    record = {
        "example": options.name,
        **environment(options),
        "cpu_seconds": round(seconds, 1),
        "figures": [{**vars(x), "reached": x.reached} for x in qualities],
        **more,
    }
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(options.out / "figures.json", lambda part: part.write_text(text))
    if options.check and not all(x.reached for x in qualities):
        raise SystemExit(FAILED)


def main(run: Callable[[], None]) -> None:
    """Run an example; what the caller did wrong, and missing data, are one line on stderr."""
    try:
        run()
    except (MissingData, ValueError, NotImplementedError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT) from error
