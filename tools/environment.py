"""The Python environment of the Makefile: which one it is, and what a target needs in it.

    environment.py python                     the path of the Python that runs everything
    environment.py need torch build           requirements/torch.txt and build.txt are met there
    environment.py need test --also docs      docs.txt too, but only where `make` may install

An active Python that has torch is used, and otherwise .venv of this folder. `make` installs in
.venv alone; of any other environment it says what is missing. This file needs nothing but pip.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / ".venv"
MIN_PYTHON, MIN_TORCH = (3, 10), (2, 11)
# Chosen by whoever installed torch: any build that will do stays.
KEPT = ("torch", "triton")


def installed(name: str) -> str | None:
    """The version of a package here, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def has_torch() -> bool:
    """Whether torch is installed here, new enough for this library."""
    version = installed("torch")
    return version is not None and tuple(map(int, version.split(".")[:2])) >= MIN_TORCH


def is_own() -> bool:
    """Whether this Python is the one of .venv."""
    return Path(sys.prefix).resolve() == OWN.resolve()


def lines(group: str) -> list[str]:
    """What requirements/<group>.txt asks for, with the files that it includes."""
    found = []
    for line in (ROOT / "requirements" / f"{group}.txt").read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            found += lines(Path(line.split()[1]).stem)
        elif line:
            found.append(line)
    return found


def is_met(line: str, exactly: bool) -> bool:
    """Whether a requirement is met here. Pins (==) are taken exactly in .venv alone: elsewhere any
    version will do."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement
    wanted = Requirement(line)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return True
    if wanted.name == "torch":
        return has_torch()
    version = installed(wanted.name)
    if version is None or wanted.name in KEPT:
        return version is not None
    pinned = any(each.operator == "==" for each in wanted.specifier)
    return (pinned and not exactly) or wanted.specifier.contains(version, prereleases=True)


def missing(groups: list[str]) -> list[str]:
    """The requirements of these groups that are not met here, once each."""
    found = [line for group in groups for line in lines(group)]
    return [line for line in dict.fromkeys(found) if not is_met(line, exactly=is_own())]


def install(group: str) -> None:
    """Install what a group lacks in .venv, before anybody waits for it without knowing."""
    if wanted := missing([group]):
        print(f"installing in {OWN.name}: {', '.join(wanted)}", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        if subprocess.run([*pip, *wanted]).returncode:
            sys.exit("pip failed: see above")


def meet(groups: list[str], also: list[str]) -> None:
    """Install what is missing in .venv; elsewhere stop, with the command that would."""
    if is_own():
        for group in groups + also:  # torch first: it brings packages that others then find
            install(group)
    elif wanted := missing(groups):
        names = shlex.join(wanted)
        sys.exit(
            f"{sys.executable} has torch, so `make` uses it as it is, but this needs more.\n"
            f"Run: {sys.executable} -m pip install {names}"
        )


def python() -> Path:
    """The Python that runs everything."""
    return Path(sys.executable) if is_own() or has_torch() else OWN / "bin" / "python"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("python", help="print which Python runs everything")
    need = commands.add_parser("need", help="have these groups of requirements/ there")
    need.add_argument("groups", nargs="+")
    need.add_argument("--also", nargs="+", default=[], help="groups that .venv gets as well")
    chosen = parser.parse_args()
    if chosen.command == "python":
        print(python())
        return
    if sys.version_info < MIN_PYTHON:
        sys.exit(
            f"needs Python >= 3.10, got {sys.version.split()[0]}: make PYTHON=/path/to/python3"
        )
    if is_own() or has_torch():
        meet(chosen.groups, chosen.also)
        return
    if not python().exists():
        print(f"making {OWN.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", OWN], check=True)
    sys.exit(subprocess.run([python(), *sys.argv]).returncode)


if __name__ == "__main__":
    main()
