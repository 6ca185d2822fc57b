"""Tables by distance: which row of a table a pair of query and key reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.geometry import check_count

BEYOND = ("clip", "zero")
BY_GEOMETRY = -1  # stands for "the geometry says which row is distance 0"


def check_rows(name: str, n_rows: Any, beyond: Any, zero_row: Any, causal: bool) -> None:
    """Raise unless a table of so many rows has a row for distance 0 under the geometry."""
    if beyond not in BEYOND:
        raise ValueError(f'beyond must be "clip" or "zero", got {beyond!r}')
    if zero_row is not None:
        check_count(name, "zero_row", zero_row, 0, n_rows - 1)
    elif not causal and n_rows % 2 == 0:
        raise ValueError(
            f"{name} must have an odd number of rows unless causal or given a zero_row,"
            f" got {n_rows}"
        )


def rows_at(
    offset: Tensor, n_rows: int, beyond: str, zero_row: int | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """The row of each offset j - p_i, clipped, and whether the table is used there."""
    if zero_row is None:
        zero_row = n_rows - 1 if causal else (n_rows - 1) // 2
    row = offset + zero_row
    inside = (row >= 0) & (row < n_rows)
    used = torch.ones_like(inside) if beyond == "clip" else inside
    return row.clamp(0, n_rows - 1), used


def gathered(by_row: Tensor, row: Tensor, used: Tensor) -> Tensor:
    """by_row [B or 1, H, Lq or 1, R] at `row` [B or 1, 1, Lq, Lk], 0 where it is not used."""
    leading = torch.broadcast_shapes(by_row.shape[:3], row.shape[:3])
    by_row, row = by_row.expand(*leading, -1), row.expand(*leading, -1)
    return torch.where(used, by_row.gather(-1, row), 0)
