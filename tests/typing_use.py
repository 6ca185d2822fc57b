"""Every public function as a typed program calls it: mypy and pyright read this, see test_types.py.

A line that must be an error says so to both checkers, which complain where it is none.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from typing_extensions import assert_type

from attn_kernels import (
    Bias,
    Causal,
    Full,
    Local1d,
    Local2d,
    Pattern,
    Relative,
    Window,
    attention,
    backends,
    causal_attention,
    explain,
    local_attention_1d,
    local_attention_2d,
    merge,
    plot,
    relative_attention,
    use_backend,
)
from attn_kernels.core.backends import Backend
from attn_kernels.core.explain import Explanation

Q = torch.zeros(1, 2, 6, 8)
CANVAS = torch.zeros(1, 2, 2, 3, 8)
TABLE = torch.zeros(1, 5, 8)
LENGTHS = torch.tensor([6])


def results(lse: bool) -> None:
    """Without return_lse a tensor, with it a pair, and either where only a bool is known."""
    assert_type(attention(Q, Q, Q), Tensor)
    assert_type(attention(Q, Q, Q, Causal(), return_lse=False), Tensor)
    assert_type(
        attention(Q, Q, Q, Causal(), Relative(TABLE), return_lse=True), tuple[Tensor, Tensor]
    )
    assert_type(attention(Q, Q, Q, Causal(), Relative(TABLE) + Bias.alibi(2, 6)), Tensor)
    assert_type(attention(Q, Q, Q, Window(2, None)), Tensor)
    assert_type(attention(Q, Q, Q, return_lse=lse), Tensor | tuple[Tensor, Tensor])

    assert_type(causal_attention(Q, Q, Q), Tensor)
    assert_type(causal_attention(Q, Q, Q, window=3, return_lse=False), Tensor)
    assert_type(causal_attention(Q, Q, Q, return_lse=True), tuple[Tensor, Tensor])
    assert_type(causal_attention(Q, Q, Q, return_lse=lse), Tensor | tuple[Tensor, Tensor])

    assert_type(relative_attention(Q, Q, Q, TABLE), Tensor)
    assert_type(relative_attention(Q, Q, Q, TABLE, return_lse=False), Tensor)
    assert_type(relative_attention(Q, Q, Q, TABLE, return_lse=True), tuple[Tensor, Tensor])
    assert_type(relative_attention(Q, Q, Q, TABLE, return_lse=lse), Tensor | tuple[Tensor, Tensor])

    one = local_attention_1d
    assert_type(one(Q, Q, Q, block=2, look_back=2), Tensor)
    assert_type(one(Q, Q, Q, block=2, look_back=2, return_lse=False), Tensor)
    assert_type(one(Q, Q, Q, block=2, look_back=2, return_lse=True), tuple[Tensor, Tensor])
    assert_type(one(Q, Q, Q, block=2, look_back=2, return_lse=lse), Tensor | tuple[Tensor, Tensor])

    two, x = local_attention_2d, CANVAS
    assert_type(two(x, x, x, block=(2, 2), halo=(1, 1)), Tensor)
    assert_type(two(x, x, x, block=[2, 2], halo=[1, 1], return_lse=False), Tensor)
    assert_type(two(x, x, x, block=(2, 2), halo=(1, 1), return_lse=True), tuple[Tensor, Tensor])
    found = two(x, x, x, block=(2, 2), halo=(1, 1), return_lse=lse)
    assert_type(found, Tensor | tuple[Tensor, Tensor])


def options() -> None:
    """Every keyword."""
    causal_attention(
        Q, Q, Q, window=None, scale=0.5, key_lengths=LENGTHS, query_offset=0, backend="reference"
    )
    relative_attention(
        Q, Q, Q, TABLE, rel_v=TABLE, q_rel=Q, causal=False, window=None, beyond="zero",
        rel_scale=1.0, scale=0.5, key_lengths=LENGTHS, query_offset=LENGTHS, backend=None,
    )  # fmt: skip
    local_attention_1d(
        Q, Q, Q, block=2, look_back=2, look_ahead=1, causal=False, scale=0.5, key_lengths=LENGTHS,
        query_offset=None, backend=None,
    )  # fmt: skip
    local_attention_2d(
        CANVAS, CANVAS, CANVAS, block=torch.Size([2, 2]), halo=(1, 1), causal=True, scale=0.5,
        key_lengths=LENGTHS, backend=None,
    )  # fmt: skip
    attention(
        Q, Q, Q, Local1d(2, 2, 1, causal=False), None, scale=0.5, key_lengths=LENGTHS,
        query_offset=0, backend=None,
    )  # fmt: skip


def others() -> None:
    """Geometries, and what is no attention."""
    assert_type(Local2d([2, 3], (2, 2), [1, 1]).block, tuple[int, int])
    assert_type(Pattern.from_mask(torch.ones(6, 6, dtype=torch.bool)), Pattern)
    assert_type(Pattern.from_function(lambda q, k: q >= k, 6, 6), Pattern)
    assert_type(backends(), dict[str, Backend])
    assert_type(explain(Q, Q, Q, Full(), return_lse=True, backend="reference"), Explanation)
    parts = [attention(Q, Q, Q, return_lse=True)]
    assert_type(merge([out for out, _ in parts], [lse for _, lse in parts]), tuple[Tensor, Tensor])
    assert_type(use_backend(None).__enter__(), None)
    context: AbstractContextManager[None] = use_backend("reference")
    with context:
        assert_type(attention(Q, Q, Q), Tensor)
    plot(Causal(), 8, 8, query=3, tile=(4, 4))


def wrong() -> None:
    """Not run: what a checker must refuse."""
    attention(Q, Q, Q, torch.ones(6, 6))  # type: ignore[call-overload]  # pyright: ignore
    attention(Q, Q, Q, is_causal=True)  # type: ignore[call-overload]  # pyright: ignore
    causal_attention(Q, Q, Q, dropout_p=0.1)  # type: ignore[call-overload]  # pyright: ignore
    relative_attention(Q, Q, Q)  # type: ignore[call-overload]  # pyright: ignore
    local_attention_1d(Q, Q, Q, block=2)  # type: ignore[call-overload]  # pyright: ignore
    local_attention_2d(  # type: ignore[call-overload]
        CANVAS, CANVAS, CANVAS, block=(2, 2), halo=(1, 1), query_offset=0  # pyright: ignore
    )  # fmt: skip
    Pattern(torch.ones(6, 6))  # type: ignore[arg-type]  # pyright: ignore
    plot(Causal(), lenght=8)  # type: ignore[call-arg]  # pyright: ignore


if __name__ == "__main__":
    results(lse=True)
    options()
    others()
