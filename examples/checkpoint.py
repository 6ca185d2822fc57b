"""Checkpoints: one safetensors file with everything that a training needs to go on exactly.

Tensors are named `model.*`, `optimizer.*` and `rng.*`; step, configuration and history are JSON in
the file's header. The file is written beside the old one and then put in its place, so that an
interruption leaves the old one or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .data.source import package

HEADER = "training"


class Checkpoint(NamedTuple):
    """A training between two steps."""

    tensors: dict[str, Tensor]
    step: int
    seconds: float  # of all processors, so far
    config: dict[str, Any]
    history: dict[str, list]


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as JSON gives it back (tuples become lists)."""
    return json.loads(json.dumps(config, default=str))


def write_atomically(path: Path, write: Any) -> None:
    """Call write(part) on a file beside `path`, bring it to the disk, and rename it."""
    part = path.with_name(f".{path.name}.part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """torch's generators."""
    states = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(tensors: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of random_states()."""
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)


def optimizer_tensors(optimizers: dict[str, Optimizer]) -> dict[str, Tensor]:
    """The moments: optimizer.NAME.PARAMETER.KEY. Learning rates follow from the step."""
    return {
        f"optimizer.{name}.{index}.{key}": value
        for name, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizers(tensors: dict[str, Tensor], optimizers: dict[str, Optimizer]) -> None:
    """The inverse of optimizer_tensors()."""
    for name, optimizer in optimizers.items():
        found = optimizer.state_dict()
        prefix = f"optimizer.{name}."
        for full_name, value in tensors.items():
            if full_name.startswith(prefix):
                index, key = full_name.removeprefix(prefix).split(".")
                found["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(found)


def save(
    path: Path,
    model: nn.Module,
    optimizers: dict[str, Optimizer],
    step: int,
    seconds: float,
    config: dict[str, Any],
    history: dict[str, list],
) -> None:
    """Write everything; the training itself goes on undisturbed."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= optimizer_tensors(optimizers) | random_states(next(model.parameters()).device)
    # Tied weights are one storage under two names, which safetensors refuses.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    scalars = {"step": step, "seconds": seconds, "config": plain(config), "history": history}
    header = {HEADER: json.dumps(scalars)}
    save_file = package("safetensors.torch", "safetensors").save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: save_file(tensors, part, header))


def checkpoints(folder: Path) -> dict[Path, str]:
    """The checkpoints of these examples in a folder, and the example that each is of; other
    safetensors files are none."""
    library = package("safetensors", "safetensors")
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(library.SafetensorError), library.safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            if header is not None:
                found[path] = json.loads(header)["config"].get("example", "")
    return found


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, or raise with the reason."""
    library = package("safetensors", "safetensors")
    try:
        with library.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (library.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of these examples: {error}") from error
    return Checkpoint(tensors, **header)


def check_config(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise unless the checkpoint was written with this configuration."""
    expected = plain(expected)
    differing = [
        f"{name} {found.get(name)!r} there, {expected.get(name)!r} here"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise ValueError(f"{path} is a checkpoint of another configuration: {'; '.join(differing)}")


def restore(checkpoint: Checkpoint, model: nn.Module, optimizers: dict[str, Optimizer]) -> None:
    """Put the checkpoint's weights, moments and random states in place."""
    tensors = checkpoint.tensors
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(weights)
    restore_optimizers(tensors, optimizers)
    restore_random_states(tensors, next(model.parameters()).device)
