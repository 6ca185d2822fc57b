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

from attn_kernels import use_backend

from . import options, report, sweeps
from .case import Case, Shape
from .cases import CASES
from .common import Options, WrongValues, check_against_float64, dtype_name, run_shape
from .compare import comparison
from .machine import kernels_error
from .memory import MemoryMeter
from .progress import Progress
from .results import Recording, Result, save

INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended


class Run:
    """One run: what it measures with, what it found, and where that is kept."""

    progress: Progress  # once it is called, below the header

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        peers = tuple(chosen.peers)
        self.settings = Options(peers, chosen.rounds, chosen.budget, chosen.backend)
        self.recording = Recording(report.environment(chosen.backend, chosen.threads), [])
        self.rows: list[Result] = []  # of the table or sweep that is being measured
        self.path = file_of(chosen.out or chosen.save, self.recording)
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.failures: list[str] = []
        self.checked: set[tuple] = set()
        self.meter = MemoryMeter()

    def measure(
        self,
        case: Case,
        shape: Shape,
        dtype: torch.dtype,
        direction: str,
        threads: int,
        sweep: sweeps.Sweep | None = None,
        value: int = 0,
    ) -> None:
        """One shape, with its value along the axis of a sweep; a failure where ours is wrong."""
        torch.set_num_threads(threads)
        self.progress.begin(
            report.title_of(case.title, dtype_name(dtype), direction, threads), shape.label
        )
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
            self.progress.end("wrong values")
            return
        if sweep is not None:
            result.axis, result.value = sweep.axis, value
        self.recording.results.append(result)
        self.rows.append(result)
        self.progress.end(report.ratio(result) + (", in doubt" if result.doubt else ""))

    def finish(self) -> None:
        """Print the rows as a table, and keep all: a run that is cut short has its file."""
        if not self.rows:
            return
        rows, self.rows = self.rows, []
        self.progress.clear()
        text = sweeps.fit_text(rows) if rows[0].axis else report.as_text(report.table(rows))
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
            for shape in options.shapes_of(case, chosen):
                self.measure(case, shape, options.DTYPES[dtype], direction, threads)
            self.finish()

    def sweeps(self) -> None:
        """Scaling, each axis with the largest number of threads but that of threads itself."""
        chosen = self.chosen
        for sweep, dtype, direction in itertools.product(
            options.sweeps_of(chosen), chosen.dtype, options.CHOICES[chosen.direction]
        ):
            for value, shape in sweep.points:
                threads = value if sweep.axis == "threads" else max(chosen.threads)
                kind = options.DTYPES[dtype]
                self.measure(CASES[sweep.op], shape, kind, direction, threads, sweep, value)
            self.finish()

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

    def interrupt(self) -> None:
        """Ctrl-C: what was measured counts, and its files say that the rest is missing."""
        how_far = f"after {self.progress.done} of {self.progress.total} shapes"
        self.recording.environment["interrupted"] = how_far
        self.finish()
        self.progress.clear()
        print(f"\ninterrupted {how_far}", flush=True)
        if not self.recording.results:
            print("nothing was measured yet")
        elif self.path is None:
            print("nothing is kept in a file: neither --out nor --save was given")
        else:
            save(self.recording, self.path)

    def __call__(self) -> int:
        """Everything; 1 if our values are wrong anywhere, INTERRUPTED after Ctrl-C."""
        print(report.header(self.recording.environment), flush=True)
        self.progress = Progress(self.count())
        interrupted = False
        try:
            with use_backend(self.chosen.backend):
                self.tables()
                self.sweeps()
        except KeyboardInterrupt:
            interrupted = True
            self.interrupt()
        finally:
            self.meter.close()
            self.progress.close()
        if self.path and self.recording.results:
            print(f"\nwrote {self.path}")
        if self.chosen.out and self.recording.results:
            write_report(self.recording, self.chosen.out)
        print("".join(f"\n{failure}" for failure in self.failures))
        return INTERRUPTED if interrupted else int(bool(self.failures))


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
    recording = chosen.report
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
        print(comparison(*chosen.compare))
        return lambda: 0
    if chosen.report:
        return lambda: show(chosen)
    if chosen.device == "cuda":
        return lambda: on_gpu(chosen)
    if chosen.backend == "cpu" and (error := kernels_error()):
        sys.exit(f"{error}; --backend reference measures without kernels")
    return Run(chosen)


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked for; the status of the process."""
    chosen = options.parse(arguments)
    try:
        if chosen.out and chosen.device == "cpu":  # known before an hour of measuring, not after
            from .plots import NoMatplotlib, require

            try:
                require()
            except NoMatplotlib as error:
                sys.exit(f"--out: {error}; or --save for the JSON file alone")
        return action(chosen)()
    except OSError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:  # before anything was measured, or after everything
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
