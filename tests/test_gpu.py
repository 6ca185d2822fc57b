"""What a GPU has and a CPU has not: graphs, streams, a host that runs ahead, memory of its own."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from common import Inputs, Target, Variant, make_inputs, run
from test_torch import CAUSAL, RELATIVE, VARIANTS, inputs_of, with_entries
from torch import Tensor

from attn_kernels import attention
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
    __tracebackhide__ = True  # a report prints tensors, for which a fake GPU may take all memory
    assert [name for name, x in expected.items() if not torch.equal(found[name], x)] == []


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


def wait_for_autograd() -> None:
    """Autograd's thread lets go of gradients only after the caller has them, while that one goes
    on; but before it begins another backward."""
    torch.zeros(1, requires_grad=True).sum().backward()


@pytest.mark.parametrize("variant", [CAUSAL, VARIANTS[1], RELATIVE], ids=str)
def test_memory_is_linear(backend: Target, variant: Variant) -> None:
    """Twice the length takes twice the memory, not four times, forward and backward; nothing of
    Lq x Lk, nor of Lq x R where the table is that long (of which backward keeps 256 MB at most)."""
    extra = {}
    for length in (16384, 32768):
        if variant.table is not None:
            variant = replace(variant, table=replace(variant.table, rows=length + 1))
        inputs = make_inputs(variant, (length,), batch=1, heads=1, dim=16)
        compute(variant, inputs)
        wait_for_autograd()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        compute(variant, inputs)
        extra[length] = torch.cuda.max_memory_allocated() - before
    assert extra[32768] <= 2.1 * extra[16384]
    assert extra[32768] < 32768 * 32768 * 4 / 4


# --- Several GPUs ---

GPUS = torch.cuda.device_count()
SEVERAL = pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs, this machine has {GPUS or 'none'}")
OTHERS = range(1, torch.cuda.device_count())


def on_gpu(inputs: Inputs, number: int) -> Inputs:
    given = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    tensors = {name: x.to(f"cuda:{number}") for name, x in given.items() if isinstance(x, Tensor)}
    return replace(inputs, **tensors)


@SEVERAL
@pytest.mark.parametrize("name", CALLS)
def test_another_gpu_than_the_current(backend: Target, name: str) -> None:
    """Kernels run where their inputs are, in that GPU's current stream, forward and backward."""
    variant, inputs = call_of(name, seed=0)
    inputs = on_gpu(inputs, 1)
    with torch.cuda.device(1):
        expected = compute(variant, inputs)
        torch.cuda.synchronize()
    late = inputs.map(lambda x: torch.full_like(x, math.nan))
    with torch.cuda.stream(torch.cuda.Stream(1)), torch.cuda.device(0):
        with torch.cuda.device(1):
            torch.cuda._sleep(50_000_000)
            overwrite(late, inputs)
        found = compute(variant, late)
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(1)
    check_same(found, expected)


@SEVERAL
@pytest.mark.parametrize("variant", [CAUSAL, RELATIVE], ids=str)
def test_gpus_take_turns(backend: Target, variant: Variant) -> None:
    """What one GPU has prepared for a call serves no other one, of whatever architecture."""
    inputs = make_inputs(variant, (192,), dim=64, dtype=torch.bfloat16)
    found = [compute(variant, on_gpu(inputs, number)) for number in (0, 1, 0, 1)]
    check_same(found[2], found[0])
    check_same(found[3], found[1])


@SEVERAL
def test_compiled_for_another_gpu(backend: Target) -> None:
    """torch.compile holds a call for a GPU that is not the current one."""
    torch._dynamo.reset()
    variant, inputs = call_of("relative", seed=0)
    inputs = on_gpu(inputs, 1)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(leaves: Inputs, **options: object) -> tuple[Tensor, Tensor]:
        return variant(leaves, **options)

    found = run(compiled, inputs, backend="triton", return_lse=True)
    check_same(found, compute(variant, inputs))


@SEVERAL
def test_inputs_on_two_gpus(backend: Target) -> None:
    q, k = (torch.randn(1, 2, 8, 16, device=f"cuda:{number}") for number in (0, 1))
    with pytest.raises(ValueError, match="k must be on device cuda:0 like q, got cuda:1"):
        attention(q, k, k)


@SEVERAL
def test_every_gpu_is_asked_for_itself(backend: Target) -> None:
    """Configurations follow the GPU of the inputs, and one that is too old takes the reference."""
    from attn_kernels.triton.configs import arch_of
    from attn_kernels.triton.launch import multiprocessors

    for number in OTHERS:
        device = torch.device("cuda", number)
        found = torch.cuda.get_device_properties(device)
        assert arch_of(device) == 10 * found.major + found.minor
        assert multiprocessors(device) == found.multi_processor_count
        q = torch.randn(1, 2, 8, 16, device=device)
        if found.major >= 8:
            attention(q, q, q, backend="triton")
        else:
            with pytest.raises(NotImplementedError, match=f"8.0, got {found.name}"):
                attention(q, q, q, backend="triton")
