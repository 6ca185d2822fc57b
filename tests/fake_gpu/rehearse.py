"""The whole of benchmarks.gpu on the fake GPU: kernels compile and are launched, values are ignored.

build/fake_gpu/python tests/fake_gpu/rehearse.py --minutes 15        and all other options of benchmarks.gpu
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from benchmarks import gpu_values
from tests.fake_gpu.launches import equal

# Not only where this file is run: its worker processes import it as well (multiprocessing's spawn).
gpu_values.within = lambda found, limits: True
torch.equal = equal
torch.backends.cuda.enable_cudnn_sdp(False)  # there is no cuDNN

from benchmarks import gpu

if __name__ == "__main__":
    sys.exit(gpu.main())
