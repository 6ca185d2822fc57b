"""The command line that all examples share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from attn_kernels import backends

from .checkpoint import checkpoints
from .data.source import need

KERNELS = {"cpu": "cpu", "cuda": "triton"}  # by the type of device
USED = {"safetensors": "safetensors", "matplotlib": "matplotlib", "PIL": "Pillow"}  # by all of them


@dataclass
class Options:
    """How to train, whatever is trained."""

    name: str
    steps: int
    seed: int
    out: Path
    resume: bool
    restart: bool
    backend: str
    threads: int | None
    device: str
    check: bool


def positive(text: str) -> int:
    """An int of at least 1."""
    if not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"must be an int, got {text!r}")
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def several(text: str) -> list[int]:
    """Such ints with commas between."""
    return [positive(x) for x in text.split(",")]


def parser(name: str, description: str, steps: int) -> argparse.ArgumentParser:
    """Options that every example has; the example adds its own."""
    made = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description)
    made.set_defaults(name=name)
    add = made.add_argument
    add("--steps", type=positive, default=steps, help="training steps (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, data order, dropout and samples")
    add("--out", type=Path, default=Path("runs") / name, help="folder (default: %(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--restart", action="store_true", help="discard the checkpoint in --out")
    add("--backend", choices=sorted(backends()), help="default: the device's kernels")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add("--threads", type=positive, help="of torch (default: torch's)")
    add("--check", action="store_true", help="exit with 1 if the stated quality is not reached")
    return made


def common(found: argparse.Namespace) -> Options:
    """The shared options of a parsed command line; threads, seed and folder are made ready.

    `found.backend` becomes the backend that trains.
    """
    need(USED)
    check_device(found.device)
    found.backend = usable_backend(found.backend, found.device)
    options = Options(**{name: getattr(found, name) for name in Options.__dataclass_fields__})
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    prepare_folder(options)
    return options


def check_device(device: str) -> None:
    """Raise unless this machine has the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {error}") from error


def usable_backend(asked: str | None, device: str) -> str:
    """The backend asked for, or the kernels of the device; raise where they cannot run.

    Models get it by name, so that none of them falls back on another one.
    """
    name = asked or KERNELS.get(torch.device(device).type, "reference")
    if reason := backends()[name].reason:
        without = "" if asked else "; --backend reference goes on without kernels"
        raise ValueError(f"--backend {name}: {reason}{without}")
    return name


def prepare_folder(options: Options) -> None:
    """Make the folder; training never overwrites a checkpoint that nobody spoke of."""
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {options.out}: {error.strerror}") from error
    found = checkpoints(options.out)
    if options.restart:
        for path in found:
            path.unlink()
    elif options.resume and options.name not in found.values():
        raise ValueError(f"--resume: there is no checkpoint of {options.name} in {options.out}")
    elif found and not options.resume:
        raise ValueError(
            f"{next(iter(found))} is there: --resume goes on from it, --restart discards it,"
            " another --out leaves it alone"
        )
