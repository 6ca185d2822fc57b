"""What an image's cells are to a transformer: positions on a grid, and embeddings of values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels.nn import grid_sinusoids

from . import logistic


class GridPositions(nn.Module):
    """Half of the channels tell a cell's row, half its column (and so its colour channel)."""

    def __init__(self, grid: tuple[int, int], dim: int, learned: bool) -> None:
        super().__init__()
        self.learned = learned
        if learned:
            self.rows = nn.Parameter(0.02 * torch.randn(grid[0], dim // 2))
            self.cols = nn.Parameter(0.02 * torch.randn(grid[1], dim - dim // 2))
        else:
            waves = grid_sinusoids(grid, dim).flatten(0, 1)
            self.register_buffer("waves", waves, persistent=False)

    def forward(self) -> Tensor:
        """[cells, dim]."""
        if not self.learned:
            return self.waves
        shape = (len(self.rows), len(self.cols), -1)
        row, col = self.rows.unsqueeze(1).expand(shape), self.cols.unsqueeze(0).expand(shape)
        return torch.cat([row, col], -1).flatten(0, 1)


class ChannelEmbedding(nn.Module):
    """sqrt(dim) times a vector for each value, from a table of each channel's own."""

    def __init__(self, channels: int, levels: int, dim: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.table = nn.Parameter(dim**-0.5 * torch.randn(channels * levels, dim))

    def forward(self, values: Tensor, cells: Tensor) -> Tensor:
        """[B, n, dim] of values [B, n] at these cells [n] of a canvas."""
        rows = values + self.levels * (cells % self.channels)
        return F.embedding(rows, self.table) * self.table.shape[1] ** 0.5


class PixelEmbedding(nn.Module):
    """A linear map of a pixel's channels: the paper's 1 x 3 convolution of stride 1 x 3."""

    def __init__(self, channels: int, levels: int, dim: int) -> None:
        super().__init__()
        self.levels, self.linear = levels, nn.Linear(channels, dim)

    def forward(self, values: Tensor, cells: Tensor) -> Tensor:
        """[B, n, dim] of values [B, n, channels]."""
        return self.linear(logistic.scaled(values, self.levels, self.linear.weight.dtype))
