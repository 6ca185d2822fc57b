"""Right values on the fake GPU: torch computes on the CPU, our kernels in Triton's interpreter.

build/fake_gpu/python -m pytest -p tests.fake_gpu.values ...      or imported before triton
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "triton_kernels")]

import interpreter

interpreter.install()

import torch_on_cpu  # noqa: F401
