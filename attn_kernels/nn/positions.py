"""Positions: sinusoids in the forms that papers and libraries use, and learned tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .checks import check_choice, check_count, check_tensor
from .layer import Layer

FORMS = ("interleaved", "concatenated", "tensor2tensor")
LONGEST = 10000.0


def sinusoids(positions: Tensor, dim: int, form: str = "interleaved") -> Tensor:
    """Sinusoids of any positions [...], as float32 [..., dim].

        interleaved     [sin w_0 p, cos w_0 p, sin w_1 p, ...]     w_i = 10000 ** (-2 i / dim)
        concatenated    [sin w_0 p, sin w_1 p, ..., cos w_0 p, ...], the same w_i
        tensor2tensor   concatenated, with w_i = 10000 ** (-i / (dim / 2 - 1))

    The first is the Transformer paper's (arXiv 1706.03762, section 3.5), the second
    Transformer-XL's, the third what tensor2tensor's models were trained with.

    Example:
        >>> sinusoids(torch.arange(100), 64).shape
        torch.Size([100, 64])
    """
    check_choice("form", form, FORMS)
    check_count("dim", dim)
    if dim % 2:
        raise ValueError(f"dim must be even, got {dim}")
    half = dim // 2
    steps = max(half - 1, 1) if form == "tensor2tensor" else half
    powers = torch.arange(half, device=positions.device, dtype=torch.float64) / steps
    angles = positions.unsqueeze(-1) * torch.exp(powers * -math.log(LONGEST))
    waves = (angles.sin(), angles.cos())
    if form == "interleaved":
        return torch.stack(waves, -1).flatten(-2).float()
    return torch.cat(waves, -1).float()


def grid_sinusoids(
    shape: tuple[int, ...],
    dim: int,
    form: str = "tensor2tensor",
    device: torch.device | str | None = None,
) -> Tensor:
    """Sinusoids of every cell of an N-dimensional grid, [*shape, dim].

    The channels are cut in N equal groups of an even size, one for each axis; channels that are
    left over are 0, as in tensor2tensor.

    Example:
        >>> grid_sinusoids((20, 30), 64).shape
        torch.Size([20, 30, 64])
    """
    group = dim // (2 * len(shape)) * 2
    if group == 0:
        raise ValueError(f"dim must be at least {2 * len(shape)} for {len(shape)} axes, got {dim}")
    waves = torch.zeros(*shape, dim, device=device)
    for axis, length in enumerate(shape):
        along = sinusoids(torch.arange(length, device=device), group, form)
        view = [1] * len(shape) + [group]
        view[axis] = length
        waves[..., axis * group : (axis + 1) * group] = along.view(view)
    return waves


class SinusoidalPositions(Layer):
    """Adds sinusoids to [B, L, dim], or to the cells of [B, rows, cols, ..., dim]. No parameters
    and no longest sequence.

    Example:
        >>> SinusoidalPositions(64)(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(self, dim: int, form: str = "interleaved") -> None:
        super().__init__()
        check_choice("form", form, FORMS)
        self.dim, self.form = dim, form

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """offset: the position of x's first entry; 0 on a grid."""
        if x.dim() > 3:
            if offset:
                raise ValueError(f"offset must be 0 on a grid, got {offset}")
            return x + grid_sinusoids(x.shape[1:-1], self.dim, self.form, x.device).to(x.dtype)
        check_tensor("x", x, ("batch", "length", "dim"), self.dim)
        positions = torch.arange(offset, offset + x.shape[1], device=x.device)
        return x + sinusoids(positions, self.dim, self.form).to(x.dtype)


class LearnedPositions(Layer):
    """Adds a learned vector for each of max_length positions to [B, L, dim].

    Args:
        max_length, dim: the size of the table.
        std: the standard deviation with which it is drawn.
        device, dtype: of the table.
    Example:
        >>> LearnedPositions(512, 64)(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        max_length: int,
        dim: int,
        std: float = 0.02,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("max_length", max_length)
        self.std = std
        self.weight = nn.Parameter(torch.empty(max_length, dim, device=device, dtype=dtype))
        self.init_parameters()

    def init_parameters(self) -> None:
        """Normal with standard deviation `std`."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """offset: the position of x's first entry."""
        check_tensor("x", x, ("batch", "length", "dim"), self.weight.shape[1])
        if offset < 0:
            raise ValueError(f"offset must be at least 0, got {offset}")
        stop = offset + x.shape[1]
        if stop > len(self.weight):
            raise ValueError(
                f"x must end within the {len(self.weight)} positions of the model, got {stop}"
            )
        return x + self.weight[offset:stop]
