"""Batches of token sequences: [batch, length] ids, filled up with a padding id at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_kernels.nn.checks import check_all


def lengths_of(name: str, tokens: Tensor, pad: int) -> Tensor:
    """The length of each sequence, [batch]; at least 1, with `pad` only behind it."""
    real = tokens != pad
    lengths = real.sum(1)
    check_all(
        f"{name} must have at least one token",
        lengths > 0,
        lambda: f"none in entry {first_of(lengths == 0)}",
    )
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    at_end = (real == (positions < lengths.unsqueeze(1))).all(1)
    check_all(
        f"{name} must have pad {pad} only at its end",
        at_end,
        lambda: f"it inside entry {first_of(~at_end)}",
    )
    return lengths


def first_of(entries: Tensor) -> int:
    """Which entry of [batch] is the first true one."""
    return int(entries.nonzero()[0])


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """x [batch, length, ...] with the first lengths[b] entries in reverse; its own inverse."""
    positions = torch.arange(x.shape[1], device=x.device)
    lengths = lengths.unsqueeze(1)
    index = torch.where(positions < lengths, lengths - 1 - positions, positions)
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand_as(x))
