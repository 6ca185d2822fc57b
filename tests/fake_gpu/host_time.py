"""What calls cost the host: microseconds of its time on the fake GPU, where kernels take none.

build/fake_gpu/python tests/fake_gpu/host_time.py
"""

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from attn_kernels import Causal, Local2d, Relative, attention


def new(*size: int, grad: bool = False) -> Tensor:
    return torch.empty(size, device="cuda", dtype=torch.bfloat16, requires_grad=grad)


def microseconds(call: Callable[[], object], calls: int = 50, rounds: int = 10) -> float:
    """The best round's mean."""
    times = []
    for _ in range(rounds + 1):  # the first compiles
        start = time.process_time()
        for _ in range(calls):
            call()
        times.append(time.process_time() - start)
    return min(times[1:]) / calls * 1e6


x, token, cache = new(1, 8, 1024, 64), new(1, 32, 1, 128), new(1, 8, 8192, 128)
image, canvas = new(1, 8, 4096, 64), Local2d((64, 64), (8, 8), (4, 4))
leaf, table = new(1, 8, 1024, 64, grad=True), new(8, 1024, 64, grad=True)
relative, length = Relative(table.detach()), itertools.count(4096)
CALLS = {
    "causal": lambda: attention(x, x, x, Causal()),
    "causal, both ways": lambda: attention(leaf, leaf, leaf, Causal()).backward(x),
    "relative": lambda: attention(x, x, x, Causal(), relative),
    "relative, both ways": lambda: attention(leaf, x, x, Causal(), Relative(table)).backward(x),
    "local_2d": lambda: attention(image, image, image, canvas),
    "decode": lambda: attention(token, cache, cache, Causal()),
    "decode, growing": lambda: attention(token, *[cache[:, :, : next(length)]] * 2, Causal()),
    "torch": lambda: sdpa(x, x, x, is_causal=True),
    "torch, both ways": lambda: sdpa(leaf, leaf, leaf, is_causal=True).backward(x),
}

if __name__ == "__main__":
    torch.backends.cuda.enable_cudnn_sdp(False)  # there is no cuDNN
    for name, call in CALLS.items():
        print(f"{name:20} {microseconds(call):7.1f} us", flush=True)
