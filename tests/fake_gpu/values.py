"""Right values on the fake GPU: torch computes on the CPU, our kernels in Triton's interpreter.

build/fake_gpu/python -m pytest -p tests.fake_gpu.values ...      or imported before triton
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "triton_kernels"))

import interpreter

interpreter.install()

from . import torch_on_cpu  # noqa: F401
