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
from attn_kernels.picture import COLOURS, EMPTY, FULL, HIDDEN, PARTIAL, QUERY

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
@pytest.mark.parametrize("query", [(0, 0), [4, 5], (6, 9), (10, 12)], ids=str)
def test_canvas(query: tuple[int, int], causal: bool) -> None:
    """The cells that one query sees; its block is outlined, cut at the edge; itself is marked."""
    geometry = Local2d((11, 13), (4, 5), (2, 3), causal)
    figure = plot(geometry, query=query)
    position = query[0] * 13 + query[1]
    seen = [sees(geometry, position, key) for key in range(11 * 13)]
    assert (pixels(figure) == FULL).flatten().tolist() == seen
    top, left = query[0] // 4 * 4, query[1] // 5 * 5
    size = min(5, 13 - left), min(4, 11 - top)
    marked = (query[1] - 0.5, query[0] - 0.5, 1, 1)
    assert boxes(figure) == [(left - 0.5, top - 0.5, *size), marked]
    assert lines(figure) == ([row - 0.5 for row in range(11)], [col - 0.5 for col in range(13)])
    assert figure.axes[0].images[0].get_extent() == [-0.5, 12.5, 10.5, -0.5]
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("row", "column")
    assert legend(figure) == {"seen": COLOURS[FULL], "not seen": COLOURS[EMPTY], "query": QUERY}


def boxes(figure: Any) -> list[tuple[float, ...]]:
    """Left, top, width and height of what is framed."""
    return [(*box.get_xy(), box.get_width(), box.get_height()) for box in figure.axes[0].patches]


def lines(figure: Any) -> tuple[list[float], list[float]]:
    """Where horizontal and vertical lines are."""
    ends = [(line.get_xdata(), line.get_ydata()) for line in figure.axes[0].lines]
    return [y[0] for _, y in ends if y[0] == y[1]], [x[0] for x, _ in ends if x[0] == x[1]]


def legend(figure: Any) -> dict[str, str]:
    """Colours by name."""
    from matplotlib.colors import to_hex

    patches, texts = figure.legends[0].get_patches(), figure.legends[0].get_texts()
    return {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(texts, patches, strict=True)
    }


def test_what_stands_around_the_pairs() -> None:
    """Axes, lines between tiles, the marked query, and a legend that counts the tiles."""
    figure = plot(Causal(), 12, 20, tile=(8, 4), query=3)
    assert figure.axes[0].images[0].get_extent() == [-0.5, 19.5, 11.5, -0.5]
    assert lines(figure) == ([-0.5, 7.5], [-0.5, 3.5, 7.5, 11.5, 15.5])
    assert boxes(figure) == [(-0.5, 2.5, 20, 1)]
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("query", "key")
    assert legend(figure) == {
        "6 full tiles": COLOURS[FULL],  # keys 0 to 7, and for the last four queries to 15
        "3 partial tiles": COLOURS[PARTIAL],
        "1 empty tiles": COLOURS[EMPTY],
    }


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((Full(),), (32, 32)),
        ((Full(), 12), (12, 12)),
        ((Full(), None, 12), (12, 12)),
        ((Full(), 5, 12), (5, 12)),
        ((STRIPES,), (30, 41)),
        ((STRIPES, 7), (7, 41)),
        ((STRIPES, None, 30), (30, 30)),
    ],
    ids=str,
)
def test_lengths(arguments: tuple[Any, ...], shape: tuple[int, int]) -> None:
    """What is not said: a pattern's own length, else the other length, else 32."""
    assert pixels(plot(*arguments)).shape == shape


@pytest.mark.parametrize(("lengths", "tile"), [((64, 64), (8, 8)), ((3, 65), (64, 16))], ids=str)
def test_tiles(lengths: tuple[int, int], tile: tuple[int, int]) -> None:
    found = lines(plot(Full(), *lengths))
    assert [len(x) for x in found] == [-(-n // t) for n, t in zip(lengths, tile, strict=True)]


def test_query_offset() -> None:
    """A query's position where the caller says it: in one dimension, and on a canvas."""
    drawn = pixels(plot(Causal(), 4, 8, query_offset=1)) != EMPTY
    assert drawn[:, 1:3].tolist() == [[True, True]] * 4
    seen = pixels(plot(Causal(), 4, 8, query_offset=1, tile=(1, 1))) == FULL
    assert seen.sum(1).tolist() == [2, 3, 4, 5]
    seen = pixels(plot(Causal(), 3, 6, grid=(2, 3), query=1, query_offset=2)) == FULL
    assert seen.flatten().tolist() == [True] * 4 + [False] * 2


def test_the_query_that_is_marked_on_a_canvas() -> None:
    """The middle cell, or the last query there is; none where a query has no cell."""
    assert boxes(plot(Local2d((4, 10), (1, 1), (0, 0))))[-1] == (4.5, 1.5, 1, 1)
    assert boxes(plot(Full(), 3, 6, grid=(2, 3)))[-1] == (1.5, -0.5, 1, 1)
    assert boxes(plot(Full(), 9, grid=(2, 3), query=6)) == []


def test_a_sequence_on_a_canvas() -> None:
    """A pattern's keys, laid out as the image that they are; cells behind the last one are not."""
    assert (pixels(plot(Full(), 5, 5, grid=(2, 3))) == FULL).flatten().tolist() == [1] * 5 + [0]
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
    assert lines(plot(band)) == ([], [])  # 256 tiles in a row


def test_saving(tmp_path: Path) -> None:
    """The same file each time, with no display and without pyplot."""
    for name in ("a.png", "a.pdf", "b.svg", "c.svg"):
        plot(Causal(5), path=tmp_path / name, query=3)
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "c.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "b.svg").read_bytes()
    assert b"CreationDate" not in (tmp_path / "a.pdf").read_bytes()
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
    ((Local2d((0, 4), (2, 2), (1, 1)),), {}, ValueError, "plot: grid must have at least one cell, got (0, 4)"),
    ((Full(), 0), {}, ValueError, "plot: q_len must be at least 1, got 0"),
    ((Full(), 4, 2.5), {}, TypeError, "plot: k_len must be an int, got float"),
    ((Full(), 4), {"tile": (0, 2)}, ValueError, "plot: tile must be at least 1, got 0"),
    ((Full(), 4, 4), {"grid": (1, 3)}, ValueError, "grid must have a cell for each of 4 keys, got (1, 3)"),
    ((Full(), 4), {"query": 4}, ValueError, "query must be less than 4, got 4"),
    ((Full(), 4), {"query": (0, 1)}, ValueError,
     "query must be an index or a cell of the canvas None, got (0, 1)"),
    ((CANVAS,), {"query": (3, 0)}, ValueError,
     "query must be an index or a cell of the canvas (3, 4), got (3, 0)"),
    ((CANVAS,), {"query": (0, 4)}, ValueError,
     "query must be an index or a cell of the canvas (3, 4), got (0, 4)"),
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
