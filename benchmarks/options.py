"""The command line of `python -m benchmarks`: what is wrong with it is one line, and status 2."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import torch

from .case import Case, Shape
from .cases import CASES
from .common import REPEATS, Options, dtype_name
from .machine import usable_cores
from .results import MOST_OF_PEAK, MOST_SPREAD, Recording, UnknownFormat, load
from .sweeps import AXES, SWEEPS, Sweep

DTYPES = {dtype_name(t): t for t in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
CHOICES = {"forward": ("forward",), "backward": ("backward",), "both": ("forward", "backward")}
PEERS = tuple(sorted({name for case in CASES.values() for name in case.peers}))
CUDA_OPS = ("causal", "relative", "local_2d", "decode")
# What does not measure on this machine's CPU: the options that go with it, and itself.
MODES = {
    "--compare": {"compare"},
    "--report": {"report", "out"},
    "--device cuda": {"device", "op", "budget", "out"},  # those that benchmarks.gpu has
    "--no-tables": {"no_tables", "op", "dtype", "direction", "threads", "peers", "rounds"}
    | {"budget", "backend", "sweep", "out", "save"},
}


class Parser(argparse.ArgumentParser):
    """As argparse's, with errors in one line: no usage before them."""

    def error(self, message: str) -> NoReturn:
        """Stop with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def words(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an option: words separated by commas, or all that are known."""

    def parsed(text: str) -> list[str]:
        found = list(known) if text == "all" else list(dict.fromkeys(text.split(",")))
        if unknown := [repr(word) for word in found if word not in known]:
            raise argparse.ArgumentTypeError(
                f"must be of {', '.join(known)}, got {', '.join(unknown)}"
            )
        return found

    return parsed


def thread_counts(text: str) -> list[int]:
    """The type of an option: numbers of threads separated by commas."""
    try:
        counts = list(dict.fromkeys(map(int, text.split(","))))
    except ValueError:
        message = f"must be numbers separated by commas, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None
    cores = usable_cores()
    if wrong := [n for n in counts if not 1 <= n <= cores]:
        raise argparse.ArgumentTypeError(
            f"must be at least 1 and at most {cores}, the cores of this process, got {wrong[0]}"
        )
    return counts


def at_least_one(text: str) -> int:
    """The type of an option: a whole number above 0."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def seconds(text: str) -> float:
    """The type of an option: a time."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 < number < math.inf:  # nor NaN
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return number


def recorded(text: str) -> Recording:
    """The type of an option: a file of results."""
    try:
        found = load(Path(text))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    except UnknownFormat as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not found.results:
        raise argparse.ArgumentTypeError(f"{text} holds no result")
    return found


def check_folder(folder: Path) -> None:
    """It is there or can be made: known before an hour of measuring, not after."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{there} is no folder to write in")


def new_folder(text: str) -> Path:
    """The type of an option: a folder to write in."""
    if text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"must be a folder, got {text}; --save takes a .json file")
    check_folder(Path(text))
    return Path(text)


def folder_or_json(text: str) -> Path:
    """The type of an option: a folder to write in, or a file."""
    path = Path(text)
    is_file = path.suffix == ".json"
    if is_file and path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder or a .json file, got the folder {text}")
    check_folder(path.parent if is_file else path)
    return path


def parser() -> Parser:
    """Every option."""
    made = Parser(
        prog="python -m benchmarks",
        description="Every operation against its peers: tables, a JSON file, a report with plots.",
    )
    made.add_argument(
        "--op", type=words(CASES), help=f"comma separated: {','.join(CASES)} (default: all)"
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="every shape (default: a few of each)")
    which.add_argument("--quick", action="store_true", help="a few shapes of each: the default")
    made.add_argument("--shapes", help="of all shapes those whose name contains this text")
    made.add_argument(
        "--dtype", type=words(DTYPES), default=["float32"],
        help=f"comma separated: {','.join(DTYPES)} (default: float32)",
    )  # fmt: skip
    made.add_argument("--direction", choices=CHOICES, default="both")
    threads = min(torch.get_num_threads(), usable_cores())
    made.add_argument(
        "--threads", type=thread_counts, default=[threads],
        help=f"comma separated (default: {threads})",
    )  # fmt: skip
    made.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda runs benchmarks.gpu"
    )
    made.add_argument(
        "--peers", type=words(PEERS), default=[],
        help=f"comma separated: {','.join(PEERS)} (default: all)",
    )  # fmt: skip
    made.add_argument(
        "--rounds", type=at_least_one, default=Options.rounds,
        help=f"in which each time is taken (default: {Options.rounds}); times in doubt are taken"
        f" again, {REPEATS} times at most: spread by more than ±{MOST_SPREAD:.0%}%, or faster than"
        f" {MOST_OF_PEAK:.0%}% of the peak",
    )  # fmt: skip
    made.add_argument(
        "--budget", type=seconds, default=Options.budget,
        help=f"seconds for each time (default: {Options.budget:g})",
    )  # fmt: skip
    made.add_argument(
        "--backend", choices=("cpu", "reference"), default=Options.backend, help="ours to measure"
    )
    made.add_argument(
        "--sweep", type=words(AXES), default=[],
        help=f"also scaling along axes: all, or of {','.join(AXES)}",
    )  # fmt: skip
    made.add_argument("--no-tables", action="store_true", help="the sweeps alone")
    kept = made.add_mutually_exclusive_group()
    kept.add_argument("--out", type=new_folder, help="folder for JSON, an HTML report and plots")
    kept.add_argument("--save", type=folder_or_json, help="folder or .json file: JSON alone")
    made.add_argument(
        "--report", type=recorded, metavar="FILE",
        help="no measuring: FILE's tables, and --out of it",
    )  # fmt: skip
    made.add_argument(
        "--compare", type=recorded, nargs=2, metavar=("A", "B"), help="what changed from A to B"
    )
    return made


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked as a whole."""
    made = parser()
    chosen = made.parse_args(arguments)
    given = {name for name, value in vars(chosen).items() if value != made.get_default(name)}
    for mode, together in MODES.items():
        name, _, value = mode.removeprefix("--").replace("-", "_").partition(" ")
        if name in given and (not value or getattr(chosen, name) == value):
            if wrong := sorted(given - together):
                made.error(f"--{wrong[0].replace('_', '-')} does not go with {mode}")
            break
    on_gpu = chosen.device == "cuda"
    chosen.budget_given = "budget" in given
    chosen.op = chosen.op or list(CUDA_OPS if on_gpu else CASES)
    if on_gpu and (wrong := [name for name in chosen.op if name not in CUDA_OPS]):
        made.error(f"argument --op: must be of {', '.join(CUDA_OPS)} on a GPU, got {wrong[0]}")
    if not (on_gpu or chosen.report or chosen.compare):
        check_that_something_is_measured(chosen, made.error)
    return chosen


def check_that_something_is_measured(
    chosen: argparse.Namespace, error: Callable[[str], NoReturn]
) -> None:
    """Every option leaves something of the chosen operations."""
    ops = ", ".join(chosen.op)
    peers = {name for op in chosen.op for name in CASES[op].peers}
    if wrong := [name for name in chosen.peers if name not in peers]:
        error(f"argument --peers: must be of {', '.join(sorted(peers))} for {ops}, got {wrong[0]}")
    if chosen.sweep and not sweeps_of(chosen):
        error(f"argument --sweep: there is none of {ops} along {', '.join(chosen.sweep)}")
    if chosen.no_tables:
        if not chosen.sweep:
            error("argument --no-tables: needs --sweep, or nothing is measured")
        return
    cases = [CASES[name] for name in chosen.op if shapes_of(CASES[name], chosen)]
    if not cases:
        error(f"argument --shapes: no shape of {ops} has {chosen.shapes!r} in its name")
    if not any(d in case.directions for case in cases for d in CHOICES[chosen.direction]):
        names = ", ".join(case.name for case in cases)
        error(f"argument --direction: there is no {chosen.direction} of {names}")


def shapes_of(case: Case, chosen: argparse.Namespace) -> list[Shape]:
    """The shapes of a case that were asked for."""
    if chosen.no_tables:
        return []
    if chosen.shapes:
        return [shape for shape in case.shapes if chosen.shapes in shape.label]
    return list(case.shapes if chosen.full else case.quick)


def sweeps_of(chosen: argparse.Namespace) -> list[Sweep]:
    """The sweeps that were asked for."""
    return [s for s in SWEEPS if s.axis in chosen.sweep and s.op in chosen.op]
