"""What an image's cells are to a transformer: positions on a grid, and embeddings of values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels.nn import grid_sinusoids
from attn_kernels.nn.layer import Layer

from . import logistic
from .constant import Constant


class GridPositions(Layer):
    """Adds to cells where they are: half of the channels tell a cell's row, half its column (and so
    its colour channel)."""

    def __init__(self, grid: tuple[int, int], dim: int, learned: bool) -> None:
        super().__init__()
        self.learned = learned
        if learned:
            self.rows = nn.Parameter(torch.empty(grid[0], dim // 2))
            self.cols = nn.Parameter(torch.empty(grid[1], dim - dim // 2))
        else:
            self.waves = Constant(lambda: grid_sinusoids(grid, dim).flatten(0, 1))
        self.init_parameters()

    def init_parameters(self) -> None:
        """Normal with standard deviation 0.02."""
        for table in self.parameters():
            nn.init.normal_(table, std=0.02)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """x [B, n, dim] plus the vectors of its cells, the first of which is cell `first`."""
        return x + self.table(x)[first : first + x.shape[1]]

    def table(self, like: Tensor) -> Tensor:
        """The vectors of all cells, [cells, dim]."""
        if not self.learned:
            return self.waves.on(like.device).to(like.dtype)
        shape = (len(self.rows), len(self.cols), -1)
        row, col = self.rows.unsqueeze(1).expand(shape), self.cols.unsqueeze(0).expand(shape)
        return torch.cat([row, col], -1).flatten(0, 1)


class ChannelEmbedding(Layer):
    """sqrt(dim) times a vector for each value, from a table of each channel's own."""

    def __init__(self, channels: int, levels: int, dim: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.table = nn.Parameter(torch.empty(channels * levels, dim))
        self.init_parameters()

    def init_parameters(self) -> None:
        """Normal with standard deviation dim ** -0.5."""
        nn.init.normal_(self.table, std=self.table.shape[1] ** -0.5)

    def forward(self, values: Tensor, cells: Tensor) -> Tensor:
        """[B, n, dim] of values [B, n] at these cells [n] of a canvas."""
        rows = values + self.levels * (cells % self.channels)
        return F.embedding(rows, self.table) * self.table.shape[1] ** 0.5


class PixelEmbedding(Layer):
    """A linear map of a pixel's channels: the paper's 1 x 3 convolution of stride 1 x 3."""

    def __init__(self, channels: int, levels: int, dim: int) -> None:
        super().__init__()
        self.levels, self.linear = levels, nn.Linear(channels, dim)

    def forward(self, values: Tensor, cells: Tensor) -> Tensor:
        """[B, n, dim] of values [B, n, channels]."""
        return self.linear(logistic.scaled(values, self.levels, self.linear.weight.dtype))
