"""merge(): one softmax over disjoint sets of keys that were attended to separately."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .checks import DTYPES, name_of


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Put together what attention() returned for disjoint sets of keys and the same queries.

        lse = log sum_n exp(lse_n)                  over the parts n
        out = sum_n exp(lse_n - lse) out_n

    The same as one call over all keys, gradients included: they flow through outs and lses.

    Args:
        outs: [..., Lq, Dv], one of each part, of one dtype.
        lses: [..., Lq], one of each part: float32, or float64 for float64 outs.

    Returns:
        (out, lse), shaped like one part. Sums are taken in lse's dtype and out is rounded once, to
        the dtype of outs. A query without keys in any part gives 0 and lse -inf.

    Example:
        >>> q, k, v = (torch.randn(1, 4, 50, 32) for _ in range(3))
        >>> halves = zip(k.split(25, 2), v.split(25, 2))
        >>> parts = [attention(q, *half, return_lse=True) for half in halves]
        >>> out, lse = merge(*zip(*parts))
        >>> torch.allclose(out, attention(q, k, v), atol=1e-5)
        True
    """
    check_parts(outs, lses)
    highest = torch.stack([lse.detach() for lse in lses]).amax(0)
    # exp(-inf - -inf) would be NaN, forward and backward.
    highest = torch.where(highest == -torch.inf, 0, highest)
    weights = [torch.exp(lse - highest) for lse in lses]
    total = reduce(torch.add, weights)
    seen = total != 0
    total = torch.where(seen, total, 1)
    # A part without keys has weight 0 and may hold anything.
    parts = (
        torch.where((lse != -torch.inf).unsqueeze(-1), out, 0)
        for lse, out in zip(lses, outs, strict=True)
    )
    weighted = (
        (weight / total).unsqueeze(-1) * part for weight, part in zip(weights, parts, strict=True)
    )
    out = reduce(torch.add, weighted)
    lse = torch.where(seen, highest + torch.log(total), -torch.inf)
    return out.to(outs[0].dtype), lse


def check_parts(outs: Any, lses: Any) -> None:
    """Raise TypeError or ValueError unless merge() may be called so."""
    for name, parts in (("outs", outs), ("lses", lses)):
        if not isinstance(parts, Sequence):
            raise TypeError(
                f"{name} must be a list or tuple of tensors, got {type(parts).__name__}"
            )
        for i, part in enumerate(parts):
            if not isinstance(part, Tensor):
                raise TypeError(f"{name}[{i}] must be a torch.Tensor, got {type(part).__name__}")
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(
            f"outs and lses must hold one tensor of each part, got {len(outs)} and {len(lses)}"
        )
    out = outs[0]
    if out.dtype not in DTYPES or out.dim() == 0:
        raise ValueError(
            "outs[0] must be [..., Lq, Dv] in float32, float64, bfloat16 or float16,"
            f" got {list(out.shape)} in {name_of(out.dtype)}"
        )
    lse_dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    rules = [("outs", outs, out.shape, out.dtype), ("lses", lses, out.shape[:-1], lse_dtype)]
    for name, parts, shape, dtype in rules:
        for i, part in enumerate(parts):
            if part.shape != shape or part.dtype != dtype:
                raise ValueError(
                    f"{name}[{i}] must have shape {list(shape)} and dtype {name_of(dtype)}"
                    f" like outs[0], got {list(part.shape)} and {name_of(part.dtype)}"
                )
            if part.device != out.device:
                raise ValueError(
                    f"{name}[{i}] must be on device {out.device} like outs[0], got {part.device}"
                )
