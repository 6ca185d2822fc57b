"""merge(): one softmax over disjoint sets of keys that were attended to separately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .validate import DTYPES, name_of


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
    """
    check_parts(outs, lses)
    has_key = [lse != -torch.inf for lse in lses]
    # exp(-inf - -inf) would be NaN, forward and backward: a part without keys is left out.
    finite = [torch.where(has, lse, 0) for has, lse in zip(has_key, lses, strict=True)]
    highest = torch.stack([lse.detach() for lse in lses]).amax(0)
    highest = torch.where(highest == -torch.inf, 0, highest)
    weights = [
        torch.where(has, torch.exp(lse - highest), 0)
        for has, lse in zip(has_key, finite, strict=True)
    ]
    total = sum(weights)
    seen = total != 0
    total = torch.where(seen, total, 1)
    out = sum(
        (weight / total).unsqueeze(-1) * torch.where(has.unsqueeze(-1), part.to(lse.dtype), 0)
        for weight, has, lse, part in zip(weights, has_key, lses, outs, strict=True)
    )
    lse = torch.where(seen, highest + torch.log(total), -torch.inf)
    return out.to(outs[0].dtype), lse


def check_parts(outs: Any, lses: Any) -> None:
    """Raise TypeError or ValueError unless merge() may be called so."""
    for name, parts in (("outs", outs), ("lses", lses)):
        if isinstance(parts, Tensor) or not isinstance(parts, Sequence):
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
