"""The Triton kernels on one GPU in one command: values, steadiness, times beside cuDNN's,
FlashAttention's and FlexAttention's, tile sizes.

python -m benchmarks.gpu --out DIR [--minutes 7] [--only causal,relative] [--resume FILE]

Needs torch, triton and this checkout. The plan is printed first; a phase ends when its share of the
minutes is over, and what it leaves is the next one's. DIR/gpu.json is replaced after every row, so
that nothing is lost whenever the command ends; --resume goes on with what a file lacks. Rows are
made by processes that are replaced when one fails: a hang, or an error that leaves the context of
the GPU unusable, costs one row. A check that fails cancels the rows of its operation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_kernels import backends

from . import gpu_calls, gpu_jobs, gpu_summary, gpu_tune
from .gpu_calls import Work
from .gpu_jobs import Row
from .worker import Job, JobError, Worker, run_all

# Seconds of each phase, and the most that one of its rows may take, for 7 minutes in all.
PLAN = {
    "environment": (30, 30),  # and ceilings
    "checks": (120, 90),  # and compiling what is timed, on all cores
    "steadiness": (35, 20),
    "bars": (100, 25),
    "tiles": (75, 20),
    "rest": (60, 40),
}
MINUTES = 7.0
LEAST = 2.0  # seconds that are worth starting a row for
GROUPS = ("causal", "relative", "local_2d", "full", "decode", "pattern", "local_1d")
SAME = ("device", "torch", "cuda", "triton")  # in a file that is resumed
PARTS = ("ceilings", "checks", "compiled", "steadiness", "results", "kernels", "tiles")


@dataclass(frozen=True)
class Task:
    """A row that is to be made: a list of the file, the row's beginning, and who makes the rest."""

    part: str
    name: str
    group: str
    job: Job
    operation: str = ""  # that a failed check cancels
    backward: bool = False

    @classmethod
    def of(cls, part: str, job: Callable[..., Row], work: Work, *arguments: Any) -> Task:
        """A job for a shape."""
        made = job, work, *arguments
        return cls(part, work.name, work.group, made, str(work.operation), work.backward)


class Report:
    """The file: {environment, runs, and lists of rows}, replaced at once after every change."""

    def __init__(self, path: Path | None, data: dict[str, Any]) -> None:
        self.path, self.data, self.lock = path, data, threading.Lock()
        for part in ("runs", "errors", *PARTS):
            data.setdefault(part, [])

    def write(self) -> None:
        if self.path:
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.data, indent=1))
            os.replace(new, self.path)

    def add(self, task: Task, row: Row) -> None:
        """A row in place of an earlier one of its name."""
        row = {"name": task.name, "group": task.group, "operation": task.operation, **row}
        row["run"] = len(self.data["runs"]) - 1
        with self.lock:
            others = [x for x in self.data[task.part] if x["name"] != task.name]
            self.data[task.part] = [*others, row]
            self.write()
        if line := gpu_summary.line_of(task.part, row):
            print(line, flush=True)

    def note(self, error: str) -> None:
        """What no row can tell."""
        print(error, flush=True)
        with self.lock:
            self.data["errors"].append(error)
            self.write()

    def has(self, task: Task) -> bool:
        """Whether there is nothing left to do; a new process has to compile again."""
        rows = () if task.part == "compiled" else self.data[task.part]
        return any(x["name"] == task.name and not x.keys() & {"failed", "skipped"} for x in rows)

    def cancelled(self, task: Task) -> str:
        """The check that leaves nothing to time, if there is one: of forward only what it says of
        out."""
        if task.part in ("checks", "ceilings"):
            return ""
        for row in self.data["checks"]:
            wrong = [x for x in row.get("wrong", ()) if task.backward or x == "out"]
            failed = row.get("failed") or ", ".join(wrong)
            if failed and row["operation"] == task.operation:
                return f"cancelled: the check '{row['name']}' failed: {failed}"
        return ""


def tile_task(work: Work, direction: str, change: gpu_tune.Change) -> Task:
    name = f"{work.group} {work.label} D {work.dim} {direction} {change.name}"
    job = gpu_tune.time_tile, work, direction, change
    return Task("tiles", name, work.group, job, str(work.operation), direction != "forward")


def phases(groups: list[str], report: Report) -> dict[str, list[tuple[bool, list[Task]]]]:
    """What is left to do: of every phase its stages, in parallel or one row after the other."""

    def left(tasks: list[Task]) -> list[Task]:
        return [x for x in tasks if x.group in groups and not report.has(x)]

    def compiling(works: list[Work]) -> list[Task]:
        once = dict.fromkeys(map(gpu_jobs.both_ways_once, works))
        return [Task.of("compiled", gpu_jobs.compile_work, work) for work in once]

    def ceilings(when: str) -> tuple[bool, list[Task]]:
        task = Task("ceilings", when, "", (gpu_jobs.ceilings,))
        return False, [] if report.has(task) else [task]

    def shaped(part: str, job: Callable[..., Row], works: list[Work]) -> list[Task]:
        return left([Task.of(part, job, work) for work in works])

    bars, rest = list(gpu_calls.bars()), list(gpu_calls.rest())
    timed, later = (shaped("results", gpu_jobs.measure, x) for x in (bars, rest))
    steady = shaped("steadiness", gpu_jobs.steadiness, [x for x in bars if x.backward])
    profiled = shaped("kernels", gpu_jobs.kernels, gpu_calls.profiled())
    tiles = left([tile_task(*tried) for tried in gpu_tune.tried()])
    checks = shaped("checks", gpu_jobs.check, list(gpu_calls.checks()))
    made = [Task("compiled", x.name, x.group, (*x.job, True)) for x in tiles]
    plain = compiling([x.job[1] for x in [*timed, *steady, *profiled]])
    return {
        "environment": [ceilings("before")],
        "checks": [(True, [*checks, *plain, *made])],
        "steadiness": [(False, steady)],
        "bars": [(False, timed)],
        "tiles": [(False, [*profiled, *tiles]), ceilings("after")],
        "rest": [(True, compiling([x.job[1] for x in later])), (False, later)],
    }


def run_stage(
    report: Report, tasks: list[Task], workers: list[Worker], seconds: Callable[[], float]
) -> None:
    """Make the rows that no failed check cancels."""
    wanted = []
    for task in tasks:
        if reason := report.cancelled(task):
            report.add(task, {"skipped": reason})
        else:
            wanted.append(task)

    def done(place: int, result: Any) -> None:
        if isinstance(result, JobError):
            kind = "skipped" if str(result) == "out of time" else "failed"
            result = {kind: str(result)}
        report.add(wanted[place], result)

    run_all([task.job for task in wanted], workers, seconds, done)


def run_plan(
    report: Report, groups: list[str], minutes: float, workers: list[Worker], start: float
) -> None:
    """Every phase until its share of the minutes is over."""
    todo, until = phases(groups, report), start
    for name, (seconds, most) in PLAN.items():
        until += seconds * minutes / MINUTES
        n = sum(len(tasks) for _, tasks in todo[name])
        now = time.monotonic() - start
        print(f"[{now:3.0f} s] {name}: {n} rows, until {until - start:.0f} s", flush=True)

        def left(until: float = until, most: float = most) -> float:
            found = min(most, until - time.monotonic())
            return found if found > LEAST else 0

        try:
            for parallel, tasks in todo[name]:
                run_stage(report, tasks, workers if parallel else workers[:1], left)
                for worker in workers[1:]:  # what they hold of the GPU
                    worker.stop()
        except Exception as error:  # of this program; the rest goes on
            report.note(f"{name}: {type(error).__name__}: {error}")


def plan_text(minutes: float) -> str:
    """The phases' seconds."""
    scale = minutes / MINUTES
    parts = [f"{name} {seconds * scale:.0f}" for name, (seconds, _) in PLAN.items()]
    total = sum(seconds for seconds, _ in PLAN.values()) * scale
    return f"plan, seconds: {', '.join(parts)}; {total:.0f} in all"


def opened(folder: Path | None, resume: Path | None, found: Row, command: str) -> Report:
    """The file of this run: a new one, or one that goes on."""
    path = folder / "gpu.json" if folder else None
    data = json.loads(resume.read_text()) if resume else {}
    before = data.get("environment", found)
    if other := [f"{x} {before[x]}" for x in SAME if before[x] != found[x]]:
        sys.exit(f"--resume {resume}: it was measured with {', '.join(other)}")
    if path and path.exists() and not resume:
        sys.exit(f"{path} exists: --resume it, or name another folder")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    report = Report(path, {**data, "environment": found})
    report.data["runs"].append({x: found[x] for x in ("commit", "date")} | {"command": command})
    report.write()
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the plan; 1 if a value of ours is wrong or a call of ours failed."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="write gpu.json into this folder")
    parser.add_argument("--resume", type=Path, help="go on with what this file lacks")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything")
    parser.add_argument("--only", default="", help=f"of {', '.join(GROUPS)}, comma separated")
    parser.add_argument("--commit", default="", help="to record where git does not tell")
    parser.add_argument(
        "--processes", type=int, default=max(1, min(15, (os.cpu_count() or 2) - 1)),
        help="that check and compile at a time",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    groups = [name for name in chosen.only.split(",") if name] or list(GROUPS)
    if unknown := ", ".join(name for name in groups if name not in GROUPS):
        parser.error(f"argument --only: of {', '.join(GROUPS)}, got {unknown}")
    if reason := backends()["triton"].reason:
        sys.exit(f"nothing to measure: {reason}")
    print(plan_text(chosen.minutes), flush=True)
    workers = [Worker() for _ in range(chosen.processes)]  # this process uses no GPU
    try:
        found = workers[0].run((gpu_jobs.environment, chosen.commit), 60)
        command = f"python -m benchmarks.gpu --minutes {chosen.minutes:g}"
        command += f" --only {chosen.only}" if chosen.only else ""
        report = opened(chosen.out, chosen.resume, found, command)
        run_plan(report, groups, chosen.minutes, workers, start)
    finally:
        for worker in workers:
            worker.stop()
    print(gpu_summary.summary(report.data), flush=True)
    return gpu_summary.status(report.data)


if __name__ == "__main__":
    sys.exit(main())
