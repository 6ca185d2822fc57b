"""Where the memory of results lies."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def empty_in_layout(like: Tensor, last: Any) -> Tensor:
    """Uninitialised [B, H, L, last], in memory [B, L, H, last] where `like` is such a view."""
    batch, heads, length, _ = like.shape
    if like.stride(1) < like.stride(2):
        return like.new_empty(batch, length, heads, last).transpose(1, 2)
    return like.new_empty(batch, heads, length, last)
