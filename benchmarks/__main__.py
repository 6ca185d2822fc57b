"""`python -m benchmarks`: every operation against its peers, as tables and as a JSON file."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

import torch

from attn_kernels import backends, use_backend

from . import report
from .case import Case, Shape
from .cases import CASES
from .common import Options, Result, WrongValues, check_against_float64, run_shape
from .memory import MemoryMeter

DTYPES = {
    report.dtype_name(t): t for t in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}
DIRECTIONS = {"forward": ("forward",), "backward": ("backward",), "both": ("forward", "backward")}


class Progress:
    """What is being measured, on one line of stderr; a line per shape where that is no terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.title, self.start = total, 0, "", time.monotonic()
        self.live = sys.stderr.isatty()

    def next(self, title: str) -> None:
        """Start on the next shape."""
        self.done, self.title = self.done + 1, title
        if not self.live:
            print(self.line(), file=sys.stderr, flush=True)

    def step(self, what: str) -> None:
        """Say what is being done with it."""
        if self.live:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            print(
                f"\r\x1b[K{self.line()}: {what}"[: width + 4], end="", file=sys.stderr, flush=True
            )

    def clear(self) -> None:
        """Make room for a table."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def line(self) -> str:
        """How far it is, in shapes and seconds."""
        seconds = time.monotonic() - self.start
        return f"[{self.done}/{self.total} {seconds:.0f} s] {self.title}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)

    def listed(name: str, default: str, text: str) -> None:
        parser.add_argument(name, default=default, help=f"{text} (default: {default or 'all'})")

    listed("--op", "", f"operations, comma separated: {','.join(CASES)}")
    parser.add_argument("--full", action="store_true", help="every shape (default: a few of each)")
    parser.add_argument("--quick", action="store_true", help="a few shapes of each: the default")
    parser.add_argument("--shapes", help="of all shapes those whose name contains this text")
    listed("--dtype", "float32", f"comma separated: {','.join(DTYPES)}")
    parser.add_argument("--direction", choices=DIRECTIONS, default="both")
    listed("--threads", str(torch.get_num_threads()), "comma separated")
    listed("--peers", "", "peers, comma separated, as named in the tables")
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument(
        "--budget", type=float, default=Options.budget, help="seconds for each time"
    )
    parser.add_argument("--backend", default=Options.backend, help="ours to measure")
    parser.add_argument("--out", type=Path, help="write a JSON file into this folder")
    return parser.parse_args(arguments)


def choose_cases(text: str) -> list[Case]:
    """The cases named, or all."""
    names = text.split(",") if text else list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"--op must be of {', '.join(CASES)}, got {', '.join(unknown)}")
    return [CASES[name] for name in names]


def choose_peers(text: str) -> tuple[str, ...]:
    """The peers named, or none for all."""
    known = {name for case in CASES.values() for name in case.peers}
    names = tuple(text.split(",")) if text else ()
    unknown = set(names) - known
    if unknown:
        sys.exit(f"--peers must be of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return names


def choose_shapes(case: Case, options: argparse.Namespace) -> list[Shape]:
    """The shapes of a case that were asked for."""
    if options.shapes:
        return [shape for shape in case.shapes if options.shapes in shape.label]
    return list(case.shapes if options.full else case.quick)


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for; 1 if our values are wrong anywhere."""
    chosen = parse(arguments)
    cpu = backends()["cpu"]
    if chosen.backend == "cpu" and not cpu.available:
        sys.exit(f"nothing to measure: {cpu.reason}")
    threads = [int(n) for n in chosen.threads.split(",")]
    peers = choose_peers(chosen.peers)
    options = Options(peers, chosen.rounds, chosen.budget, chosen.backend)
    tables = [
        (n, case, DTYPES[dtype], direction)
        for n, case, dtype, direction in itertools.product(
            threads, choose_cases(chosen.op), chosen.dtype.split(","), DIRECTIONS[chosen.direction]
        )
        if direction in case.directions
    ]
    found = report.environment(chosen.backend, threads)
    print(report.header(found), flush=True)
    progress = Progress(sum(len(choose_shapes(case, chosen)) for _, case, _, _ in tables))
    results: list[Result] = []
    failures: list[str] = []
    meter = MemoryMeter()
    with use_backend(chosen.backend):
        for n, case, dtype, direction in tables:
            torch.set_num_threads(n)
            rows = []
            for shape in choose_shapes(case, chosen):
                name = report.dtype_name(dtype)
                progress.next(f"{case.name} {shape.label} {name} {direction} {n} threads")
                try:
                    if not rows:
                        check_against_float64(case, dtype, direction == "backward")
                    rows.append(
                        run_shape(case, shape, dtype, direction, options, meter, progress.step)
                    )
                except WrongValues as error:
                    failures.append(f"WRONG VALUES: {error}")
            progress.clear()
            if rows:
                print(f"\n{report.table(rows)}", flush=True)
            results += rows
    meter.close()
    if chosen.out:
        print(f"\nwrote {report.save(chosen.out, found, results)}")
    print("".join(f"\n{failure}" for failure in failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
