"""Where the compiled library is missing users are told the one command; make asks only what it must."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from attn_kernels.core import backends

ROOT = Path(__file__).parents[1]


def test_a_hidden_installation_is_named(monkeypatch, tmp_path):
    """Python in a clone imports the clone's folder, which has no library, and not the installed."""
    monkeypatch.setattr(sys, "path", [])
    assert backends.not_built().endswith(f"run `make build` in {ROOT}")
    installed = tmp_path / "attn_kernels"
    installed.mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "is not built" in backends.not_built()
    (installed / "_C.abi3.so").touch()
    assert (
        f"hides the installed {installed}: run `make build` in {ROOT}, or start Python elsewhere"
        in backends.not_built()
    )


# --- Programs in a clone without kernels ---


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which nothing is built."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("attn_kernels", "benchmarks", "examples"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "results")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "setup.py", folder)
    return folder


def run_in(clone: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True)


@pytest.mark.parametrize("program", ["examples.vit --steps 1 --threads 1", "benchmarks"])
def test_programs_stop_without_kernels(clone, program):
    """They would measure, or train for minutes on, what nobody asked for."""
    if program.startswith("examples"):
        pytest.importorskip("safetensors", reason="pip install -r requirements/examples.txt")
    found = run_in(clone, *program.split())
    assert found.returncode != 0
    assert f"run `make build` in {clone}" in found.stderr
    assert "--backend reference" in found.stderr
    assert "Traceback" not in found.stderr


def test_an_example_goes_on_with_the_reference_if_asked(clone):
    pytest.importorskip("safetensors", reason="pip install -r requirements/examples.txt")
    pytest.importorskip("sklearn", reason="pip install scikit-learn")
    found = run_in(
        clone, "examples.vit", "--backend", "reference", "--steps", "1", "--threads", "1"
    )
    assert found.returncode == 0, found.stderr
    figures = json.loads((clone / "runs" / "vit" / "figures.json").read_text())
    assert figures["backend"] == "reference"


# --- What make asks of an environment ---


@pytest.fixture
def environment(monkeypatch, tmp_path) -> SimpleNamespace:
    """tools/environment.py where README's packages are installed and pip only writes down."""
    found = SimpleNamespace(
        functions=runpy.run_path(str(ROOT / "tools" / "environment.py")),
        versions={"torch": "2.13.0+cpu", "setuptools": "84.2.1", "ninja": "1.13.2"},
        commands=[],
    )
    found.versions["numpy"] = "2.4.6"
    settings = found.functions["meet"].__globals__

    def run(command: list[str]) -> SimpleNamespace:
        found.commands.append(command[command.index("install") + 1 :])
        return SimpleNamespace(returncode=0)

    monkeypatch.setitem(settings, "installed", found.versions.get)
    monkeypatch.setitem(settings, "subprocess", SimpleNamespace(run=run))
    found.own = lambda own: monkeypatch.setitem(settings, "is_own", lambda: own)
    return found


@pytest.mark.parametrize("own", [True, False])
def test_readme_environment_can_build(environment, own):
    """torch, numpy, setuptools and ninja are enough, in .venv and elsewhere."""
    environment.own(own)
    environment.functions["meet"](["torch", "build"], [])
    assert environment.commands == []


def test_own_environment_gets_what_is_missing(environment):
    """And no torch or triton in the place of those that it has."""
    environment.own(True)
    environment.versions["triton"] = "3.7.0"
    environment.functions["meet"](["torch", "build", "test"], ["docs"])
    tests, docs = environment.commands
    names = [line.partition("=")[0].partition("<")[0] for line in tests]
    assert {"pytest", "hypothesis", "pybind11", "numpy"} <= set(names)
    assert not {"torch", "triton", "ruff", "setuptools"} & set(names)
    assert any(line.startswith("sphinx") for line in docs)


def test_another_environment_is_left_alone(environment):
    """One command names what is missing; any version of a tool will do, but not of numpy."""
    environment.own(False)
    environment.versions["pytest"] = "8.0"
    with pytest.raises(SystemExit) as stopped:
        environment.functions["meet"](["torch", "build", "test"], ["docs"])
    assert environment.commands == []
    told = str(stopped.value)
    assert "-m pip install pybind11==" in told
    assert "'numpy<2.4'" in told
    assert "pytest==" not in told
    assert "sphinx" not in told


def test_an_old_torch_is_not_enough(environment):
    environment.versions["torch"] = "2.10.0"
    environment.own(True)
    environment.functions["meet"](["torch"], [])
    assert environment.commands == [["torch==2.13.0"]]


def test_every_group_of_requirements_is_read():
    """dev.txt names all the others."""
    lines = runpy.run_path(str(ROOT / "tools" / "environment.py"))["lines"]
    everything = set(lines("dev"))
    for path in (ROOT / "requirements").glob("*.txt"):
        assert set(lines(path.stem)) <= everything, path.name
