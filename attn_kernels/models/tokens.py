"""Batches of token sequences: [batch, length] ids, filled up with a padding id at the end."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_of(name: str, tokens: Tensor, pad: int) -> Tensor:
    """The length of each sequence, [batch]; at least 1, with `pad` only behind it."""
    real = tokens != pad
    lengths = real.sum(1)
    if torch.compiler.is_compiling() or tokens.device.type == "meta":
        return lengths
    if (lengths == 0).any():
        entry = int((lengths == 0).nonzero()[0])
        raise ValueError(f"{name} must have at least one token, got none in entry {entry}")
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    inside = (real != (positions < lengths.unsqueeze(1))).any(1)
    if inside.any():
        entry = int(inside.nonzero()[0])
        raise ValueError(f"{name} must have pad {pad} only at its end, got it inside entry {entry}")
    return lengths


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """x [batch, length, ...] with the first lengths[b] entries in reverse; its own inverse."""
    positions = torch.arange(x.shape[1], device=x.device)
    lengths = lengths.unsqueeze(1)
    index = torch.where(positions < lengths, lengths - 1 - positions, positions)
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand_as(x))
