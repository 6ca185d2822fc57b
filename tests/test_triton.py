"""The Triton backend without a GPU: its kernels interpreted, and compiled for GPUs that are not here.

Interpreting and compiling exclude each other in one process, so the former has a process of its own.
ATTN_KERNELS_TEST_COMPILED=1 compiles every kernel for every target, which takes about half an hour.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
COMPILE_ALL = os.environ.get("ATTN_KERNELS_TEST_COMPILED") == "1"
SMALL = [
    ("causal", "sm_90", "bf16", 64),
    ("relative", "sm_90", "bf16", 64),
    ("local-2d", "sm_80", "bf16", 64),
    ("decode", "sm_90", "bf16", 128),
    ("pattern", "sm_90", "bf16", 64),
]


@pytest.mark.parametrize("name", ["interpreted", "launchers", "benchmarked"])
def test_interpreted(name: str, request: pytest.FixtureRequest) -> None:
    """Everything in tests/triton_kernels: the kernels, what lies around them, benchmarks.gpu."""
    path = Path(__file__).parent / "triton_kernels" / f"{name}.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    command += ["--quick"] if request.config.getoption("--quick") else []
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("case", "target", "dtype", "dim"), SMALL)
def test_defaults_compile(case: str, target: str, dtype: str, dim: int) -> None:
    """Default configurations neither spill registers nor exceed shared memory."""
    check_compiled([case], [target], [dtype], [dim])


@pytest.mark.skipif(not COMPILE_ALL, reason="ATTN_KERNELS_TEST_COMPILED=1 compiles everything")
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_everything_compiles(target: str) -> None:
    """All cases of benchmarks/compiled.py."""
    from benchmarks.compiled import CASES

    check_compiled([case.name for case in CASES], [target], ["bf16", "f32"], [64, 128])


def check_compiled(
    names: list[str], targets: list[str], dtypes: list[str], dims: list[int]
) -> None:
    root = Path(__file__).parents[1]
    command = [
        sys.executable, "-m", "benchmarks.compiled", "--only", ",".join(names),
        "--target", ",".join(targets), "--dtype", ",".join(dtypes),
        "--dim", ",".join(map(str, dims)),
    ]  # fmt: skip
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
