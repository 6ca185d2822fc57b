"""What a GPU has and a CPU has not: graphs, streams, a host that runs ahead, memory of its own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from common import Inputs, Target, Variant, make_inputs, run
from test_torch import CAUSAL, RELATIVE, VARIANTS, inputs_of, with_entries
from torch import Tensor

from attn_kernels.core.backends import status

TRITON = status("triton")
pytestmark = [
    pytest.mark.skipif(not TRITON.available, reason=f"Triton cannot run: {TRITON.reason}"),
    pytest.mark.parametrize("backend", [Target("triton")], ids=str),
]
CALLS = {
    **dict(zip(["causal", "local_1d", "local_2d", "relative", "pattern"], VARIANTS, strict=True)),
    "causal-entries": CAUSAL,
    "relative-entries": RELATIVE,
}


def call_of(name: str, seed: int) -> tuple[Variant, Inputs]:
    variant = CALLS[name]
    inputs = inputs_of(variant, seed=seed)
    return variant, with_entries(inputs) if "entries" in name else inputs


def compute(variant: Variant, inputs: Inputs) -> dict[str, Tensor]:
    return run(variant, inputs, backend="triton", return_lse=True)


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


def overwrite(inputs: Inputs, others: Inputs) -> None:
    """The same memory with other contents."""
    for name, x in inputs.tensors().items():
        x.copy_(others.tensors()[name])
    if inputs.key_lengths is not None:
        inputs.key_lengths.copy_(others.key_lengths)


@pytest.mark.parametrize("name", CALLS)
def test_cuda_graph(backend: Target, name: str) -> None:
    """A graph holds a call and its backward; replayed, they read what the inputs hold by then."""
    variant, inputs = call_of(name, seed=0)
    _, others = call_of(name, seed=1)
    others = replace(others, grad_out=inputs.grad_out, grad_lse=inputs.grad_lse)
    if others.key_lengths is not None:
        others = replace(others, key_lengths=others.key_lengths - 2)
    expected = compute(variant, others)  # and compiled: no graph can hold that
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compute(variant, inputs)
    overwrite(inputs, others)
    graph.replay()
    check_same(found, expected)


@pytest.mark.parametrize("name", CALLS)
def test_the_host_never_waits(backend: Target, name: str) -> None:
    """Neither a call nor its backward asks the GPU for anything: they only hand it work."""
    variant, inputs = call_of(name, seed=0)
    compute(variant, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        compute(variant, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CALLS)
def test_streams(backend: Target, name: str) -> None:
    """Kernels run in the caller's stream, behind the work that makes their inputs."""
    variant, inputs = call_of(name, seed=0)
    expected = compute(variant, inputs)
    late = inputs.map(lambda x: torch.full_like(x, math.nan))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # some 30 ms
        overwrite(late, inputs)
        found = compute(variant, late)
    torch.cuda.synchronize()
    check_same(found, expected)


@pytest.mark.parametrize("variant", [CAUSAL, VARIANTS[1], RELATIVE], ids=str)
def test_memory_is_linear(backend: Target, variant: Variant) -> None:
    """Twice the length takes twice the memory, not four times, forward and backward; nothing of
    Lq x Lk, nor of Lq x R where the table is that long (of which backward keeps 256 MB at most)."""
    extra = {}
    for length in (16384, 32768):
        if variant.table is not None:
            variant = replace(variant, table=replace(variant.table, rows=length + 1))
        inputs = make_inputs(variant, (length,), batch=1, heads=1, dim=16)
        for _ in range(2):  # what compiles keeps its tensors until the next call
            compute(variant, inputs)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        compute(variant, inputs)
        extra[length] = torch.cuda.max_memory_allocated() - before
    assert extra[32768] <= 2.1 * extra[16384]
    assert extra[32768] < 32768 * 32768 * 4 / 4
