"""Types: the package says it has some, and what typing_use.py claims of them is so."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import attn_kernels

ROOT = Path(__file__).parents[1]
CHECKERS = {
    "mypy": ["mypy"],
    "basedpyright": ["basedpyright", "--pythonpath", sys.executable],
}


@pytest.mark.parametrize("name", CHECKERS)
def test_checker_passes(name: str) -> None:
    """Both read tests/typing_use.py, and mypy the package too, as pyproject.toml says."""
    if importlib.util.find_spec(name) is None:
        pytest.skip("pip install -r requirements/tools.txt")
    command = [sys.executable, "-m", *CHECKERS[name]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_is_checked_runs() -> None:
    """A call that type checkers accept is one that works."""
    used = runpy.run_path(str(ROOT / "tests" / "typing_use.py"))
    used["results"](lse=True)
    used["options"]()
    used["others"]()


def test_package_is_typed() -> None:
    """Type checkers look for this file in an installed package."""
    assert (Path(attn_kernels.__file__).parent / "py.typed").exists()


def test_every_public_function_is_used() -> None:
    """Whoever adds a public name adds a line to typing_use.py."""
    text = (ROOT / "tests" / "typing_use.py").read_text()
    body = text[text.index("def results") :]
    used = set(re.findall(r"\w+", body))
    assert not set(attn_kernels.__all__) - used
