"""explain(): the counts that speed is measured by, and the memory that is promised."""

from __future__ import annotations

from inspect import signature

import numpy as np
import pytest
import torch
from common import Target

from attn_kernels import Causal, Full, Local2d, Relative, attention, explain

Q = torch.zeros(2, 4, 6, 8)
K = torch.zeros(2, 2, 10, 8)
V = torch.zeros(2, 2, 10, 5)


def test_counts(backend: Target) -> None:
    """Operations of the visible pairs, forward (2 products) and backward (5), and bytes, by hand."""
    found = explain(Q, K, V, Causal(), backend=backend.name)
    assert (found.backend, found.reason) == (backend.name, "requested")
    pairs = 2 * 4 * sum(range(5, 11))  # queries 0..5 stand at positions 4..9
    assert found.visible_pairs == pairs
    assert found.forward_flops == 2 * pairs * (8 + 5)
    assert found.backward_flops == 2 * pairs * (3 * 8 + 2 * 5)
    assert found.bytes_read == 4 * (Q.numel() + K.numel() + V.numel())
    assert found.bytes_written == 4 * 2 * 4 * 6 * (5 + 1)


@pytest.mark.parametrize("index", [int, np.int64])
def test_counts_where_queries_stand(index: type) -> None:
    """An offset counts, whichever type of integer it is; a tensor is not looked into."""
    offset = index(-2)
    assert explain(Q, K, V, Causal(), query_offset=offset).visible_pairs == 2 * 4 * (1 + 2 + 3 + 4)
    offsets = torch.tensor([-2, 0])
    pairs = explain(Q, K, V, Causal()).visible_pairs
    assert explain(Q, K, V, Causal(), query_offset=offsets).visible_pairs == pairs


def test_counts_with_tables(backend: Target) -> None:
    """A relative term is one more product forward and three backward; a value term one and two."""
    rel_k, rel_v = torch.zeros(1, 5, 8), torch.zeros(4, 5, 5)
    score = Relative(rel_k, rel_v, Q)
    found = explain(Q, K, V, Full(), score, backend=backend.name)
    pairs = 2 * 4 * 6 * 10
    assert found.visible_pairs == pairs
    assert found.forward_flops == 2 * pairs * (8 + 5 + 8 + 5)
    assert found.backward_flops == 2 * pairs * (3 * 8 + 2 * 5 + 3 * 8 + 2 * 5)
    inputs = (Q, K, V, rel_k, rel_v, Q)
    assert found.bytes_read == 4 * sum(x.numel() for x in inputs)


def test_memory(backend: Target) -> None:
    """Memory beside inputs and results grows with the length, and the reference's with its square."""
    power = 2 if backend.name == "reference" else 1
    found = []
    for length in (2048, 4096):
        x = torch.empty(1, 8, length, 64, device="meta").expand(2, -1, -1, -1)
        x = torch.zeros(64).expand(x.shape)  # the last dimension has no gaps: nothing is copied
        found.append(explain(x, x, x, Causal(), backend=backend.name))
    for name in ("forward_memory", "backward_memory"):
        small, large = (getattr(each, name) for each in found)
        on_chip = backend.name == "triton" and name == "forward_memory"
        assert large == 0 if on_chip else 0 < large <= small * 2**power


def test_canvas(backend: Target) -> None:
    """A 2-D geometry takes flattened canvases, as attention() does."""
    x = torch.zeros(1, 2, 12, 8)
    geometry = Local2d((3, 4), (2, 2), (1, 0))
    assert attention(x, x, x, geometry, backend=backend.name).shape == x.shape
    found = explain(x, x, x, geometry, backend=backend.name)
    assert found.visible_pairs == 2 * (8 * 6 + 4 * 4)  # rows 0..2 of two columns, rows 1..2 below


def test_readable(backend: Target) -> None:
    """Printed, each figure has a line."""
    lines = str(explain(Q, K, V, backend=backend.name)).splitlines()
    assert lines[0].split() == ["backend", backend.name]
    assert any(line.split()[:2] == ["forward", "flops"] for line in lines)


def test_errors_are_those_of_attention() -> None:
    """The same rules, the same messages."""
    with pytest.raises(ValueError, match=r"^k must have shape \[2, \*, \*, 8\] like q"):
        explain(Q, K[:1], V)
    with pytest.raises(RuntimeError, match=r'^backend="triton" '):  # the tensors are on the CPU
        explain(Q, K, V, backend="triton")


def test_arguments_are_those_of_attention() -> None:
    """Whatever attention() is called with, explain() takes, in the same order."""
    assert list(signature(explain).parameters) == list(signature(attention).parameters)
    assert explain(Q, K, V, return_lse=True) == explain(Q, K, V)
