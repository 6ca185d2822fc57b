"""The pictures of README and docs/: what queries see, by attn_kernels.plot, and tables' rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, Relative, Window, plot
from attn_kernels.core.geometry import Geometry

from .plots import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE, INCHES = 24, (4.3, 4.8)
BEYOND = -1.0  # a pair that reads no row


@dataclass(frozen=True)
class Drawing:
    """A picture and what it shows: the pairs of a geometry, and the row that each reads."""

    geometry: Geometry
    score: Relative | None = None

    def shown(self) -> Tensor:
        """[queries, keys]: the distance from the row of distance 0, or BEYOND where nothing is."""
        two_dimensional = self.geometry.two_dimensional
        n = torch.Size(self.geometry.grid).numel() if two_dimensional else SIZE
        q_pos, k_pos = torch.arange(n).view(-1, 1), torch.arange(n)
        seen = self.geometry.visible(q_pos, k_pos).expand(n, n)
        distance = torch.zeros(n, n)
        if self.score is not None:
            causal, last = self.geometry.causal, self.score.rel_k.shape[1] - 1
            row, used = self.score.rows(k_pos - q_pos, causal)
            distance = (row - (last if causal else last // 2)).abs().float()
            seen = seen & used
        return torch.where(seen, distance, BEYOND)

    def fingerprint(self) -> str:
        """What it shows, in a few digits: the file carries them."""
        content = f"{self.geometry} {self.shown().tolist()}"
        return "data " + hashlib.sha256(content.encode()).hexdigest()[:16]

    def draw(self) -> Figure:
        """The picture, small enough for two beside each other."""
        if self.score is not None:
            return self.draw_rows()
        drawn = plot(self.geometry, *() if self.geometry.two_dimensional else (SIZE, SIZE))
        drawn.set_size_inches(*INCHES)
        return drawn

    def draw_rows(self) -> Figure:
        """Pairs in the colour of the table's row that they read: dark is distance 0."""
        drawn, (axes,) = figure(1, *INCHES)
        shown = self.shown()
        hidden = torch.where(shown == BEYOND, torch.nan, shown)
        image = axes.imshow(hidden.numpy(), cmap="Blues_r", vmax=1.3 * shown.max().item())
        axes.set(
            xlabel="key", ylabel="query", title=f"{self.geometry}, {self.score.rel_k.shape[1]} rows"
        )
        axes.xaxis.set_label_position("top")
        axes.xaxis.tick_top()
        bar = {"location": "bottom", "shrink": 0.7, "label": "row's distance"}
        drawn.colorbar(image, ax=axes, **bar).outline.set_visible(False)
        return drawn


def strided(q: Tensor, k: Tensor) -> Tensor:
    """Sparse Transformer's strided pattern: the last few keys, and every fourth one."""
    return (k <= q) & ((q - k < 4) | (k % 4 == 3))


def table(rows: int) -> Relative:
    """A table of so many rows; its values are not drawn."""
    return Relative(torch.zeros(1, rows, 1))


CANVAS = {"grid": (12, 16), "block": (4, 4), "halo": (2, 2)}
DRAWINGS = {
    "full.svg": Drawing(Full()),
    "causal.svg": Drawing(Causal()),
    "causal-window.svg": Drawing(Causal(6)),
    "window.svg": Drawing(Window(5, 3)),
    "local_1d.svg": Drawing(Local1d(6, 6)),
    "local_1d-ahead.svg": Drawing(Local1d(6, 3, 3, causal=False)),
    "local_2d.svg": Drawing(Local2d(**CANVAS)),
    "local_2d-causal.svg": Drawing(Local2d(**CANVAS, causal=True)),
    "pattern.svg": Drawing(Pattern.from_function(strided, SIZE, SIZE)),
    "relative.svg": Drawing(Causal(), table(SIZE)),
    "relative-clipped.svg": Drawing(Full(), table(13)),
}
