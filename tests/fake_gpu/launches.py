"""Values are ignored: what fails here fails on the host or when it launches a kernel.

build/fake_gpu/python -m pytest -p tests.fake_gpu.launches tests/test_gpu.py
"""

import torch
from torch import Tensor


def equal(x: Tensor, y: Tensor) -> bool:
    """Stands in for torch.equal: as far as can be known of tensors that nobody has computed."""
    return (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)


torch.equal = equal
