"""The Triton kernels in Triton's interpreter, against the float64 reference, on small odd shapes.

pytest tests/triton_kernels/interpreted.py        in a process of its own: tests/test_triton.py starts it

The public functions run with backend="triton" on CPU tensors; memory is poisoned (conftest.py), every
access is checked to lie in its own tensor, and programs not to touch each other's results.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import interpreter  # before triton and the kernels

_kept = interpreter.install_backend()

import pytest
import torch
import triton
import triton.language as tl
from common import (
    Inputs,
    Table,
    Target,
    Variant,
    check_against_reference,
    last_dim_strided,
    make_inputs,
    pairs,
    run,
    run_truth,
    sequence_major,
    with_gaps,
)
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, Relative, Window, attention
from attn_kernels.core.geometry import Geometry
from attn_kernels.triton import configs, launch, launch_backward, prepared
from attn_kernels.triton import geometry as rules

TRITON = Target("triton")


def variant(geometry: Geometry, table: Table | None = None) -> Variant:
    """attention() with this geometry, and these tables."""

    def call(x: Inputs, **options: Any) -> Any:
        score = None
        if table is not None:
            score = Relative(x.rel_k, x.rel_v, x.q_rel, table.beyond, table.rel_scale)
        return attention(x.q, x.k, x.v, geometry, score, **options)

    return Variant(repr(geometry), call, lambda _: geometry, table)


@dataclass(frozen=True)
class Case:
    """One call and how its kernels are cut."""

    geometry: Geometry
    q_len: int
    k_len: int | None = None
    table: Table | None = None
    block: tuple[int, int] = (16, 16)
    k_heads: int = 1
    dim: int = 24
    value_dim: int = 16
    key_lengths: tuple[int, ...] | None = None
    query_offset: int | tuple[int, ...] | None = None
    scale: float | None = None
    late: bool = False
    described: bool = False
    whole: bool = False

    def __str__(self) -> str:
        parts = [self.geometry, self.table, f"{self.q_len}-{self.k_len}", self.key_lengths]
        return " ".join(str(x) for x in (*parts, self.query_offset) if x is not None)

    def inputs(self, dtype: torch.dtype = torch.float32) -> Inputs:
        lengths = (self.q_len,), (self.k_len or self.q_len,)
        inputs = make_inputs(
            variant(self.geometry, self.table), *lengths, k_heads=self.k_heads,
            dim=self.dim, value_dim=self.value_dim, dtype=dtype,
        )  # fmt: skip
        offset, entries = self.query_offset, self.key_lengths
        if isinstance(offset, tuple):
            offset = torch.tensor(offset)
        entries = None if entries is None else torch.tensor(entries, dtype=torch.int32)
        return replace(inputs, key_lengths=entries, query_offset=offset)


PLAIN = [
    Case(Full(), 37),
    Case(Full(), 19, 40, key_lengths=(0, 33), k_heads=2),
    Case(Causal(), 50, k_heads=2),
    Case(Causal(), 33, 50, block=(16, 32), dim=80, value_dim=5),
    Case(Causal(), 40, 17),  # rows without keys
    Case(Causal(), 20, 40, query_offset=(2**40, -(2**40))),
    Case(Causal(), 20, 40, query_offset=(2**63 - 1, -(2**63))),
    Case(Causal(2**62), 20, 40, query_offset=(2**63 - 1, 5), key_lengths=(-3, 40)),
    Case(Causal(), 20, 40, query_offset=7, key_lengths=(13, 90)),
    Case(Causal(), 40, scale=-0.3),
    Case(Causal(), 20, scale=0.0),
    Case(Causal(1), 20),
    Case(Causal(21), 70, block=(32, 16)),
    Case(Window(9, 6), 50),
    Case(Window(0, 20), 40, 60, block=(16, 32), k_heads=1, key_lengths=(60, 35)),
    Case(Window(None, 5), 40, 45, query_offset=(3, 2**35)),
    Case(Window(30, None), 33, query_offset=(-9, 20)),
    Case(Local1d(16, 8), 50),
    Case(Local1d(7, 9, 3, causal=False), 50, block=(16, 32)),
    Case(Local1d(30, 0), 40, 45, query_offset=(3, 2**35)),
    Case(Local1d(7, 2**60, 2**60, causal=False), 40, query_offset=(2**63 - 1, -(2**63))),
    Case(Local2d((7, 9), (4, 4), (2, 2)), 63),
    Case(Local2d((9, 7), (4, 5), (1, 3)), 63, block=(16, 32), k_heads=2),
    Case(Local2d((5, 12), (5, 6), (0, 8), True), 60, key_lengths=(60, 31)),
    Case(Local2d((12, 5), (3, 2), (4, 1), True), 60),
    Case(Local2d((3, 20), (3, 10), (3, 5)), 60, key_lengths=(25, 0)),
    # a block's queries end before the room that they have
    Case(Local2d((11, 8), (6, 6), (2, 3)), 88),
    Case(Local2d((8, 11), (6, 6), (3, 2), True), 88, k_heads=2),
]  # fmt: skip
LATE = [replace(case, late=True) for case in PLAIN if not isinstance(case.geometry, Local2d)]
DESCRIBED = [replace(case, dim=16, value_dim=32, described=True) for case in LATE]
RELATIVE = [
    # a table that ends before the farthest key, at it, behind it
    Case(Causal(), 50, table=Table(9), k_heads=2),
    Case(Causal(), 50, table=Table(9, beyond="zero", rel_v="shared")),
    Case(Causal(), 40, table=Table(40, per_head=True)),
    Case(Causal(), 35, table=Table(70, rel_v="per_head")),
    Case(Full(), 50, table=Table(7, rel_v="shared")),
    Case(Full(), 40, 50, table=Table(21, beyond="zero"), block=(16, 32)),
    Case(Full(), 37, table=Table(1, per_head=True, rel_v="shared"), key_lengths=(37, 20)),
    Case(Causal(21), 50, table=Table(12, q_rel=True, rel_scale=-0.4, rel_v="shared")),
    Case(Window(20, 12), 60, table=Table(41, per_head=True)),
    Case(Window(25, 30), 60, table=Table(15, rel_v="shared", q_rel=True), block=(16, 32)),
    Case(Window(40, 7), 60, table=Table(9, beyond="zero")),
    Case(Local1d(16, 8, 8, causal=False), 50, table=Table(17, rel_scale=0.7)),
    Case(Local1d(20, 10), 45, table=Table(30, q_rel=True, beyond="zero")),
    Case(Causal(), 70, table=Table(20, rel_v="shared"), block=(32, 16)),
    Case(Causal(), 70, table=Table(20, rel_v="shared"), block=(32, 16), k_heads=2),
    Case(Full(), 50, 60, table=Table(41, q_rel=True), block=(32, 16)),
    # two chunks carried, in both places (score.py); packed heads would take half the positions
    Case(Causal(), 70, table=Table(20), block=(32, 16), k_heads=2),
    Case(Causal(), 70, table=Table(20), block=(32, 16), k_heads=2, dim=80),
    # keys that end, inside a step, before the table begins (wrote outside of its scratch, once)
    Case(Causal(), 50, table=Table(9), key_lengths=(20, 15)),
    Case(Causal(), 40, 23, table=Table(5, beyond="zero", rel_v="shared"), query_offset=60),
    Case(Full(), 50, 27, table=Table(7, rel_v="per_head"), query_offset=(40, -70)),
    Case(Full(), 20, 27, table=Table(7), query_offset=(2**63 - 1, -(2**63))),
    Case(Causal(50), 70, table=Table(9, q_rel=True), key_lengths=(70, 25), block=(32, 16)),
    # the last far key lies on the table's first row, which then is nobody else's (a fixed bug)
    Case(Causal(), 60, 80, table=Table(9, rel_v="shared"), block=(16, 32), query_offset=(7, -9)),
]

WHOLE = [replace(case, whole=True) for case in RELATIVE]
LATE_RELATIVE = [replace(case, late=True) for case in RELATIVE]
DESCRIBED_RELATIVE = [
    replace(case, dim=16, value_dim=32, late=late, described=True, whole=whole)
    for case, late, whole in zip(
        RELATIVE, itertools.cycle([True, True, False]), itertools.cycle([True, False])
    )
]


def window_of_groups(i: Tensor, j: Tensor) -> Tensor:
    """A prefix and three groups of 64 keys: tiles that are seen in full, in part and by nobody."""
    return (j < 20) | ((i // 64 - j // 64).abs() < 2) & (j != 140)


def scattered(i: Tensor, j: Tensor) -> Tensor:
    """Without order; rows and keys that see and are seen by nobody among them."""
    return ((i * 7919 + j * 104729 + i * j) % 97 < 20) & (i % 11 != 3) & (j % 13 != 5)


GROUPS = Pattern.from_function(window_of_groups, 200, 150)
SCATTERED = Pattern.from_function(scattered, 90, 100)
NOTHING = Pattern.from_mask(torch.zeros(70, 70, dtype=torch.bool))
PATTERNS = [
    Case(GROUPS, 200, 150, block=(32, 64)),
    Case(GROUPS, 130, 140, block=(64, 64), k_heads=2, key_lengths=(140, 90), query_offset=21),
    Case(GROUPS, 5, 145),
    Case(SCATTERED, 90, 100, block=(16, 64), k_heads=2),
    Case(SCATTERED, 70, 90, block=(64, 32), query_offset=(20, 3)),
    Case(SCATTERED, 40, 60, query_offset=(-30, 2**40)),
    Case(SCATTERED, 40, 60, query_offset=(2**63 - 1, -(2**63))),
    Case(NOTHING, 70, block=(64, 64)),
]
RELATIVE_PATTERNS = [
    Case(GROUPS, 200, 150, table=Table(81, rel_v="shared"), block=(32, 64)),
    Case(GROUPS, 100, 140, table=Table(9, q_rel=True, rel_scale=-0.4), block=(16, 64)),
    Case(SCATTERED, 70, 90, table=Table(201, per_head=True), block=(32, 32), k_heads=2),
    Case(SCATTERED, 70, 90, table=Table(31, beyond="zero", rel_v="shared"), block=(32, 64)),
    Case(SCATTERED, 40, 50, table=Table(1), key_lengths=(50, 33), query_offset=17),
]
# every tensor there is, both ends of the table, more than one tile
SMALL = Case(Full(), 20, table=Table(7, q_rel=True, rel_v="shared"))
SMALL_BFLOAT16 = [
    PLAIN[3],
    PLAIN[12],
    PLAIN[16],
    RELATIVE[2],
    SMALL,
    PATTERNS[3],
    RELATIVE_PATTERNS[3],
]


@pytest.fixture(autouse=True)
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case's tile sizes for every kernel, so that small shapes have many tiles."""
    prepared.known.cache_clear()  # launches of other tiles, or of what a test replaces
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    block = case.block if isinstance(case, Case) else (16, 16)
    how = (case.late, case.described, case.whole) if isinstance(case, Case) else ()

    def candidates(kind: configs.Kind) -> list[configs.Config]:
        most = configs.band_chunks(kind) * block[1] if kind.relative else block[0]
        return [configs.Config(min(block[0], most), block[1], 4, 1, *how)]

    monkeypatch.setattr(configs, "candidates", candidates)


class Launched(NamedTuple):
    """One launch of a kernel."""

    name: str
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launched]:
    """What the test launches, in order."""
    seen, real = [], prepared.run

    def record(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        seen.append(Launched(kernel.fn.__name__, grid, args, options))
        real(kernel, grid, *args, **options)

    monkeypatch.setattr(prepared, "run", record)
    return seen


@pytest.mark.parametrize("case", PLAIN + RELATIVE + WHOLE + PATTERNS + RELATIVE_PATTERNS, ids=str)
def test_values_and_gradients(case: Case) -> None:
    """out, lse and every gradient, lse's included, are as accurate as eager float32."""
    options = {} if case.scale is None else {"scale": case.scale}
    check_against_reference(variant(case.geometry, case.table), case.inputs(), TRITON, **options)


@pytest.mark.parametrize("case", LATE + DESCRIBED + LATE_RELATIVE + DESCRIBED_RELATIVE, ids=str)
def test_late_and_described_values(case: Case, launched: list[Launched]) -> None:
    """Values added one step late, rows by descriptors: every phase may be empty, one step long, or
    more."""
    options = {} if case.scale is None else {"scale": case.scale}
    call = variant(case.geometry, case.table)
    check_against_reference(call, case.inputs(), TRITON, gradients=case.described, **options)
    assert launched[0].options["LATE"] == case.late
    for kernel in launched:
        descriptors = [x for x in kernel.args if isinstance(x, TensorDescriptor)]
        one_end = case.key_lengths is None and not isinstance(case.query_offset, tuple)
        described = case.described and kernel.name in (
            "attention_fwd_kernel", "grad_kv_kernel", one_end and "grad_q_kernel"
        )  # fmt: skip
        assert len(descriptors) == (2 if described else 0), kernel.name


@pytest.mark.parametrize("case", [DESCRIBED[2]], ids=str)
def test_gradient_of_one_row(case: Case, launched: list[Launched]) -> None:
    """A gradient whose rows are one in memory, as of a sum over rows, gets memory of its own."""
    inputs = case.inputs()
    inputs = replace(inputs, grad_out=inputs.grad_out[:, :, :1].expand_as(inputs.grad_out))
    check_against_reference(variant(case.geometry), inputs, TRITON)
    (kernel,) = (x for x in launched if x.name == "grad_kv_kernel")
    descriptors = [x for x in kernel.args if isinstance(x, TensorDescriptor)]
    assert len(descriptors) == 2
    assert all(launch.describable(x.base) for x in descriptors)


@pytest.mark.parametrize("case", [RELATIVE[4], WHOLE[4]], ids=str)
def test_faint_keys_beyond_the_table(case: Case) -> None:
    """The term of keys beyond the table may be far from all other logits: these keep their digits,
    though it is taken from the maximum instead of being added to every score."""
    inputs = case.inputs()
    tables = inputs.rel_k.clone()
    tables[:, [0, -1]] = -3e4
    inputs = replace(inputs, q=inputs.q.abs(), rel_k=tables)
    check_against_reference(variant(case.geometry, case.table), inputs, TRITON, gradients=False)


@pytest.mark.parametrize("case", [PLAIN[0], LATE[0], DESCRIBED[0]], ids=str)
def test_no_keys(case: Case) -> None:
    """A descriptor of nothing does not exist."""
    inputs = case.inputs()
    inputs = replace(inputs, k=inputs.k[:, :, :0], v=inputs.v[:, :, :0])
    results = run(variant(case.geometry), inputs, backend="triton", return_lse=True)
    assert (results.pop("lse") == -math.inf).all()
    assert all((x == 0).all() for x in results.values())


@pytest.mark.parametrize("tiles", [2])  # of a head's 3
def test_sheared_scores_in_lots(
    tiles: int, monkeypatch: pytest.MonkeyPatch, launched: list[Launched]
) -> None:
    """Tables' gradients are summed over lots of query tiles; a lot may end inside a head."""
    case = RELATIVE[3]
    pitch = launch_backward.pitch_of(70, configs.Config(16, 16, 4, 1))
    assert pitch == 160  # of 70 rows and the margins 144, and at most a quarter more
    tile_bytes = 2 * 4 * 16 * pitch  # two tables, float32
    monkeypatch.setattr(launch_backward, "SHEARED_BYTES", tiles * tile_bytes)
    check_against_reference(variant(case.geometry, case.table), case.inputs(), TRITON)
    counts = [x.grid[0] for x in launched if x.name == "grad_q_kernel"]
    assert max(counts) == tiles < sum(counts)


@pytest.mark.parametrize("case", SMALL_BFLOAT16, ids=str)
def test_bfloat16(case: Case) -> None:
    """The same in bfloat16: products of its values, float32 sums, one rounding."""
    check_against_reference(variant(case.geometry, case.table), case.inputs(torch.bfloat16), TRITON)


@pytest.mark.parametrize("layout", [sequence_major, with_gaps, last_dim_strided])
@pytest.mark.parametrize("case", [PLAIN[11], SMALL], ids=str)
def test_strided_inputs(case: Case, layout: Any) -> None:
    """Any strides; gaps in memory hold NaN and are never read."""
    inputs = case.inputs()
    inputs = replace(inputs.map(layout), grad_out=layout(inputs.grad_out))
    check_against_reference(variant(case.geometry, case.table), inputs, TRITON)


@pytest.mark.parametrize("table", [None, Table(9, rel_v="shared")], ids=["plain", "relative"])
@pytest.mark.parametrize("splits", [2, 3, 7])
def test_split_keys(
    table: Table | None, splits: int, monkeypatch: pytest.MonkeyPatch, launched: list[Launched]
) -> None:
    """Few queries: heads of a group share a tile, keys are cut in parts, empty ones included."""
    monkeypatch.setattr(launch, "split_count", lambda *args: splits)
    case = Case(Causal(70), 3, 90, table, key_lengths=(90, 30))
    inputs = replace(
        case.inputs(),
        **{name: x.repeat(1, 2, *[1] * (x.dim() - 2)) for name, x in (
            ("q", case.inputs().q), ("grad_out", case.inputs().grad_out),
            ("grad_lse", case.inputs().grad_lse))},
    )  # fmt: skip
    check_against_reference(variant(case.geometry, table), inputs, TRITON, gradients=False)
    forward, merge = launched
    assert forward.grid[1] == splits
    assert forward.options["PACKED"]
    assert merge.name == "merge_splits_kernel"


@pytest.mark.parametrize("splits", [2, 5])
def test_split_keys_of_a_pattern(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the tiles in order, of which some are seen in full."""
    monkeypatch.setattr(launch, "split_count", lambda *args: splits)
    case = Case(GROUPS, 5, 145, k_heads=2, key_lengths=(145, 90), query_offset=(0, 60))
    call = variant(case.geometry)
    check_against_reference(call, case.inputs(), TRITON, gradients=False)


@pytest.mark.parametrize("table", [None, Table(9, rel_v="shared")], ids=["plain", "relative"])
def test_unseen_keys_of_a_pattern(table: Table | None) -> None:
    """NaN where a key is seen by nobody, or only by rows that this call does not have."""
    case = Case(SCATTERED, 20, 90, table, query_offset=70)
    inputs = case.inputs()
    seen = SCATTERED.visible(torch.arange(70, 90).unsqueeze(1), torch.arange(90)).any(0)
    assert seen.any()
    assert not seen.all()
    spoilt = inputs.map(torch.clone)
    spoilt.k[:, :, ~seen] = math.nan
    spoilt.v[:, :, ~seen] = math.inf
    call = variant(case.geometry, table)
    expected = run(call, inputs, backend="triton", return_lse=True)
    actual = run(call, spoilt, backend="triton", return_lse=True)
    for name, x in expected.items():
        assert torch.equal(x, actual[name]), name


UNSEEN = [
    PLAIN[4], PLAIN[18], SMALL, DESCRIBED[1], DESCRIBED[4], DESCRIBED[10], DESCRIBED_RELATIVE[0],
    DESCRIBED_RELATIVE[4],
]  # fmt: skip


@pytest.mark.parametrize("case", UNSEEN, ids=str)
def test_unseen_keys_may_hold_anything(case: Case) -> None:
    """NaN in keys and values that nobody sees reaches neither outputs nor gradients, also where
    descriptors read whole tiles."""
    case = replace(case, key_lengths=case.key_lengths or (20, 15))
    inputs = case.inputs()
    spoilt = inputs.map(torch.clone)
    for entry, length in enumerate(case.key_lengths):
        spoilt.k[entry, :, length:] = math.nan
        spoilt.v[entry, :, length:] = math.inf
    call = variant(case.geometry, case.table)
    expected = run(call, inputs, backend="triton", return_lse=True)
    actual = run(call, spoilt, backend="triton", return_lse=True)
    for name, x in expected.items():
        assert torch.equal(x, actual[name]), name


AROUND = [
    Case(geometry, 20, 70, table, query_offset=offset, dim=16, value_dim=32, late=described,
         described=described)
    for described in (False, True)
    for geometry in (Causal(), Causal(21), Local1d(16, 8), Local1d(16, 4, 6, causal=False))
    for table in (None, Table(9, rel_v="shared"))
    for offset in (25, (25, 9))
]  # fmt: skip


@pytest.mark.parametrize("case", AROUND, ids=str)
def test_keys_around_the_queries_may_hold_anything(case: Case) -> None:
    """The same of keys before the first query's and behind the last's, in a cache for example."""
    inputs = case.inputs()
    call = variant(case.geometry, case.table)
    seen = pairs(call, inputs)[0].any(-2).unsqueeze(-1)
    assert not seen.all()
    spoilt = replace(
        inputs,
        k=torch.where(seen, inputs.k, math.nan),
        v=torch.where(seen, inputs.v, math.nan),
    )
    expected = run(call, inputs, backend="triton", return_lse=True)
    actual = run(call, spoilt, backend="triton", return_lse=True)
    for name, x in expected.items():
        assert torch.equal(x, actual[name]), name


@pytest.mark.parametrize("case", [Case(Causal(), 40), SMALL], ids=str)
def test_extreme_logits(case: Case) -> None:
    """Logits of thousands: the maximum is subtracted before 2 to the power of anything."""
    inputs = replace(case.inputs(), q=case.inputs().q * 300)
    call = variant(case.geometry, case.table)
    actual = run(call, inputs, backend="triton", return_lse=True)
    truth = run_truth(call, inputs)
    for name, x in actual.items():
        assert x.isfinite().all(), name
        assert (x - truth[name]).abs().max() <= 2e-3 * truth[name].abs().max(), name


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_empty(shape: tuple[int, int]) -> None:
    """No queries, no keys: zeros, and gradients of zeros."""
    inputs = make_inputs(variant(Full(), Table(3)), (shape[0],), (shape[1],))
    results = run(variant(Full(), Table(3)), inputs, backend="triton", return_lse=True)
    for name, x in results.items():
        assert (x == (-math.inf if name == "lse" else 0)).all(), name


def test_results_repeat() -> None:
    """The same bits twice, gradients of tables included."""
    case = SMALL
    first, second = (
        run(variant(case.geometry, case.table), case.inputs(), backend="triton", return_lse=True)
        for _ in range(2)
    )
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


# --- Prepared launches ---


def test_what_was_prepared_for_another_call() -> None:
    """Calls that differ in one thing each, one after the other: none may launch for another."""
    base = Case(Full(), 20, 24, Table(9, q_rel=True), dim=16)
    table = base.table
    cases = [
        base,
        replace(base, scale=0.3),
        replace(base, q_len=19),
        replace(base, k_len=23, query_offset=4),
        replace(base, query_offset=2),
        replace(base, query_offset=(2, 5)),
        replace(base, key_lengths=(24, 11)),
        replace(base, k_heads=2),
        replace(base, value_dim=24),
        replace(base, geometry=Causal(30), query_offset=4),
        replace(base, geometry=Causal(7), query_offset=4),
        replace(base, table=replace(table, beyond="zero")),
        replace(base, table=replace(table, rel_scale=-0.4)),
        replace(base, table=replace(table, per_head=True)),
        replace(base, table=replace(table, q_rel=False)),
        replace(base, table=replace(table, rel_v="shared")),
        replace(base, table=replace(table, rel_v="per_head")),
    ]
    for case in cases:
        options = {} if case.scale is None else {"scale": case.scale}
        call = variant(case.geometry, case.table)
        check_against_reference(call, case.inputs(), TRITON, **options)
    inputs = base.inputs()
    inputs = replace(inputs, grad_out=sequence_major(inputs.grad_out))
    for x in (inputs, inputs.map(sequence_major)):
        check_against_reference(variant(base.geometry, table), x, TRITON)
    assert prepared.known.cache_info().currsize > len(cases)
    check_against_reference(variant(base.geometry, table), base.inputs(torch.bfloat16), TRITON)


def test_prepared_arguments_wait_for_tensors_only() -> None:
    """The same call again prepares nothing; another dtype, stride or alignment does."""
    q = torch.randn(1, 2, 20, 16)
    for _ in range(2):
        attention(q, q, q, Causal(), backend="triton")
        assert prepared.known.cache_info().currsize == 1
    unaligned = torch.randn(q.numel() + 1)[1:].view(q.shape)
    assert unaligned.stride() == q.stride()
    for x in (q.bfloat16(), sequence_major(q), unaligned):
        attention(q.to(x.dtype), x, q.to(x.dtype), Causal(), backend="triton")
    assert prepared.known.cache_info().currsize == 4


def test_a_compiled_kernel_gets_all_arguments() -> None:
    """The first launch goes through Triton's search; later ones give its result every parameter."""
    launches = []

    class Kernel:
        arg_names = ("x_ptr", "y_ptr", "n", "DIM", "BLOCK")

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def start(*args: Any, **options: Any) -> Compiled:
                launches.append((grid, args, options))
                return Compiled()

            return start

    class Compiled:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args: launches.append((grid, args))

    launch_of = prepared.Launch(Kernel(), (7, 2), 5, BLOCK=16, DIM=64, num_warps=4)
    for tensors in (("x", "y"), ("z", None)):
        launch_of(*tensors)
    assert launches == [
        ((7, 2), ("x", "y", 5), {"BLOCK": 16, "DIM": 64, "num_warps": 4}),
        ((7, 2, 1), ("z", None, 5, 64, 16)),
    ]


# --- The rules of the geometries ---


@triton.jit
def query_tile_kernel(
    spans_ptr, index_ptr, position_ptr, range_ptr, q_len, k_len, offset, extent, group,
    GEOMETRY: tl.constexpr, PACKED: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What query_tile says of every tile, and the positions of BLOCK_K keys."""
    tile = tl.program_id(0)
    index, exists, member, _, _, low, high, start, stop, full_start, full_stop, places = (
        rules.query_tile(tile, q_len, k_len, offset, extent, group, None, GEOMETRY, PACKED, BLOCK_Q)
    )
    row = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    tl.store(index_ptr + row, tl.where(exists, index * group + member, -1))
    tl.store(spans_ptr + 2 * row, low)
    tl.store(spans_ptr + 2 * row + 1, high)
    numbers = tl.arange(0, BLOCK_K)
    position = rules.key_position(numbers, places, extent, GEOMETRY)
    tl.store(position_ptr + tile * BLOCK_K + numbers, position)
    tl.store(range_ptr + tile * 4, start)
    tl.store(range_ptr + tile * 4 + 1, stop)
    tl.store(range_ptr + tile * 4 + 2, full_start)
    tl.store(range_ptr + tile * 4 + 3, full_stop)


MIRRORED = [
    (Full(), 20, 30, 0), (Causal(), 20, 30, 10), (Causal(), 30, 20, -10), (Causal(5), 20, 30, 4),
    (Causal(50), 20, 30, 45), (Window(4, 6), 30, 30, -9), (Window(0, 3), 20, 30, 12),
    (Local1d(7, 3), 30, 30, 0), (Local1d(7, 3, 4, False), 30, 30, -9),
    (Local1d(4, 9, 0, False), 20, 30, 12), (Local1d(40, 2), 20, 30, 10),
    (Local2d((5, 7), (2, 3), (1, 2)), 35, 35, 0), (Local2d((7, 5), (3, 2), (0, 4)), 35, 35, 0),
    (Local2d((5, 7), (2, 3), (1, 2), True), 35, 35, 0),
    (Local2d((7, 5), (4, 4), (5, 1), True), 35, 35, 0),
]  # fmt: skip


@pytest.mark.parametrize("k_end", [None, 17], ids=["whole", "shorter"])
@pytest.mark.parametrize(
    ("geometry", "q_len", "k_len", "offset"), MIRRORED, ids=lambda x: repr(x).replace(" ", "")
)
def test_query_tiles_mirror_the_geometry(
    geometry: Geometry, q_len: int, k_len: int, offset: int, k_end: int | None
) -> None:
    """Every query appears once and its span is exactly the keys it sees; full ranges do not lie."""
    kind, extent = rules.kind(geometry.name, geometry.extent())
    length = k_len if k_end is None else k_end
    visible = geometry.visible(torch.arange(q_len).view(-1, 1) + offset, torch.arange(k_len)) & (
        torch.arange(k_len) < length
    )
    if not geometry.two_dimensional:
        end = rules.keys_end(kind, extent, q_len - 1 + offset, length)
        assert end == max(visible.any(0).nonzero().flatten().tolist(), default=-1) + 1
    for block, group in ((4, 1), (16, 1), (16, 3)):
        if group > 1 and geometry.two_dimensional:
            continue
        tiles = rules.query_tiles(kind, extent, q_len * group, block)
        spans = torch.zeros(tiles * block, 2, dtype=torch.int32)
        index = torch.zeros(tiles * block, dtype=torch.int32)
        positions = torch.zeros(tiles, 64, dtype=torch.int32)
        ranges = torch.zeros(tiles, 4, dtype=torch.int32)
        query_tile_kernel[(tiles,)](
            spans, index, positions, ranges, q_len, length, torch.tensor(offset).item(), extent,
            group, GEOMETRY=kind, PACKED=group > 1, BLOCK_Q=block, BLOCK_K=64,
        )  # fmt: skip
        assert sorted(index[index >= 0].tolist()) == list(range(q_len * group))
        for row, packed in enumerate(index.tolist()):
            if packed < 0:
                continue
            tile, query = row // block, packed // group
            low, high = spans[row].tolist()
            start, stop, full_start, full_stop = ranges[tile].tolist()
            seen = positions[tile, low:high] if low < high else torch.zeros(0, dtype=torch.int32)
            assert sorted(seen.tolist()) == visible[query].nonzero().flatten().tolist()
            assert low >= high or (start <= low and high <= stop)
            assert full_start >= full_stop or (low <= full_start and full_stop <= high)


@triton.jit
def divide_kernel(n_ptr, by_ptr, quotient_ptr, rest_ptr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    by = tl.load(by_ptr + place)
    quotient, rest = rules.divide(tl.load(n_ptr + place), by, rules.inverse(by))
    tl.store(quotient_ptr + place, quotient)
    tl.store(rest_ptr + place, rest)


def test_division() -> None:
    """Exact for every number below 2^30, just below and at multiples of the divisor above all."""
    most = 2**30 - 1
    divisors = [1, 2, 3, 5, 7, 8, 12, 17, 63, 100, 255, 1000, 4095, 65537, 10**6, most - 1, most]
    pairs = [
        (min(max(times * by + more, 0), most), by)
        for by in divisors
        for times in (0, 1, 2, 9, 1000, most // by // 2, most // by - 1, most // by)
        for more in (-1, 0, 1)
    ]
    pairs += [(0, 1)] * (-len(pairs) % 64)
    n, by = torch.tensor(pairs, dtype=torch.int32).T.contiguous()
    quotient, rest = torch.zeros_like(n), torch.zeros_like(n)
    divide_kernel[(len(pairs) // 64,)](n, by, quotient, rest, BLOCK=64)
    assert torch.equal(quotient, n // by)
    assert torch.equal(rest, n % by)


def test_configurations() -> None:
    """Every default fits, small homes get small tiles, and what does not fit is not offered."""
    geometries = ("full", "causal", "window", "local_1d", "local_2d_causal", "pattern")
    for direction, dim, arch, size, geometry, rel, values, describable in itertools.product(
        configs.DIRECTIONS, (16, 64, 128, 256), (0, 80, 86, 90, 100), (2, 4), geometries,
        ("none", "clip", "zero"), (False, True), (False, True),
    ):  # fmt: skip
        values = values and rel != "none"
        kind = configs.Kind(
            direction, arch, dim, size, geometry, rel, values, 128, describable=describable
        )
        rows = undo_fixture(kind)
        assert rows, kind
        last_resort = [configs.Config(16, 16, 4, 1)]
        assert rows == last_resort or all(configs.fits(kind, row) for row in rows), (kind, rows)
        assert describable or not any(row.described for row in rows), (kind, rows)
    few = configs.Kind("forward", 90, 64, 2, "causal", "none", False, 16)
    assert undo_fixture(few)[0].block_q == 16


undo_fixture = configs.candidates  # as it is before small_tiles replaces it


def test_the_interpreter_notices() -> None:
    """Bounds and races raise, and bfloat16 products are products of values."""

    @triton.jit
    def out_of_bounds(x_ptr, n: tl.constexpr):
        tl.store(x_ptr + tl.arange(0, n), 0.0)

    @triton.jit
    def copy(x_ptr, y_ptr, n: tl.constexpr):
        tl.store(y_ptr + tl.arange(0, n), tl.load(x_ptr + tl.arange(0, n)))

    @triton.jit
    def race(x_ptr):
        tl.store(x_ptr, tl.program_id(0).to(tl.float32))

    @triton.jit
    def described(rows, out_ptr):
        tl.store(out_ptr + tl.arange(0, 16), rows.load([3, 0]).reshape(16))

    with pytest.raises(Exception, match="OutOfBounds"):
        out_of_bounds[(1,)](torch.zeros(4), n=8)
    pair = torch.zeros(2, 8)
    with pytest.raises(Exception, match="store: 8 lanes"):  # into what lies behind
        copy[(1,)](torch.zeros(16), pair[0], n=16)
    with pytest.raises(Exception, match="load: 3 lanes"):  # what lies in between
        copy[(1,)](pair[:, 0], torch.zeros(4), n=4)
    table, rest = torch.arange(64.0).view(4, 16), torch.zeros(32)
    described[(1,)](TensorDescriptor.from_tensor(table, [1, 16]), rest[16:])
    assert rest.tolist() == [0.0] * 16 + list(range(48, 64))
    with pytest.raises(Exception, match="Race"):
        race[(2,)](torch.zeros(1))
