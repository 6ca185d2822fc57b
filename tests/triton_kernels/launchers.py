"""What lies around the Triton kernels: torch's settings, odd layouts, lots, and the tuning cache.

pytest tests/triton_kernels/launchers.py      in a process of its own: tests/test_triton.py starts it
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import interpreter  # before triton and the kernels
import pytest
import torch
import triton
import triton.language as tl
from common import (
    Table,
    check_against_reference,
    last_dim_strided,
    run,
    run_truth,
    sequence_major,
)
from interpreted import (
    GROUPS,
    TRITON,
    Case,
    Launched,
    launched,
    small_tiles,
    variant,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.tools.tensor_descriptor import TensorDescriptor

from attn_kernels import Causal, Full, Local2d, Relative, attention, explain
from attn_kernels import triton as kernels
from attn_kernels.core.call import Call
from attn_kernels.score.base import Parts
from attn_kernels.triton import configs, launch_backward, prepared
from attn_kernels.triton import geometry as rules

__all__ = ["interpreter", "launched", "small_tiles"]  # two fixtures

# --- torch's setting for products of float32 ---


@pytest.fixture
def precision_is_put_back() -> Any:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def set_by_attribute(value: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = value


def set_by_function(value: str) -> None:
    torch.set_float32_matmul_precision("highest" if value == "ieee" else "high")


@pytest.mark.usefixtures("precision_is_put_back")
@pytest.mark.parametrize("setter", [set_by_attribute, set_by_function])
def test_precision(setter: Any, launched: list[Launched]) -> None:
    """Either way to set it counts, for float32 alone, and for the calls that come after it."""
    q = torch.randn(1, 1, 20, 16)
    for value, dtype, expected in (
        ("tf32", torch.float32, "tf32"),
        ("tf32", torch.bfloat16, "ieee"),
        ("ieee", torch.float32, "ieee"),
    ):
        setter(value)
        x = q.to(dtype).requires_grad_()
        launched.clear()
        attention(x, x, x, Causal(), backend="triton").sum().backward()
        found = {each.options["PRECISION"] for each in launched if "PRECISION" in each.options}
        assert found == {expected}, (value, dtype)


# --- Layouts ---


def odd_strides(x: Tensor) -> Tensor:
    """The same numbers; dimensions of one have strides that no tensor map takes."""
    steps = [step if n > 1 else 1 for n, step in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, steps)


def unaligned(x: Tensor) -> Tensor:
    """The same numbers, one element behind a multiple of 16 bytes."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


DESCRIBED = Case(Causal(), 40, dim=16, value_dim=32, described=True)


@pytest.mark.parametrize("case", [DESCRIBED], ids=str)
@pytest.mark.parametrize("name", ["q", "k", "v", "grad_out"])
def test_strides_of_dimensions_of_one(case: Case, name: str, launched: list[Launched]) -> None:
    """They lead nowhere: descriptors are made whatever they are."""
    inputs = case.inputs()
    inputs = inputs.map(lambda x: x[:1, :1].contiguous())
    inputs = replace(
        inputs, grad_out=inputs.grad_out[:1, :1], grad_lse=inputs.grad_lse[:1, :1].contiguous()
    )
    odd = odd_strides(getattr(inputs, name).contiguous())
    assert odd.is_contiguous()
    assert odd.stride()[:2] == (1, 1)
    check_against_reference(variant(Causal()), replace(inputs, **{name: odd}), TRITON)
    for each in launched:
        found = sum(isinstance(x, TensorDescriptor) for x in each.args)
        assert found == (0 if each.name == "prepare_kernel" else 2), each.name


@pytest.mark.parametrize("case", [DESCRIBED], ids=str)
def test_gradient_at_an_odd_address(case: Case) -> None:
    """A gradient that no descriptor can take where it lies is copied."""
    inputs = case.inputs()
    inputs = replace(inputs, grad_out=unaligned(inputs.grad_out))
    check_against_reference(variant(Causal()), inputs, TRITON)


@pytest.mark.parametrize("name", ["key_lengths", "query_offset"])
def test_entries_with_strides(name: str) -> None:
    """Lengths and offsets may be a column of something."""
    case = Case(Causal(), 20, 40, key_lengths=(13, 30), query_offset=(7, 11))
    inputs = case.inputs()
    column = getattr(inputs, name).repeat_interleave(2)[::2]
    assert column.stride() == (2,)
    check_against_reference(variant(Causal()), replace(inputs, **{name: column}), TRITON)


# --- Tables' gradients ---


@pytest.mark.parametrize("table", [Table(9), Table(5, rel_v="shared", q_rel=True)], ids=str)
@pytest.mark.parametrize("geometry", [Causal(), Full()], ids=str)
def test_lots_are_equal(
    geometry: Any, table: Table, monkeypatch: pytest.MonkeyPatch, launched: list[Launched]
) -> None:
    """Lots of query tiles differ by few; a lot may end inside a head, of which the last adds what
    lies beyond the table."""
    case = Case(geometry, 50, table=table)
    pitch = launch_backward.pitch_of(table.rows, configs.Config(16, 16, 4, 1))
    tile_bytes = (1 if table.rel_v is None else 2) * 4 * 16 * pitch
    monkeypatch.setattr(launch_backward, "SHEARED_BYTES", 6 * tile_bytes)
    check_against_reference(variant(case.geometry, case.table), case.inputs(), TRITON)
    counts = [x.grid[0] for x in launched if x.name == "grad_q_kernel"]
    assert max(counts) <= 6
    assert max(counts) - min(counts) <= 1
    # the second number of a grid is at most 65,535: it counts chunks of rows, not heads
    assert all(x.grid[1] == 1 for x in launched if x.name == "grad_table_kernel")


def test_edge_rows_of_large_gradients() -> None:
    """The row for all keys beyond a table is a sum in float32 that is scaled and rounded once."""
    case = Case(Causal(), 128, table=Table(16, rel_scale=2.0**-9), dim=16)
    inputs = case.inputs(torch.float16)
    silent = torch.zeros_like(inputs.grad_lse)
    inputs = replace(inputs, q=inputs.q.abs(), grad_out=inputs.grad_out * 8192, grad_lse=silent)
    call = variant(case.geometry, case.table)
    found = run(call, inputs, backend="triton", return_lse=True)["grad_rel_k"]
    truth = run_truth(call, inputs)["grad_rel_k"]
    assert truth.abs().max() < 6e4
    assert truth[:, 0].abs().max() * 2**9 > 7e4  # before it is scaled
    error = (found - truth).abs().max() / truth.abs().max()
    assert error < 1e-3, error


# --- What explain() promises ---


class Allocations(TorchDispatchMode):
    """The storages that torch's operators make within it, and the operators' names."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, Any] = {}
        self.made: dict[int, int] = {}  # bytes
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self.known.setdefault(x.untyped_storage()._cdata, x)
        result = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket.__name__)
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.known:
                self.known[x.untyped_storage()._cdata] = x  # kept, so that no other gets its place
                self.made[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return result

    def beside(self, *results: Tensor) -> int:
        """Bytes that are no result's."""
        return sum(self.made.values()) - sum(
            self.made.get(x.untyped_storage()._cdata, 0) for x in results
        )


PLANNED = [
    Case(Causal(), 8192, dim=128, value_dim=64),
    Case(Causal(), 1, 8192, k_heads=1),  # keys in parts
    Case(Causal(), 3, 9000, table=Table(300, rel_v="shared")),
    Case(Full(), 500, table=Table(31, beyond="zero", per_head=True)),
    Case(Full(), 500, table=Table(31, per_head=True, rel_v="per_head", q_rel=True)),
    Case(Causal(), 20000, table=Table(1000, rel_v="shared")),  # in lots
    Case(Causal(), 100, table=Table(1)),
    Case(Local2d((9, 7), (4, 5), (1, 3)), 63),
    Case(GROUPS, 200, 150, table=Table(81)),
    Case(Causal(), 0, 5, table=Table(3)),
    Case(Full(), 5, 0, table=Table(3, rel_v="shared")),
]


def without_memory(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


@pytest.mark.parametrize("layout", [sequence_major, last_dim_strided])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", PLANNED, ids=str)
def test_memory_is_what_explain_says(
    case: Case, dtype: torch.dtype, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte that the launchers allocate beside results, forward and backward; and torch itself
    multiplies no matrices there, which it might refuse to do deterministically."""
    monkeypatch.setattr(prepared, "run", lambda *args, **options: None)
    inputs = case.inputs(dtype)
    x = inputs.map(lambda x: without_memory(layout(x) if x.dim() == 4 else x))
    table = case.table
    score = table and Relative(x.rel_k, x.rel_v, x.q_rel, table.beyond)
    promised = explain(x.q, x.k, x.v, case.geometry, score, backend="triton")
    offset = case.geometry.default_offset(x.q.shape[2], x.k.shape[2])
    parts = score.parts(1.0) if score else Parts("", [], [], [])
    call = Call(
        x.q, x.k, x.v, parts.tensors, None, None, None, offset,
        f"triton {case.geometry.name} {parts.names}",
        [*case.geometry.extent(), *parts.integers], [1.0, *parts.numbers],
    )  # fmt: skip
    with Allocations() as seen:
        out, lse = kernels.fwd(*call)
    assert promised.forward_memory == seen.beside(out, lse)
    grad_out = torch.empty_like(out)
    with Allocations() as seen:
        *grads, grad_terms = kernels.bwd(grad_out, None, out, lse, *call)
    assert promised.backward_memory == seen.beside(*grads, *grad_terms)
    assert not {"bmm", "mm", "matmul"} & seen.names
    assert (promised.tile, promised.detail) == (16, "interpreter")
    if case == PLANNED[1]:
        assert promised.key_splits == 2
        assert promised.forward_memory > 0


# --- Names of geometries ---


@triton.jit
def queries_kernel(out_ptr, GEOMETRY: tl.constexpr):
    start, _ = rules.queries_of(tl.program_id(0), 0, 0, 5, (3,), GEOMETRY)
    tl.store(out_ptr, start)


@triton.jit
def mask_kernel(out_ptr, GEOMETRY: tl.constexpr):
    if rules.has_low(GEOMETRY):
        tl.store(out_ptr, 1)


def test_an_unknown_geometry_is_no_other() -> None:
    """A name without rules raises, on the host and when a kernel is compiled."""
    with pytest.raises(ValueError, match=r"^geometry must be full, causal, .*, got 'ring'$"):
        rules.kind("ring", (1,))
    for ask in (rules.is_causal, lambda name: rules.keys_end(name, (1,), 3, 9)):
        with pytest.raises(ValueError, match=r"^GEOMETRY must be one of full, .*, got 'ring'$"):
            ask("ring")
    for kernel in (queries_kernel, mask_kernel):
        with pytest.raises(Exception, match=r"ring|queries_of has no rule"):
            kernel[(1,)](torch.zeros(1, dtype=torch.int32), GEOMETRY="ring")


# --- Tuning ---

KIND = configs.Kind("forward", 90, 64, 2, "causal", "none", False, 128)
ROWS = [configs.Config(16, 16, 4, 1), configs.Config(32, 32, 4, 1), configs.Config(64, 32, 4, 1)]
TIMES = {16: 3.0, 32: 1.0, 64: 2.0}  # milliseconds by block_q


def never(config: configs.Config) -> None:
    raise AssertionError("nothing is timed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a device that takes TIMES."""
    monkeypatch.setenv("ATTN_KERNELS_TUNE", "1")
    monkeypatch.setenv("ATTN_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(configs, "candidates", lambda kind: ROWS)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(triton.testing, "do_bench", lambda step, **options: step())
    forget()
    return tmp_path


def forget() -> None:
    """As a new process does."""
    configs.FOUND.clear()
    configs.WARNED.clear()


def takes(config: configs.Config) -> float:
    return TIMES[config.block_q]


def search_twice() -> configs.Config:
    """For two keys, with one answer."""
    first, second = (
        configs.choose(KIND, lambda extra=extra: extra, takes) for extra in ("here", "there")
    )
    assert first == second
    return first


def test_the_fastest_is_found_once(folder: Path) -> None:
    """The search takes the fastest candidate; afterwards memory answers, or the disk."""
    assert configs.choose(KIND, lambda: "here", takes) == ROWS[1]
    assert configs.choose(KIND, lambda: "here", never) == ROWS[1]
    forget()
    assert configs.choose(KIND, lambda: "here", never) == ROWS[1]
    (path,) = (folder / "triton").iterdir()
    assert json.loads(path.read_text()) == {"key": f"{KIND} here", "config": asdict(ROWS[1])}


BAD = {
    "not json": "not json",
    "a list": "[1, 2]",
    "no row": '{"key": 1}',
    "another release's": {"config": asdict(ROWS[1]) | {"clusters": 2}},
    "an older release's": {"config": {"block_q": 32, "block_k": 32}},
    "a size that is no number": {"config": asdict(ROWS[1]) | {"block_q": "32"}},
    "a size that is no power of 2": {"config": asdict(ROWS[1]) | {"block_q": 48}},
    "a size that does not fit": {"config": asdict(ROWS[1]) | {"block_q": 4096}},
    "no warps": {"config": asdict(ROWS[1]) | {"num_warps": 0}},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_cache_is_ignored(folder: Path, bad: Any) -> None:
    """With one warning, whatever stands there; the search runs again and mends it."""
    search_twice()
    for path in (folder / "triton").iterdir():
        key = json.loads(path.read_text())["key"]
        path.write_text(bad if isinstance(bad, str) else json.dumps({"key": key} | bad))
    forget()
    with pytest.warns(UserWarning, match="what is bad in .* is ignored") as seen:
        assert search_twice() == ROWS[1]
    assert len(seen) == 1
    forget()
    assert configs.choose(KIND, lambda: "here", never) == ROWS[1]


def test_a_cache_that_cannot_be_written(folder: Path) -> None:
    """One warning; this process remembers what it has found."""
    (folder / "triton").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="ATTN_KERNELS_CACHE") as seen:
        assert search_twice() == ROWS[1]
    assert len(seen) == 1
    assert configs.choose(KIND, lambda: "here", never) == ROWS[1]


def search_apart(folder: str, names: list[str], ready: Any) -> None:
    """What a rank does."""
    ready.wait()
    for name in names:
        configs.remember(configs.cache_path(f"{KIND} {name}"), f"{KIND} {name}", ROWS[1])


def test_ranks_keep_each_others_rows(folder: Path) -> None:
    """Processes that search at the same time lose nothing of what the others found."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    names = [[f"{rank} {i}" for i in range(30)] for rank in range(3)]
    ranks = [context.Process(target=search_apart, args=(str(folder), x, ready)) for x in names]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    forget()
    for name in itertools.chain(*names):
        assert configs.choose(KIND, lambda name=name: name, never) == ROWS[1]


@pytest.mark.parametrize(
    "error",
    [triton.runtime.errors.OutOfResources(2, 1, "shared memory"), RuntimeError("ptxas failed")],
    ids=["resources", "compiler"],
)
def test_a_candidate_that_fails_is_none(folder: Path, error: Exception) -> None:
    """The others are timed; that a device has too little for one is no news, the rest is."""

    def launch_one(config: configs.Config) -> float:
        if config == ROWS[1]:
            raise error
        return takes(config)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert configs.choose(KIND, lambda: "here", launch_one) == ROWS[2]
    assert [str(error) in str(x.message) for x in seen] == [True] * (type(error) is RuntimeError)


def test_a_call_of_which_all_candidates_fail(folder: Path) -> None:
    """It is launched with the default, and that raises the reason; nothing is kept."""

    def fail(config: configs.Config) -> None:
        raise triton.runtime.errors.OutOfResources(2, 1, "shared memory")

    assert configs.choose(KIND, lambda: "here", fail) == ROWS[0]
    assert not (folder / "triton").exists()
