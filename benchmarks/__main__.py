"""`python -m benchmarks`: every operation against its peers, as tables, JSON, HTML and plots."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from attn_kernels import backends, use_backend

from . import options, report, sweeps
from .case import Case, Shape
from .cases import CASES
from .common import Options, WrongValues, check_against_float64, run_shape
from .compare import comparison
from .memory import MemoryMeter
from .progress import Progress
from .results import Recording, Result, UnknownFormat, load, save


class Run:
    """One run: what it measures with, what it found, and where that is kept."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.settings = Options(chosen.peers, chosen.rounds, chosen.budget, chosen.backend)
        self.recording = Recording(report.environment(chosen.backend, chosen.threads), [])
        self.path = file_of(chosen.out or chosen.save, self.recording)
        self.failures: list[str] = []
        self.checked: set[tuple] = set()
        self.meter = MemoryMeter()
        self.progress = Progress(0)

    def measure(
        self,
        case: Case,
        shape: Shape,
        dtype: torch.dtype,
        direction: str,
        threads: int,
        sweep: sweeps.Sweep | None = None,
    ) -> Result | None:
        """One shape; None, and a failure, where our values are wrong."""
        torch.set_num_threads(threads)
        where = f"{case.name} {shape.label} {dtype} {direction}"
        self.progress.next(f"{where}, {report.threads_text(threads)}")
        settings = self.settings
        if sweep is not None:
            peers = tuple(p for p in sweep.peers if p in (settings.peers or sweep.peers))
            settings = replace(settings, peers=peers or sweep.peers[:1])
        try:
            if (case.name, dtype, direction) not in self.checked:
                check_against_float64(case, dtype, direction == "backward")
                self.checked.add((case.name, dtype, direction))
            result = run_shape(
                case, shape, dtype, direction, settings, self.meter, self.progress.step,
                memory_of_all=sweep is not None,
            )  # fmt: skip
        except WrongValues as error:
            self.failures.append(f"WRONG VALUES: {error}")
            return None
        self.recording.results.append(result)
        return result

    def finish(self, text: str) -> None:
        """Print a table, and keep what is known so far: a run that is cut short has its file."""
        self.progress.clear()
        print(f"\n{text}", flush=True)
        if self.path:
            save(self.recording, self.path)

    def tables(self) -> None:
        """Every operation, dtype, direction and number of threads that was asked for."""
        chosen = self.chosen
        for threads, name, dtype, direction in itertools.product(
            chosen.threads, chosen.op, chosen.dtype, options.CHOICES[chosen.direction]
        ):
            case = CASES[name]
            if direction not in case.directions:
                continue
            rows = [
                self.measure(case, shape, options.DTYPES[dtype], direction, threads)
                for shape in options.shapes_of(case, chosen)
            ]
            if rows := [row for row in rows if row]:
                self.finish(report.as_text(report.table(rows)))

    def sweeps(self) -> None:
        """Scaling, each axis with the largest number of threads but that of threads itself."""
        chosen = self.chosen
        for sweep, dtype, direction in itertools.product(
            options.sweeps_of(chosen), chosen.dtype, options.CHOICES[chosen.direction]
        ):
            rows = []
            for value, shape in sweep.points:
                threads = value if sweep.axis == "threads" else max(chosen.threads)
                row = self.measure(
                    CASES[sweep.op], shape, options.DTYPES[dtype], direction, threads, sweep
                )
                if row:
                    row.axis, row.value = sweep.axis, value
                    rows.append(row)
            if rows:
                self.finish(sweeps.fit_text(rows))

    def count(self) -> int:
        """How many shapes there are to measure."""
        chosen = self.chosen
        combinations = len(chosen.dtype) * len(options.CHOICES[chosen.direction])
        shapes = sum(
            len(options.shapes_of(CASES[name], chosen)) * (d in CASES[name].directions)
            for name, d in itertools.product(chosen.op, options.CHOICES[chosen.direction])
        )
        points = sum(len(sweep.points) for sweep in options.sweeps_of(chosen))
        return shapes * len(chosen.dtype) * len(chosen.threads) + points * combinations

    def __call__(self) -> int:
        """Everything; 1 if our values are wrong anywhere."""
        print(report.header(self.recording.environment), flush=True)
        self.progress = Progress(self.count())
        with use_backend(self.chosen.backend):
            self.tables()
            self.sweeps()
        self.meter.close()
        if self.path and self.recording.results:
            print(f"\nwrote {self.path}")
        if self.chosen.out and self.recording.results:
            write_report(self.recording, self.chosen.out)
        print("".join(f"\n{failure}" for failure in self.failures))
        return int(bool(self.failures))


def file_of(place: Path | None, recording: Recording) -> Path | None:
    """The JSON file: the one named, or one in that folder named by device and date."""
    if place is None or place.suffix == ".json":
        return place
    device = re.sub(r"[^a-z0-9]+", "-", recording.environment["device"].lower()).strip("-")
    date = re.sub(r"[^0-9T]", "", recording.environment["date"].split("+")[0])
    return place / f"{device}-{date}.json"


def write_report(recording: Recording, folder: Path) -> None:
    """The HTML page and the PNGs."""
    from . import page, plots

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(page.page(recording))
    plots.write_pngs(plots.figures(recording), folder)
    print(f"wrote {folder / 'report.html'} and its plots")


def show(chosen: argparse.Namespace) -> int:
    """The tables of a recorded file, and its report."""
    recording = load(chosen.report)
    texts = [report.header(recording.environment)]
    texts += [report.as_text(report.table(g)) for g in report.grouped(recording.results).values()]
    texts += [sweeps.fit_text(results) for results in sweeps.swept(recording.results).values()]
    print("\n\n".join(texts))
    if chosen.out:
        write_report(recording, chosen.out)
    return 0


def on_gpu(chosen: argparse.Namespace) -> int:
    """Hand over to benchmarks.gpu."""
    try:
        from . import gpu
    except ImportError as error:
        sys.exit(f"--device cuda: {error}")
    arguments = ["--only", ",".join(chosen.op)]
    arguments += ["--out", str(chosen.out)] if chosen.out else []
    arguments += ["--minutes", str(chosen.budget / 60)] if chosen.budget_given else []
    return gpu.main(arguments)


def action(chosen: argparse.Namespace) -> Callable[[], int]:
    """What the command line asks for."""
    if chosen.compare:
        print(comparison(*map(load, chosen.compare)))
        return lambda: 0
    if chosen.report:
        return lambda: show(chosen)
    if chosen.device == "cuda":
        return lambda: on_gpu(chosen)
    cpu = backends()["cpu"]
    if chosen.backend == "cpu" and not cpu.available:
        sys.exit(f"nothing to measure: {cpu.reason}")
    return Run(chosen)


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked for; 1 if our values are wrong anywhere."""
    chosen = options.parse(arguments)
    try:
        if chosen.out and chosen.device == "cpu":  # known before an hour of measuring, not after
            from .plots import NoMatplotlib, require

            try:
                require()
            except NoMatplotlib as error:
                sys.exit(f"--out: {error}; or --save for the JSON file alone")
        return action(chosen)()
    except (OSError, UnknownFormat) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
