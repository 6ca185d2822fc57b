"""Where the time goes: every stage of the float32 kernels alone, for one tile of queries and one
step of keys in cache, and the whole that they would make.

python -m benchmarks.stages [--dim 64] [--length 2048] [--seconds 0.2]

The whole is measured beside the sum of its stages: what is missing is what stages cost one another
(cache misses, page faults, the call).
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from attn_kernels import causal_attention

from .machine import kernels_error, library, measure

SOURCE = Path(__file__).with_name("stages.cpp")
KERNELS = Path(__file__).parents[1] / "csrc"
# In the order of stages.cpp: name, products of queries x keys x dim in it, once per tile or step.
STAGES = (
    ("queries loaded, scaled, transposed", 0, "tile"),
    ("logits: keys times queries", 1, "step"),
    ("mask of a step at the diagonal", 0, "mask"),
    ("softmax: maximum, exp2, sums", 0, "step"),
    ("outputs: values times weights", 1, "step"),
    ("outputs divided, transposed, stored", 0, "tile"),
    ("backward: weights and their gradients", 0, "backward"),
    ("backward: gradient of keys (or values)", 1, "backward"),
    ("relative: new rows of the band", 1, "relative"),
    ("relative: shear", 0, "relative"),
)


@dataclass(frozen=True)
class Stages:
    """Nanoseconds of each stage, and how many queries a tile and keys a step has."""

    times: list[float]
    queries: int
    keys: int


def measure_stages(dim: int, seconds: float) -> Stages:
    """Build stages.cpp for this machine, where it is not built yet, and run it."""
    built = library(SOURCE, KERNELS)
    if built is None:
        raise SystemExit("stages.cpp does not compile here: it needs a C++ compiler")
    times = (ctypes.c_double * len(STAGES))()
    queries, keys = ctypes.c_int64(), ctypes.c_int64()
    built.attn_stages(
        ctypes.c_int64(dim),
        ctypes.c_double(seconds),
        times,
        ctypes.byref(queries),
        ctypes.byref(keys),
    )
    return Stages(list(times), queries.value, keys.value)


def causal_forward_ns(stages: Stages, length: int) -> dict[str, float]:
    """What each stage of a causal forward takes in all, for one head of `length`."""
    tiles = length / stages.queries
    steps = length * (length + stages.queries) / 2 / stages.queries / stages.keys
    counts = {"tile": tiles, "step": steps, "mask": tiles * stages.queries / stages.keys}
    return {
        name: counts[per] * ns
        for (name, _, per), ns in zip(STAGES, stages.times, strict=True)
        if per in counts
    }


def measured_ns(length: int, dim: int, heads: int, seconds: float) -> float:
    """The shortest causal_attention() of `heads` heads on one thread, for one of them."""
    q, k, v = (torch.randn(1, heads, length, dim) for _ in range(3))
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        causal_attention(q, k, v)
        best = min(best, time.perf_counter() - start)
    return best * 1e9 / heads


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each stage")
    options = parser.parse_args()
    if error := kernels_error():
        sys.exit(error)
    torch.set_num_threads(1)
    peaks = measure(1)
    peak = peaks.fma_flops if peaks else float("nan")
    stages = measure_stages(options.dim, options.seconds)
    product = 2 * stages.queries * stages.keys * options.dim
    print(f"a tile of {stages.queries} queries, a step of {stages.keys} keys, dim {options.dim}")
    for (name, products, _), ns in zip(STAGES, stages.times, strict=True):
        rate = f"{products * product / ns:7.1f} GFLOP/s" if products else ""
        share = f"{products * product / ns * 1e9 / peak:5.0%} of the FMA peak" if products else ""
        print(f"{name:40s} {ns / 1e3:8.2f} us  {rate} {share}")
    parts = causal_forward_ns(stages, options.length)
    whole = measured_ns(options.length, options.dim, 8, 5 * options.seconds)
    print(f"\ncausal forward, one head of {options.length}: {whole / 1e6:.3f} ms")
    for name, ns in parts.items():
        print(f"{name:40s} {ns / 1e6:8.3f} ms  {ns / whole:5.1%}")
    print(f"{'what they cost one another':40s} {(whole - sum(parts.values())) / 1e6:8.3f} ms")


if __name__ == "__main__":
    main()
