"""README's table of what each backend supports, found out by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attn_kernels import (
    Bias,
    Causal,
    Full,
    Local1d,
    Local2d,
    Pattern,
    Relative,
    Window,
    attention,
    causal_attention,
    local_attention_2d,
    relative_attention,
)
from attn_kernels.core.backends import MAX_HEAD_DIM, MAX_TRITON_HEAD_DIM
from attn_kernels.core.checks import DTYPES, name_of

TRIED = ("cpu", "reference")
Call = Callable[..., Tensor]


def tensors(*sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Leaves that want gradients."""
    return [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of the sum of squares: not constant, so that it can be differentiated again."""
    return list(torch.autograd.grad(out.square().sum(), inputs, create_graph=True))


def twice(backend: str) -> None:
    """A second derivative."""
    inputs = tensors(*[(1, 2, 8, 4)] * 3)
    first = gradients(causal_attention(*inputs, backend=backend), inputs)
    gradients(first[0], inputs)


def once(call: Call, *sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Call:
    """Try a call and the gradient of every input."""

    def attempt(backend: str) -> None:
        inputs = tensors(*sizes, dtype=dtype)
        gradients(call(*inputs, backend=backend), inputs)

    return attempt


SMALL = [(2, 2, 8, 4)] * 3
CHECKERS = Pattern.from_function(lambda q, k: (q + k) % 2 == 0, 8, 8)
TABLE, CENTRED = (2, 5, 4), (1, 5, 4)


def lse_of(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """The log of the denominators, with the output so that v has a gradient."""
    out, lse = causal_attention(q, k, v, return_lse=True, backend=backend)
    return torch.cat([out, lse.unsqueeze(-1)], -1)


FEATURES: dict[str, Call] = {
    "`Full`, `Causal`, with a window": lambda backend: [
        once(lambda q, k, v, backend, g=g: attention(q, k, v, g, backend=backend), *SMALL)(backend)
        for g in (Full(), Causal(), Causal(3))
    ],
    "`Window`: keys before and behind": once(
        lambda q, k, v, a, backend: attention(
            q, k, v, Window(3, 2), Relative(a), backend=backend
        ),
        *SMALL, CENTRED,
    ),
    "`Local1d`, causal or not": lambda backend: [
        once(lambda q, k, v, backend, g=g: attention(q, k, v, g, backend=backend), *SMALL)(backend)
        for g in (Local1d(4, 4), Local1d(4, 2, 1, causal=False))
    ],
    "`Local2d`, causal or not": lambda backend: [
        once(
            lambda q, k, v, backend, c=causal: local_attention_2d(
                q, k, v, block=(2, 2), halo=(1, 2), causal=c, backend=backend
            ),
            *[(1, 2, 3, 5, 4)] * 3,
        )(backend)
        for causal in (False, True)
    ],
    "`Pattern`: any mask": once(
        lambda q, k, v, backend: attention(q, k, v, CHECKERS, backend=backend), *SMALL
    ),
    "`Relative` keys (`rel_k`)": once(relative_attention, *SMALL, TABLE),
    "relative values (`rel_v`)": once(
        lambda q, k, v, a, b, backend: relative_attention(q, k, v, a, rel_v=b, backend=backend),
        *SMALL, TABLE, TABLE,
    ),
    "a query of its own for positions (`q_rel`)": once(
        lambda q, k, v, a, p, backend: relative_attention(
            q, k, v, a, q_rel=p, causal=False, backend=backend
        ),
        *SMALL, CENTRED, SMALL[0],
    ),
    "`Relative` with `Local1d`": once(
        lambda q, k, v, a, backend: attention(
            q, k, v, Local1d(4, 4), Relative(a), backend=backend
        ),
        *SMALL, TABLE,
    ),
    "`Relative` with `Local2d`": once(
        lambda q, k, v, a, backend: attention(
            q, k, v, Local2d((2, 4), (2, 2), (1, 1)), Relative(a), backend=backend
        ),
        *SMALL, CENTRED,
    ),
    "`Bias` by distance (T5, ALiBi), and sums with `Relative`": once(
        lambda q, k, v, a, b, backend: attention(
            q, k, v, Causal(), Relative(a) + Bias(b), backend=backend
        ),
        *SMALL, TABLE, (2, 5),
    ),
    "grouped queries": once(causal_attention, (2, 4, 8, 4), *[(2, 2, 8, 4)] * 2),
    "value dim other than key dim": once(causal_attention, *SMALL[:2], (2, 2, 8, 6)),
    "cross attention, other key length": once(attention, SMALL[0], *[(2, 2, 11, 4)] * 2),
    "`key_lengths`, `query_offset` per sequence": once(
        lambda q, k, v, backend: causal_attention(
            q, k, v, key_lengths=torch.tensor([5, 8]), query_offset=torch.tensor([0, 2]),
            backend=backend,
        ),
        *SMALL,
    ),
    "lse, and gradients through it": once(lse_of, *SMALL),
    "sinks in the denominator (GPT-OSS)": once(
        lambda q, k, v, s, backend: causal_attention(q, k, v, sinks=s, backend=backend),
        *SMALL, (2,),
    ),
    "`torch.func.vmap`": lambda backend: torch.func.vmap(
        lambda q, k, v: causal_attention(q, k, v, backend=backend)
    )(*tensors(*[(3, 2, 2, 8, 4)] * 3)),
    "second derivatives": twice,
}  # fmt: skip


def works(attempt: Call, backend: str) -> bool:
    """Whether a backend does it."""
    try:
        attempt(backend)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def dtypes(backend: str) -> str:
    """The dtypes that a backend computes in."""
    fine = [
        name_of(dtype)
        for dtype in DTYPES
        if works(once(causal_attention, *SMALL, dtype=dtype), backend)
    ]
    return ", ".join(fine)


def table() -> str:
    """The table in Markdown."""
    gpu_types = ", ".join(name_of(dtype) for dtype in DTYPES if dtype != torch.float64)
    rows = [
        ["device", "CPU", "any", "CUDA, compute capability 8.0"],
        ["dtype", *map(dtypes, TRIED), gpu_types],
        ["head dim", f"1 to {MAX_HEAD_DIM}", "any", f"1 to {MAX_TRITON_HEAD_DIM}"],
        ["memory beside the result", "linear", "length x length", "linear"],
    ]
    for name, attempt in FEATURES.items():
        tried = ["yes" if works(attempt, backend) else "no" for backend in TRIED]
        rows.append([name, *tried, "-"])
    head = ["", *(f"`{name}`" for name in TRIED), "`triton`"]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
