"""Fixtures of all tests: poisoned memory, and the backends under test.

ATTN_KERNELS_TEST_BACKENDS names them, separated by commas. Unset, it is "cpu": the C++ kernels once
per instruction set of this machine, and an extension that is not built fails the tests. "cpu-avx2"
is that instruction set alone. "reference" tests a pure-Python install: the same operations on the
dense reference, without what only fused kernels have.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# `pytest` alone finds the benchmarks, and the package where it is not installed.
sys.path.append(str(Path(__file__).parents[1]))
os.environ["ATTN_KERNELS_POISON"] = "1"  # read when attn_kernels loads: C++ scratch memory is NaN

import pytest
import torch

pytest.register_assert_rewrite("common", "operation_checks", "model_checks")

from common import HALF_TYPES, Target

from attn_kernels.core.backends import cpu_library

# Inputs are small, and results do not depend on the number of threads (test_bitwise_repeatable).
torch.set_num_threads(1)

BACKENDS = os.environ.get("ATTN_KERNELS_TEST_BACKENDS", "cpu").split(",")


def targets() -> list[Target]:
    """Every backend that ATTN_KERNELS_TEST_BACKENDS asks for, one for each instruction set."""
    found = []
    for name in BACKENDS:
        name, _, isa = name.partition("-")
        if name == "cpu" and not isa and not cpu_library.error():
            found += [Target(name, isa=each) for each in cpu_library.isas]
        else:
            found.append(Target(name, isa=isa))
    return found


def activate(target: Target) -> None:
    """Make the process compute with this target, or fail the test with the reason."""
    if target.name == "cpu":
        if error := cpu_library.error():
            pytest.fail(error)
        cpu_library.use_isa(target.isa)


# Always in float64.
NOT_IN_HALF_TYPES = ("test_float64", "test_gradcheck")
# With three queries these have too few half numbers for bounds that compare errors with eager's.
THREE_QUERIES = ((3,), (70,))
FEW_NUMBERS = ("test_value_dim_differs", "test_query_offset")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what an instruction set has from another one, under which it is tested."""

    def repeats(item: pytest.Item) -> bool:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if getattr(params.get("backend"), "isa", "") not in HALF_TYPES:
            return False
        if params.get("dtype") in (torch.float32, torch.float64):
            return True
        few = item.originalname in FEW_NUMBERS and params.get("shape") == THREE_QUERIES
        return few or item.originalname in NOT_IN_HALF_TYPES

    left_out = [item for item in items if repeats(item)]
    # The interpreter's minutes come first, so that several processes end together.
    items[:] = sorted(
        (item for item in items if not repeats(item)),
        key=lambda item: not item.name.startswith("test_interpreted"),
    )
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(params=targets(), ids=str)
def backend(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend under test in turn."""
    activate(request.param)
    yield request.param
    if request.param.name == "cpu":
        cpu_library.use_isa("")


@pytest.fixture
def fused() -> Target:
    """The first fused backend, for tests of how the operators behave in torch."""
    target = targets()[0]
    if target.name == "reference":
        pytest.skip("the reference has no operators (ATTN_KERNELS_TEST_BACKENDS)")
    activate(Target(target.name, target.device))
    return target


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
