"""What all sources share: packages that may be missing, and splits that never change."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class MissingData(RuntimeError):
    """A package or file with data is not here; the message names the command that brings it."""


class Split(NamedTuple):
    """Which items are trained on and which validate."""

    train: list[int]
    validation: list[int]


def package(module: str, install: str) -> ModuleType:
    """The imported module, or an error that names the command."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingData(f"{module} is not installed: pip install {install}") from error


def need(install_names: dict[str, str]) -> None:
    """Raise unless every module of {module: what pip calls it} is here, before work is done."""
    missing = [
        name for module, name in install_names.items() if not importlib.util.find_spec(module)
    ]
    if missing:
        raise MissingData(f"not installed: pip install {' '.join(missing)}")


def package_folder(module: str, install: str) -> Path:
    """Where a package's files lie, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingData(f"{module} is not installed: pip install {install}")
    return Path(spec.submodule_search_locations[0])


def split_by_content(contents: Iterable[bytes], share: float = 0.1) -> Split:
    """About `share` of the items validate: those whose hash is small.

    The same item falls on the same side in every order and every version of the data, and equal
    items on the same side.
    """
    split = Split([], [])
    for index, content in enumerate(contents):
        number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        (split.validation if number < share * 2**64 else split.train).append(index)
    return split
