"""Sinks: a logit for each head that takes part in the softmax's denominator, and has no value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import check_dense, name_of


def check_sinks(sinks: Any, q: Tensor) -> None:
    check_dense("sinks", sinks)
    if not sinks.is_floating_point():
        raise ValueError(f"sinks must be of a floating dtype, got {name_of(sinks.dtype)}")
    if sinks.dim() != 1 or sinks.shape[0] != q.shape[1]:
        raise ValueError(f"sinks must have shape [{q.shape[1]}], got {list(sinks.shape)}")
    if sinks.device != q.device:
        raise ValueError(f"sinks must be on device {q.device} like q, got {sinks.device}")


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """What attention without sinks gave, with them: lse is all that they change.

        lse' = log(exp(lse) + exp(sink))          out' = exp(lse - lse') out

    A query that sees no key keeps 0 and -inf.
    """
    has_key = lse != -torch.inf
    finite = torch.where(has_key, lse, 0)  # exp(-inf - -inf) would be NaN, forward and backward
    total = torch.logaddexp(finite, sinks.to(lse.dtype).unsqueeze(-1))
    share = torch.exp(finite - total).unsqueeze(-1)
    return (out * share).to(out.dtype), torch.where(has_key, total, -torch.inf)
