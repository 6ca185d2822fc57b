"""What the Makefile asks about a Python environment. Needs nothing but the standard library."""

import importlib.util
import sys
from importlib import metadata

MIN_PYTHON, MIN_TORCH = (3, 10), (2, 11)
TOOLS = {
    "tools": (
        "pytest",
        "xdist",
        "hypothesis",
        "numpy",
        "pybind11",
        "setuptools",
        "ruff",
        "mypy",
        "basedpyright",
        "matplotlib",
    ),
    "docs": ("sphinx", "myst_parser"),
}


def has_torch() -> bool:
    """Whether torch is installed here, new enough for this library."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= MIN_TORCH


def check_python() -> None:
    """Stop unless this Python is new enough."""
    if sys.version_info < MIN_PYTHON:
        sys.exit(
            f"needs Python >= 3.10, got {sys.version.split()[0]}: make PYTHON=/path/to/python3"
        )


def check_tools(kind: str) -> None:
    """Stop if a tool of requirements/<kind>.txt is missing: the environment is not ours to fill."""
    missing = [name for name in TOOLS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"{sys.executable} has torch, so make uses it as it is, but it has no"
            f" {', '.join(missing)}.\n"
            f"Run: {sys.executable} -m pip install -r requirements/{kind}.txt"
        )


if __name__ == "__main__":
    command = sys.argv[1]
    if command == "has-torch":
        print("yes" if has_torch() else "no")
    elif command == "check-python":
        check_python()
    elif command == "check-tools":
        check_tools(sys.argv[2])
