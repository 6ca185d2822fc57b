"""plot(): every geometry is drawn as what attention() computes with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from common import sees, subprocess_environment
from torch import Tensor

from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, plot
from attn_kernels.core.geometry import Geometry
from attn_kernels.picture import COLOURS, EMPTY, FULL, HIDDEN, PARTIAL

STRIPES = Pattern.from_function(lambda i, j: (i + j) % 5 > 2, 30, 41)
GEOMETRIES = [Full(), Causal(), Causal(9), Local1d(8, 4), Local1d(5, 0, 7, causal=False)]


def pixels(figure: Any) -> Tensor:
    """The picture's kinds, back from its colours."""
    image = torch.tensor(figure.axes[0].images[0].get_array())
    colours = torch.tensor([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS])
    kinds = (image.unsqueeze(-2) == colours).all(-1)
    assert (kinds.sum(-1) == 1).all()
    return kinds.int().argmax(-1)


@pytest.mark.parametrize("geometry", [*GEOMETRIES, STRIPES], ids=str)
@pytest.mark.parametrize("tile", [(8, 8), (7, 4), (64, 64)], ids=str)
def test_pairs_and_tiles(geometry: Geometry, tile: tuple[int, int]) -> None:
    """A pixel is blue or orange where the query sees the key, by whether the whole tile does."""
    q_len, k_len = (30, 41) if geometry is STRIPES else (19, 26)
    offset = 0 if geometry is STRIPES else k_len - q_len
    drawn = pixels(plot(geometry, q_len, k_len, tile=tile))
    assert drawn.shape == (q_len, k_len)
    seen = torch.tensor(
        [
            [(i + j) % 5 > 2 if geometry is STRIPES else sees(geometry, i + offset, j)
             for j in range(k_len)]
            for i in range(q_len)
        ]
    )  # fmt: skip
    assert torch.equal((drawn == PARTIAL) | (drawn == FULL), seen)
    for top in range(0, q_len, tile[0]):
        for left in range(0, k_len, tile[1]):
            part = slice(top, top + tile[0]), slice(left, left + tile[1])
            kinds = set(drawn[part].flatten().tolist())
            expected = {FULL} if seen[part].all() else {PARTIAL, HIDDEN}
            assert kinds == (expected if seen[part].any() else {EMPTY})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("query", [(0, 0), (6, 9), (10, 12)], ids=str)
def test_canvas(query: tuple[int, int], causal: bool) -> None:
    """The cells that one query sees; its block is outlined, cut at the edge; itself is marked."""
    geometry = Local2d((11, 13), (4, 5), (2, 3), causal)
    figure = plot(geometry, query=query)
    position = query[0] * 13 + query[1]
    seen = [sees(geometry, position, key) for key in range(11 * 13)]
    assert (pixels(figure) == FULL).flatten().tolist() == seen
    top, left = query[0] // 4 * 4, query[1] // 5 * 5
    size = min(5, 13 - left), min(4, 11 - top)
    boxes = [(*box.get_xy(), box.get_width(), box.get_height()) for box in figure.axes[0].patches]
    assert boxes == [(left - 0.5, top - 0.5, *size), (query[1] - 0.5, query[0] - 0.5, 1, 1)]


def test_a_sequence_on_a_canvas() -> None:
    """A pattern's keys, laid out as the image that they are; cells behind the last one are not."""
    column = Pattern.from_function(lambda i, j: (i % 6 == j % 6) & (j <= i), 34, 34)
    drawn = pixels(plot(column, grid=(6, 6), query=20)) == FULL
    assert drawn.nonzero().tolist() == [[0, 2], [1, 2], [2, 2], [3, 2]]
    drawn = pixels(plot(Full(), 7, 10, grid=(3, 4))) == FULL
    assert drawn.flatten().tolist() == [True] * 10 + [False] * 2


def test_long_sequences_are_drawn_by_tiles() -> None:
    """A pixel is a tile where pairs would be too many; each row of tiles is looked at alone."""
    band = Pattern.from_function(lambda i, j: (i - j).abs() < 200, 4096, 4096)
    drawn = pixels(plot(band))
    assert drawn.shape == (4096 // 64, 4096 // 16)
    assert drawn[10, 40] == FULL
    assert drawn[10, 30] == PARTIAL
    assert drawn[10, 200] == EMPTY


def test_saving(tmp_path: Path) -> None:
    """The same file each time, with no display and without pyplot."""
    for name in ("a.png", "b.svg", "c.svg"):
        plot(Causal(5), path=tmp_path / name, query=3)
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "c.svg").read_bytes()
    program = (
        "import sys; from attn_kernels import Full, plot; assert 'matplotlib' not in sys.modules;"
        f" plot(Full(), path={str(tmp_path / 'd.png')!r});"
        " assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = subprocess_environment(DISPLAY="", MPLBACKEND="")
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert (tmp_path / "d.png").exists()


CANVAS = Local2d((3, 4), (2, 2), (1, 1))
MESSAGES = [
    (("causal",), {}, TypeError,
     "geometry must be a Geometry such as Full(), Causal() or Local1d(...), got str"),
    ((CANVAS, 12), {}, ValueError,
     "q_len, k_len and grid must be None under Local2d, which has its own, got 12, None and None"),
    ((Full(), 0), {}, ValueError, "plot: q_len must be at least 1, got 0"),
    ((Full(), 4, 2.5), {}, TypeError, "plot: k_len must be an int, got float"),
    ((Full(), 4), {"tile": (0, 2)}, ValueError, "plot: tile must be at least 1, got 0"),
    ((Full(), 4, 4), {"grid": (1, 3)}, ValueError, "grid must have a cell for each of 4 keys, got (1, 3)"),
    ((Full(), 4), {"query": 4}, ValueError, "query must be less than 4, got 4"),
    ((Full(), 4), {"query": (0, 1)}, ValueError,
     "query must be an index or a cell of the canvas None, got (0, 1)"),
    ((CANVAS,), {"query": (3, 0)}, ValueError,
     "query must be an index or a cell of the canvas (3, 4), got (3, 0)"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "options", "kind", "text"), MESSAGES, ids=lambda x: "")
def test_messages(args: Any, options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        plot(*args, **options)
    assert str(error.value) == text


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package imports without it; the one function that needs it says what to do."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError) as error:
        plot(Full())
    assert str(error.value) == "plot() needs matplotlib: run `pip install matplotlib`"
