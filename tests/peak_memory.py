"""Print the peak memory of an operation at two lengths, as JSON. Run by test_peak_memory_is_linear.

python tests/peak_memory.py test_causal TestCausal cpu
"""

from __future__ import annotations

import gc
import importlib
import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch
from common import Variant, make_inputs, run

SPACES = {1: {256: (256,), 4096: (4096,), 8192: (8192,)}}
SPACES[2] = {256: (16, 16), 4096: (64, 64), 8192: (64, 128)}


def peak() -> int:
    """Bytes of the largest resident set so far; on Linux of this program, not of who started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(variants: list[Variant], dimensions: int, backend: str) -> dict[int, int]:
    """How far each length, in ascending order, lifts the peak over that of the first.

    A relative table gets as many rows as there are keys, so that Lq x R is as large as Lq x Lk.
    """
    peaks = {}
    for length, space in SPACES[dimensions].items():
        for variant in variants:
            if variant.table is not None:
                variant = replace(variant, table=replace(variant.table, rows=length + 1))
            inputs = make_inputs(variant, space, batch=1, heads=1, dim=16)
            run(variant, inputs, backend=backend, return_lse=True)
            del inputs
            gc.collect()
        peaks[length] = peak()
    start = peaks.pop(256)
    return {length: value - start for length, value in peaks.items()}


if __name__ == "__main__":
    module, class_name, backend_name = sys.argv[1:]
    tests = getattr(importlib.import_module(module), class_name)
    torch.set_num_threads(1)
    print(json.dumps(measure(tests.few, tests.dimensions, backend_name)))
