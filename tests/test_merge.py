"""merge(): attention over parts of the keys, put together, is attention over all of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attn_kernels import Causal, Full, Pattern, attention, merge

CUTS = {"halves": (20, 40), "one": (40,), "uneven": (1, 3, 40), "with nothing": (0, 25, 25, 40)}


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def parts(
    q: Tensor, k: Tensor, v: Tensor, stops: tuple[int, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Causal attention to the keys up to each stop, from the one before; query i stands at i."""
    starts = (0, *stops[:-1])
    results = [
        attention(
            q, k[:, :, start:stop], v[:, :, start:stop], Causal(),
            query_offset=-start, return_lse=True, backend="reference",
        )
        for start, stop in zip(starts, stops, strict=True)
    ]  # fmt: skip
    return tuple(zip(*results, strict=True))


@pytest.mark.parametrize("stops", CUTS.values(), ids=CUTS)
def test_parts_make_the_whole(stops: tuple[int, ...]) -> None:
    """Values and gradients of q, k and v, through out and lse; most parts have rows without keys."""
    leaves = [x.requires_grad_() for x in (draw(2, 3, 40, 5), draw(2, 3, 40, 5), draw(2, 3, 40, 4))]
    whole = attention(*leaves, Causal(), return_lse=True, backend="reference")
    merged = merge(*parts(*leaves, stops))
    grads = draw(2, 3, 40, 4), draw(2, 3, 40)
    expected = torch.autograd.grad(whole, leaves, grads)
    actual = torch.autograd.grad(merged, leaves, grads)
    torch.testing.assert_close(merged, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_rows_without_keys() -> None:
    """No key in any part: out 0, lse -inf and no gradient. No key in one: the other part's row,
    whatever the first holds there."""
    lses = [torch.tensor([-math.inf, -math.inf, 1.0]), torch.tensor([-math.inf, 2.0, 700.0])]
    outs = [torch.tensor([[0.0], [math.nan], [1.0]]), torch.tensor([[0.0], [5.0], [7.0]])]
    leaves = [x.requires_grad_() for x in (*outs, *lses)]
    out, lse = merge(outs, lses)
    assert out.tolist() == [[0.0], [5.0], [7.0]]
    assert lse.tolist() == [-math.inf, 2.0, 700.0]
    grads = torch.autograd.grad((out, lse), leaves, (torch.ones_like(out), torch.ones_like(lse)))
    assert [x.flatten().tolist() for x in grads] == [[0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 1]]


def test_gradcheck() -> None:
    outs, lses = [draw(2, 3), draw(2, 3) + 1], [draw(2), draw(2) - 3]
    leaves = [x.requires_grad_() for x in (*outs, *lses)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: merge([a, b], [c, d]), leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    """The sum is float32: nearer to the truth than any sum in the half type could be."""
    outs = [draw(50, 8, dtype=dtype) * (n + 1) for n in range(6)]
    lses = [draw(50, dtype=torch.float32) * (n + 1) for n in range(6)]
    out, lse = merge(outs, lses)
    truth, true_lse = merge([x.double() for x in outs], [x.double() for x in lses])
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(lse.double(), true_lse, rtol=1e-6, atol=1e-6)
    assert ((out.double() - truth).abs() <= 0.501 * torch.finfo(dtype).eps * truth.abs() * 2).all()
    assert (out == truth.to(dtype)).float().mean() > 0.99


def test_text_and_image() -> None:
    """What it is for: every image token sees all text, and the image by a pattern."""
    q, text, image = draw(1, 2, 36, 8), draw(1, 2, 10, 8), draw(1, 2, 36, 8)
    column = Pattern.from_function(lambda i, j: (j <= i) & (i % 6 == j % 6), 36, 36)
    both = Pattern.from_function(
        lambda i, j: (j < 10) | (j - 10 <= i) & (i % 6 == (j - 10) % 6), 36, 46
    )
    found = [
        attention(q, keys, keys, geometry, return_lse=True, backend="reference")
        for keys, geometry in ((text, Full()), (image, column))
    ]
    keys = torch.cat([text, image], 2)
    expected = attention(q, keys, keys, both, return_lse=True, backend="reference")
    torch.testing.assert_close(merge(*zip(*found, strict=True)), expected)


OUT, LSE = torch.zeros(2, 5, 3), torch.zeros(2, 5)
MESSAGES = [
    (OUT, [LSE], TypeError, "outs must be a list or tuple of tensors, got Tensor"),
    ([OUT], None, TypeError, "lses must be a list or tuple of tensors, got NoneType"),
    ([OUT, 1], [LSE, LSE], TypeError, "outs[1] must be a torch.Tensor, got int"),
    ([], [], ValueError, "outs and lses must hold one tensor of each part, got 0 and 0"),
    ([OUT], [LSE, LSE], ValueError, "outs and lses must hold one tensor of each part, got 1 and 2"),
    ([OUT.long()], [LSE], ValueError,
     "outs[0] must be [..., Lq, Dv] in float32, float64, bfloat16 or float16, got [2, 5, 3] in int64"),
    ([LSE.sum()], [LSE], ValueError,
     "outs[0] must be [..., Lq, Dv] in float32, float64, bfloat16 or float16, got [] in float32"),
    ([OUT, OUT[:1]], [LSE, LSE], ValueError,
     "outs[1] must have shape [2, 5, 3] and dtype float32 like outs[0], got [1, 5, 3] and float32"),
    ([OUT], [LSE[..., None]], ValueError,
     "lses[0] must have shape [2, 5] and dtype float32 like outs[0], got [2, 5, 1] and float32"),
    ([OUT.half()], [LSE.half()], ValueError,
     "lses[0] must have shape [2, 5] and dtype float32 like outs[0], got [2, 5] and float16"),
    ([OUT], [LSE.to("meta")], ValueError, "lses[0] must be on device cpu like outs[0], got meta"),
]  # fmt: skip


@pytest.mark.parametrize(("outs", "lses", "kind", "text"), MESSAGES, ids=lambda x: "")
def test_messages(outs: object, lses: object, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        merge(outs, lses)
    assert str(error.value) == text
