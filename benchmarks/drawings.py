"""The pictures of README and docs/: what each query sees, by attn_kernels.plot."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, Picture, Relative, plot

SIZE = 16
CANVAS = {"grid": (12, 16), "block": (4, 4), "halo": (2, 2)}


def strided(q: Tensor, k: Tensor) -> Tensor:
    """Sparse Transformer's strided pattern: the last few keys, and every fourth one."""
    return (k <= q) & ((q - k < 4) | (k % 4 == 3))


def drawings() -> dict[str, Picture]:
    """Every picture by the name of its file."""
    table, clipped = torch.zeros(1, SIZE, 1), torch.zeros(1, 11, 1)
    return {
        "full.svg": plot(Full()),
        "causal.svg": plot(Causal()),
        "causal-window.svg": plot(Causal(5)),
        "local_1d.svg": plot(Local1d(4, 4)),
        "local_1d-ahead.svg": plot(Local1d(4, 2, 2, causal=False)),
        "local_2d.svg": plot(Local2d(**CANVAS)),
        "local_2d-causal.svg": plot(Local2d(**CANVAS, causal=True)),
        "pattern.svg": plot(Pattern.from_function(strided, SIZE, SIZE)),
        "relative.svg": plot(Causal(), score=Relative(table)),
        "relative-clipped.svg": plot(Full(), score=Relative(clipped)),
    }
