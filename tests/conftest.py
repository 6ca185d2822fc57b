"""Fixtures of all tests: poisoned memory, and the backends under test.

ATTN_KERNELS_TEST_BACKENDS names them, separated by commas. Unset, they are "cpu", and "triton" where
it can run. "cpu": the C++ kernels once per instruction set of this machine, and an extension that is
not built fails the tests; "cpu-avx2" is that instruction set alone. "triton": new tensors are on the
GPU. "reference" tests a pure-Python install: the same operations on the dense reference, without
what only fused kernels have.

--quick runs one case of each test for each backend and instruction set, and leaves out what takes
many seconds: `make quick`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# `pytest` alone finds the benchmarks, and the package where it is not installed.
sys.path.append(str(Path(__file__).parents[1]))
os.environ["ATTN_KERNELS_POISON"] = "1"  # read when attn_kernels loads: C++ scratch memory is NaN
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # poisoned_memory wants it on GPUs

import pytest
import torch

pytest.register_assert_rewrite("common", "operation_checks", "model_checks")

import progress
from common import HALF_TYPES, Target
from quick import one_of_each
from torch.utils._pytree import tree_map_only

from attn_kernels.core.backends import MAX_TRITON_HEAD_DIM, cpu_library, status

# Inputs are small, and results do not depend on the number of threads (test_bitwise_repeatable).
torch.set_num_threads(1)
# float32 is float32 on GPUs too: matrix products are by default, convolutions are not.
torch.backends.cudnn.allow_tf32 = False


def targets() -> list[Target]:
    """Every backend that ATTN_KERNELS_TEST_BACKENDS asks for, one for each instruction set."""
    default = "cpu,triton" if status("triton").available else "cpu"
    found = []
    for name in os.environ.get("ATTN_KERNELS_TEST_BACKENDS", default).split(","):
        name, _, isa = name.partition("-")
        if name == "cpu" and not isa and not cpu_library.error():
            found += [Target(name, isa=each) for each in cpu_library.isas]
        else:
            found.append(Target(name, isa=isa))
    return found


TARGETS = targets()
FUSED = list(dict.fromkeys(Target(each.name) for each in TARGETS if each.name != "reference"))
NO_FUSED = pytest.param(None, marks=pytest.mark.skip(reason="the reference has no operators"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="one case of each test and backend")


@pytest.hookimpl(trylast=True)  # behind the terminal's own
def pytest_configure(config: pytest.Config) -> None:
    progress.register(config)


def pytest_report_header() -> str:
    return "backends under test: " + ", ".join(map(str, TARGETS))


@pytest.fixture(params=TARGETS, ids=str)
def backend(request: pytest.FixtureRequest) -> Target:
    """Every backend under test in turn."""
    return request.param


@pytest.fixture(params=FUSED or [NO_FUSED], ids=str)
def fused(request: pytest.FixtureRequest) -> Target:
    """Those that are not the reference, in the CPU's best instruction set: for tests of how the
    operators behave in torch."""
    return request.param


def target_of(item: pytest.Item) -> Target | None:
    """The backend that a test is for."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    found = params.get("backend") or params.get("fused")
    return found if isinstance(found, Target) else None


@pytest.fixture(autouse=True)
def active(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process computes with the test's backend, or the test fails with the reason; on a GPU all
    that is made from here on is made there, and the tensors of the test's file are moved."""
    target = target_of(request.node)
    if target is None:
        yield
        return
    if error := status(target.name).reason:
        pytest.fail(error)
    if target.name == "cpu":
        cpu_library.use_isa(target.isa)
    if target.device != "cpu":
        for name, x in list(vars(request.module).items()):
            if isinstance(x, torch.Tensor | dict | list | tuple):
                moved = tree_map_only(torch.Tensor, lambda x: x.to(target.device), x)
                monkeypatch.setattr(request.module, name, moved)
        torch.set_default_device(target.device)
    yield
    if target.device != "cpu":
        torch.set_default_device(None)
    if target.name == "cpu":
        cpu_library.use_isa("")


# Always in float64.
NOT_IN_HALF_TYPES = ("test_float64", "test_gradcheck")
# With three queries these have too few half numbers for bounds that compare errors with eager's.
THREE_QUERIES = ((3,), (70,))
FEW_NUMBERS = ("test_value_dim_differs", "test_query_offset")


# What no GPU is asked, beside every test with "float64" in its name.
NOT_ON_GPUS = {
    "test_gradcheck": "differences of float64 numbers",
    "test_matches_torch_sdpa": "compares in float64",
    "test_block_is_its_formula": "compares in float64",
    "test_same_results": "compares with torch's layer in float64",
    "test_peak_memory_is_linear": "measures the memory of the process",
    "test_thread_count_is_obeyed": "is of the CPU's threads",
    "test_after_fork": "CUDA itself cannot be used after a fork",
    "test_a_damaged_table_is_refused": "is of a table that users can reach",
    "test_unknown_instruction_set": "is of the CPU's instruction sets",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what a backend cannot be asked, and what an instruction set has from another one,
    under which it is tested."""

    def repeats(item: pytest.Item) -> bool:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if getattr(params.get("backend"), "isa", "") not in HALF_TYPES:
            return False
        if params.get("dtype") in (torch.float32, torch.float64):
            return True
        few = item.originalname in FEW_NUMBERS and params.get("shape") == THREE_QUERIES
        return few or item.originalname in NOT_IN_HALF_TYPES

    def not_on_gpus(item: pytest.Item) -> bool:
        target = target_of(item)
        if target is None or target.device == "cpu":
            return False
        too_wide = item.callspec.params.get("dim", 0) > MAX_TRITON_HEAD_DIM
        return too_wide or "float64" in item.name or item.originalname in NOT_ON_GPUS

    left_out = [item for item in items if repeats(item) or not_on_gpus(item)]
    if config.getoption("--quick"):
        gone = set(left_out)
        kept = one_of_each((item for item in items if item not in gone), target_of)
        left_out = [item for item in items if item not in kept]
    gone = set(left_out)
    # The interpreter's minutes come first, so that several processes end together.
    items[:] = sorted(
        (item for item in items if item not in gone),
        key=lambda item: not item.name.startswith("test_interpreted"),
    )
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin hold NaN, so that whoever reads what nobody wrote is found out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def thread_count() -> Iterator[None]:
    """Restores torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
