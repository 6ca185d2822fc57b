"""The command line of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .case import Case, Shape
from .cases import CASES
from .common import Options, dtype_name
from .sweeps import AXES, SWEEPS, Sweep

DTYPES = {dtype_name(t): t for t in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
CHOICES = {"forward": ("forward",), "backward": ("backward",), "both": ("forward", "backward")}
FOR_CUDA = {"device", "op", "budget", "out"}  # the options that benchmarks.gpu has
CUDA_OPS = ("causal", "relative", "local_2d", "decode")


def parser() -> argparse.ArgumentParser:
    """Every option."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Every operation against its peers: tables, a JSON file, a report with plots.",
    )

    def listed(name: str, default: str, text: str) -> None:
        made.add_argument(name, default=default, help=f"{text} (default: {default or 'all'})")

    listed("--op", "", f"operations, comma separated: {','.join(CASES)}")
    made.add_argument("--full", action="store_true", help="every shape (default: a few of each)")
    made.add_argument("--quick", action="store_true", help="a few shapes of each: the default")
    made.add_argument("--shapes", help="of all shapes those whose name contains this text")
    listed("--dtype", "float32", f"comma separated: {','.join(DTYPES)}")
    made.add_argument("--direction", choices=CHOICES, default="both")
    listed("--threads", str(torch.get_num_threads()), "comma separated")
    made.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda runs benchmarks.gpu"
    )
    listed("--peers", "", "peers, comma separated, as named in the tables")
    made.add_argument("--rounds", type=int, default=Options.rounds)
    made.add_argument("--budget", type=float, default=Options.budget, help="seconds for each time")
    made.add_argument("--backend", default=Options.backend, help="ours to measure")
    made.add_argument(
        "--sweep", default="", help=f"also scaling along axes: all, or of {','.join(AXES)}"
    )
    made.add_argument("--no-tables", action="store_true", help="the sweeps alone")
    made.add_argument("--out", type=Path, help="folder for JSON, an HTML report and PNG plots")
    made.add_argument("--save", type=Path, help="folder or .json file: JSON alone")
    made.add_argument(
        "--report", type=Path, metavar="FILE", help="no measuring: FILE's tables, and --out of it"
    )
    made.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="what changed from A to B"
    )
    return made


def split(text: str, name: str, known: list[str]) -> list[str]:
    """The comma-separated words of an option, or everything known."""
    words = text.split(",") if text and text != "all" else known
    if unknown := [word for word in words if word not in known]:
        sys.exit(f"{name} must be of {', '.join(known)}, got {', '.join(unknown)}")
    return words


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with lists as lists."""
    made = parser()
    chosen = made.parse_args(arguments)
    if chosen.device == "cuda":
        given = {k for k, v in vars(chosen).items() if v != made.get_default(k)}
        if wrong := sorted(given - FOR_CUDA):
            sys.exit(
                f"--{wrong[0].replace('_', '-')} does not go with --device cuda, which takes"
                f" {', '.join('--' + name for name in sorted(FOR_CUDA - {'device'}))}"
            )
    chosen.budget_given = chosen.budget != Options.budget
    known_ops = list(CUDA_OPS if chosen.device == "cuda" else CASES)
    chosen.op = split(chosen.op, "--op", known_ops)
    chosen.dtype = split(chosen.dtype, "--dtype", list(DTYPES))
    known_peers = sorted({name for case in CASES.values() for name in case.peers})
    chosen.peers = tuple(split(chosen.peers, "--peers", known_peers)) if chosen.peers else ()
    chosen.sweep = split(chosen.sweep, "--sweep", list(AXES)) if chosen.sweep else []
    try:
        chosen.threads = [int(n) for n in chosen.threads.split(",")]
    except ValueError:
        sys.exit(f"--threads must be numbers separated by commas, got {chosen.threads!r}")
    if min(chosen.threads) < 1:
        sys.exit(f"--threads must be at least 1, got {min(chosen.threads)}")
    return chosen


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
