"""The same cases under pytest-benchmark: `pytest benchmarks`, with its options and its history.

Ours and every peer is one benchmark, on the shapes that `python -m benchmarks --quick` takes, in
float32. Values are compared first. ATTN_KERNELS_BENCH_DTYPE names another dtype.
"""

from __future__ import annotations

import os

import pytest
import torch

from attn_kernels import use_backend

from .case import Shape
from .cases import CASES
from .common import OURS, check_against_float64, check_values, providers
from .machine import kernels_error
from .options import CHOICES, DTYPES

pytest.importorskip("pytest_benchmark", reason="pip install -r requirements/bench.txt")
DTYPE = DTYPES[os.environ.get("ATTN_KERNELS_BENCH_DTYPE", "float32")]
if error := kernels_error():
    pytest.exit(error, returncode=1)
WORK = [
    (case.name, shape, direction, name)
    for case in CASES.values()
    for shape in case.quick
    for direction in CHOICES["both"]
    if direction in case.directions
    for name in providers(case)
]


@pytest.mark.parametrize(
    ("case", "shape", "direction", "name"),
    WORK,
    ids=[f"{case}-{shape.label}-{direction}-{name}" for case, shape, direction, name in WORK],
)
def test_speed(benchmark, case: str, shape: Shape, direction: str, name: str) -> None:
    """Seconds per call of one provider."""
    found, backward = CASES[case], direction == "backward"
    trusted = next(iter(found.peers))
    compared = {n: peer for n, peer in providers(found).items() if n in (OURS, trusted, name)}
    with use_backend("cpu"):
        check_against_float64(found, DTYPE, backward)
        entries, steps = check_values(found, shape, DTYPE, backward, compared, lambda _: None)
        if name not in steps:
            pytest.skip(entries[name].skipped)
        benchmark.group = f"{case} {shape.label} {direction} {torch.get_num_threads()} threads"
        benchmark.extra_info["source"] = shape.source
        benchmark.extra_info["flops"] = shape.flops(backward)
        benchmark(steps[name])
