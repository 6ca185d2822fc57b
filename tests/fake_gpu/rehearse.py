"""The whole of benchmarks.gpu on the fake GPU: kernels compile and are launched, values are ignored.

build/fake_gpu/python tests/fake_gpu/rehearse.py --check        and all other options of benchmarks.gpu
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import gpu_values

# Not only where this file is run: its worker processes import it as well (multiprocessing's spawn).
gpu_values.within = lambda found, limits: True

from benchmarks import gpu

if __name__ == "__main__":
    sys.exit(gpu.main())
