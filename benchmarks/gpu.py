"""The Triton kernels on one GPU: values first, then times beside cuDNN, FlashAttention and
FlexAttention.

python -m benchmarks.gpu --out DIR [--budget 520] [--only causal,relative] [--check | --tune]

Needs torch, triton and this checkout. First out and every gradient are compared with the float64
reference: whole at small shapes of every kind; for the last key head of every batch entry at the
shapes that are timed. What has wrong values is listed and not timed. Times are medians over rounds
in which the providers take turns, with the L2 cache flushed before every call; decoding is timed as
a CUDA graph, since its kernels are shorter than the host's work for them, which is reported beside.
The file is written after every shape; what the budget of seconds leaves no room for is listed as
skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from torch import Tensor

from attn_kernels import __version__, backends

from .gpu_calls import GROUPS, OURS, PROVIDERS, Work, checked, works
from .gpu_tune import tune
from .gpu_values import (
    TOLERANCE,
    captured,
    errors,
    gradient_of,
    host_microseconds,
    milliseconds,
    peak_bytes,
    sampled,
    sampled_truth,
    step_of,
    synchronize,
    truth_of,
    within,
)
from .worker import Job, JobError, Worker, run_all

ROUNDS = 3
JOB_SECONDS = 150  # a check of one shape, or all providers on one; compiling included
PEER_TOLERANCE = (0.2, 5e-2)  # a peer may round its bias, and add gradients of tables in bfloat16


@dataclass
class Measured:
    """One provider on one shape."""

    milliseconds: float | None = None
    rounds: list[float] = field(default_factory=list)
    host_microseconds: float | None = None
    tflops: float | None = None
    gigabytes_per_second: float | None = None
    peak_bytes: int | None = None
    error: tuple[float, float] | None = None
    skipped: str = ""


@dataclass
class Report:
    """All results, as the JSON file holds them."""

    path: Path | None
    environment: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    configs: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        """Replace the file at once: the process may be stopped at any time."""
        if self.path:
            data = {name: x for name, x in asdict(self).items() if name != "path"}
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(data, indent=1))
            new.replace(self.path)


# --- What a process does ---


def check(work: Work, dtype: torch.dtype) -> dict[str, Any]:
    """Values and all gradients of one small shape."""
    inputs, grad_out = work.inputs(dtype), gradient_of(work, dtype)
    values = step_of(PROVIDERS[OURS](work), inputs, grad_out, True)()
    found = errors(values, truth_of(work, inputs, grad_out))
    return check_row(work, dtype) | {"errors": found, "passed": within(found, TOLERANCE[dtype])}


def check_row(work: Work, dtype: torch.dtype) -> dict[str, Any]:
    return {"name": work.label, "dim": work.dim, "dtype": str(dtype), "passed": False}


def compile_kernels(work: Work) -> None:
    """Run once, so that triton's cache on disk has the kernels."""
    step_of(
        PROVIDERS[OURS](work), work.inputs(), gradient_of(work, torch.bfloat16), work.backward
    )()


def measure(work: Work) -> dict[str, Measured]:
    """Every provider on one shape, in turns."""
    found = {name: Measured() for name in (OURS, *work.peers)}
    steps: dict[str, Callable[[], list[Tensor]]] = {}
    inputs, grad_out = work.inputs(), gradient_of(work, torch.bfloat16)
    truth = sampled_truth(work, inputs)
    for name, row in found.items():
        try:
            step = step_of(PROVIDERS[name](work), inputs, grad_out, work.backward)
            values = [sampled(work, x, place) for place, x in enumerate(step())]
            row.error = errors(values, truth)
            del values
            limits = TOLERANCE[torch.bfloat16] if name == OURS else PEER_TOLERANCE
            if not within(row.error, limits):
                row.skipped = f"wrong values: errors {row.error[0]:.2g}, {row.error[1]:.2g}"
                continue
            row.peak_bytes = peak_bytes(step)
            row.host_microseconds = host_microseconds(step)
            steps[name] = captured(step) if work.group == "decode" else step
        except Exception as error:  # peers fail in many ways; the report says how
            row.skipped = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
            synchronize()  # raises where the error broke the context, and this process with it
    names = list(steps)
    for turn in range(ROUNDS):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            found[name].rounds.append(milliseconds(steps[name]))
    for name in steps:
        row = found[name]
        row.milliseconds = ms = median(row.rounds)
        row.tflops = work.flops() / ms / 1e9
        if work.group == "decode":
            cache_bytes = 4 * work.batch * work.k_heads * work.k_len * work.dim
            row.gigabytes_per_second = cache_bytes / ms / 1e6
    del steps, inputs, truth
    torch.cuda.empty_cache()
    return found


# --- Reports ---


def environment(commit: str) -> dict[str, Any]:
    """The device, the versions and the commit that results belong to."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = ""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "python": platform.python_version(),
        "attn_kernels": __version__,
        "commit": commit or found or "unknown",
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def line_of(work: Work, found: dict[str, Measured]) -> str:
    """One line per shape: our rate, the best peer's time over ours, everybody's milliseconds and,
    in brackets, microseconds of the host."""
    times = [
        f"{name} {x.milliseconds:.3f} ({x.host_microseconds:.0f})"
        for name, x in found.items()
        if x.milliseconds
    ]
    lost = [f"{name}: {x.skipped}" for name, x in found.items() if not x.milliseconds]
    mine = found[OURS]
    peers = [x.milliseconds for n, x in found.items() if n != OURS and x.milliseconds]
    ratio = f"{min(peers) / mine.milliseconds:.2f}x" if peers and mine.milliseconds else "-"
    rate = "-"
    if mine.milliseconds:
        rate = f"{mine.tflops:.0f} TFLOP/s"
    if mine.gigabytes_per_second:
        rate = f"{mine.gigabytes_per_second:.0f} GB/s"
    return "; ".join(
        [f"{work.group:8} {work.label:36} {rate:>12} {ratio:>7}  {' '.join(times)} ms", *lost]
    )


def run_checks(
    report: Report, timed: list[Work], processes: int, seconds: Callable[[], float]
) -> bool:
    """The small shapes; and kernels of those that are timed next are compiled beside."""
    cases = list(checked())
    jobs: list[Job] = [(check, *case) for case in cases]
    jobs += [(compile_kernels, work) for work in timed]
    found = run_all(jobs, processes, seconds)[: len(cases)]
    for (work, dtype), row in zip(cases, found, strict=True):
        if isinstance(row, JobError):
            row = check_row(work, dtype) | {"raised": str(row)}
        report.checks.append(row)
        if not row["passed"]:
            print("WRONG", row, flush=True)
    failed = sum(not row["passed"] for row in report.checks)
    print(f"{len(report.checks)} checks against float64, {failed} failed", flush=True)
    return failed == 0


def run_works(
    report: Report, chosen: list[Work], worker: Worker, seconds: Callable[[], float]
) -> bool:
    """Everything that is timed, one shape after the other."""
    fine = True
    for work in chosen:
        row = {"group": work.group, "work": work.label}
        if seconds() <= 0:
            report.results.append(row | {"skipped": "out of time"})
            continue
        row |= {
            "shape": [work.batch, work.heads, work.k_heads, work.q_len, work.k_len],
            "dim": work.dim,
            "backward": work.backward,
        }
        try:
            found = worker.run((measure, work), seconds())
        except JobError as error:
            found = {OURS: Measured(skipped=str(error))}
        print(line_of(work, found), flush=True)
        fine &= found[OURS].milliseconds is not None
        report.results.append(row | {"providers": {name: asdict(x) for name, x in found.items()}})
        report.write()
    return fine


def main(arguments: list[str] | None = None) -> int:
    """Check, then measure; 1 if a value of ours is wrong or a call of ours failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="write a JSON file into this folder")
    parser.add_argument("--budget", type=float, default=520, help="seconds for everything")
    parser.add_argument("--only", default="", help=f"of {', '.join(GROUPS)}, comma separated")
    parser.add_argument("--check", action="store_true", help="compare values, time nothing")
    parser.add_argument("--tune", action="store_true", help="time the tile sizes of configs.py")
    parser.add_argument("--commit", default="", help="to record where git does not tell")
    parser.add_argument(
        "--processes", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)),
        help="that compile at a time",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    groups = [name for name in chosen.only.split(",") if name] or list(GROUPS)
    if unknown := ", ".join(name for name in groups if name not in GROUPS):
        parser.error(f"argument --only: of {', '.join(GROUPS)}, got {unknown}")
    deadline = time.monotonic() + chosen.budget
    seconds = lambda: min(JOB_SECONDS, deadline - time.monotonic())  # noqa: E731
    if reason := backends()["triton"].reason:
        sys.exit(f"nothing to measure: {reason}")
    worker = Worker()  # this process has no CUDA context that a kernel could break
    report = Report(None, worker.run((environment, chosen.commit), 120))
    print(json.dumps(report.environment, indent=1), flush=True)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        device = report.environment["device"].lower().replace(" ", "-")
        report.path = chosen.out / f"gpu-{device}{'-tune' if chosen.tune else ''}.json"
    listed = list(works(groups))
    try:
        if chosen.tune:
            fine = tune(report, listed, worker, chosen.processes, seconds)
        else:
            timed = [] if chosen.check else listed
            fine = run_checks(report, timed, chosen.processes, seconds)
            report.write()
            print(f"{deadline - time.monotonic():.0f} s left", flush=True)
            fine &= run_works(report, timed, worker, seconds)
    finally:
        worker.stop()
        report.write()
    if report.path:
        print(f"written to {report.path}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
