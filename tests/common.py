"""Shared by the tests: what is called, on which inputs, and how close is close enough."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attn_kernels
from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, Window
from attn_kernels.core.geometry import Geometry

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
GRADIENTS = ("q", "k", "v", "rel_k", "rel_v", "q_rel", "bias")
FLOAT64_TOLERANCE = 1e-11

# --- What is called ---


@dataclass(frozen=True)
class Target:
    """A backend under test: what attention(backend=...) takes, and its instruction set."""

    name: str
    isa: str = ""

    @property
    def device(self) -> str:
        """Where tensors live that no test puts anywhere: torch's default device while it runs."""
        return "cuda" if self.name == "triton" else "cpu"

    def __str__(self) -> str:
        return f"{self.name}-{self.isa}" if self.isa else self.name


# Instruction sets that differ from the next one in these dtypes only (csrc/cpu/kernels.inc): tests
# whose dtype is not the point run in these there, in turn.
HALF_TYPES = {
    "amx": (torch.bfloat16, torch.float16),
    "avx512_bf16": (torch.bfloat16,),
}


@dataclass(frozen=True)
class Table:
    """The tables of a Relative score. rel_v: None, "shared" or "per_head"."""

    rows: int
    per_head: bool = False
    rel_v: str | None = None
    q_rel: bool = False
    beyond: str = "clip"
    rel_scale: float | None = None
    zero_row: int | None = None


@dataclass(frozen=True)
class BiasTable:
    """The table of a Bias."""

    rows: int
    per_head: bool = False
    beyond: str = "clip"
    zero_row: int | None = None


def rows_read(
    table: Table | BiasTable, offset: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """The row that a pair at this offset reads, and whether it reads one."""
    zero_row = table.zero_row
    if zero_row is None:
        zero_row = table.rows - 1 if geometry.causal else table.rows // 2
    row = offset + zero_row
    used = (row >= 0) & (row < table.rows) | (table.beyond == "clip")
    return row.clamp(0, table.rows - 1), used


@dataclass(frozen=True)
class Variant:
    """One way to call an operation: the public call, and the geometry and tables that it means."""

    name: str
    call: Callable[..., Any]  # call(inputs, **options of attention)
    geometry: Callable[[tuple[int, ...]], Geometry]  # of the queries' length or canvas
    table: Table | None = None
    bias: BiasTable | None = None

    def __call__(self, inputs: Inputs, **options: Any) -> Any:
        entries = {"key_lengths": inputs.key_lengths, "query_offset": inputs.query_offset}
        given = {name: value for name, value in entries.items() if value is not None}
        return self.call(inputs, **given, **options)

    def __str__(self) -> str:
        return self.name


# --- Inputs ---


def most_exact_dtype() -> torch.dtype:
    """float64, or float32 where Triton computes, which has no float64."""
    return torch.float32 if torch.get_default_device().type == "cuda" else torch.float64


def dice(seed: int) -> torch.Generator:
    """A generator for numbers that are made where new tensors are."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def draw(*shape: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal numbers, the same on every device; of the most exact dtype if of none."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return x.to(torch.get_default_device(), dtype or most_exact_dtype())


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call and the gradients that its outputs receive."""

    q: Tensor
    k: Tensor
    v: Tensor
    rel_k: Tensor | None = None
    rel_v: Tensor | None = None
    q_rel: Tensor | None = None
    bias: Tensor | None = None
    grad_out: Tensor | None = None
    grad_lse: Tensor | None = None
    key_lengths: Tensor | None = None
    query_offset: int | Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The differentiable inputs by name."""
        named = {name: getattr(self, name) for name in GRADIENTS}
        return {name: x for name, x in named.items() if x is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call with every differentiable input replaced."""
        return replace(self, **{name: function(x) for name, x in self.tensors().items()})

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same values in another dtype, contiguous."""
        lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return replace(
            self.map(lambda x: x.to(dtype).contiguous()),
            grad_out=self.grad_out.to(dtype).contiguous(),
            grad_lse=self.grad_lse.to(lse_dtype).contiguous(),
        )


def make_inputs(
    variant: Variant,
    q_space: tuple[int, ...],
    k_space: tuple[int, ...] | None = None,
    *,
    batch: int = 2,
    heads: int = 2,
    k_heads: int | None = None,
    dim: int = 24,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Standard normal inputs. A space is (length,) or (rows, cols); dim is no multiple of 16."""
    k_space = q_space if k_space is None else k_space
    k_heads = heads if k_heads is None else k_heads
    value_dim = dim if value_dim is None else value_dim
    normal = partial(draw, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    inputs = Inputs(
        q=normal(batch, heads, *q_space, dim),
        k=normal(batch, k_heads, *k_space, dim),
        v=normal(batch, k_heads, *k_space, value_dim),
        grad_out=normal(batch, heads, *q_space, value_dim),
        grad_lse=normal(batch, heads, *q_space),
    )
    lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = replace(inputs, grad_lse=inputs.grad_lse.to(lse_dtype))
    if variant.bias is not None:
        bias_heads = heads if variant.bias.per_head else 1
        inputs = replace(inputs, bias=normal(bias_heads, variant.bias.rows))
    if variant.table is None:
        return inputs
    table = variant.table
    value_heads = heads if table.rel_v == "per_head" else 1
    return replace(
        inputs,
        rel_k=normal(heads if table.per_head else 1, table.rows, dim),
        rel_v=None if table.rel_v is None else normal(value_heads, table.rows, value_dim),
        q_rel=normal(*inputs.q.shape) if table.q_rel else None,
    )


def sequence_major(x: Tensor) -> Tensor:
    """A [B, H, ..., D] view of memory [B, ..., H, D]: what a projection's output is."""
    return x.movedim(1, -2).contiguous().movedim(-2, 1)


def with_gaps(x: Tensor) -> Tensor:
    """A view with gaps in every dimension but the last, off any alignment; the gaps hold NaN."""
    *outer, last = x.shape
    memory = x.new_full([n * 2 + 1 for n in outer] + [last + 3], math.nan)
    view = memory[(*(slice(1, None, 2) for _ in outer), slice(1, last + 1))]
    return view.copy_(x)


def last_dim_strided(x: Tensor) -> Tensor:
    """A view whose last dimension is not contiguous; the gaps hold NaN."""
    memory = x.new_full([*x.shape, 2], math.nan)
    return memory[..., 0].copy_(x)


def dim_major(x: Tensor) -> Tensor:
    """A transposed view: the last dimension has the largest stride but the outer two."""
    return x.mT.contiguous().mT


def expanded(x: Tensor) -> Tensor:
    """The first batch entry (for a table: the first head) for all, with stride 0."""
    return x[:1].expand(x.shape)


def overlapping_rows(x: Tensor, step: int = 1) -> Tensor:
    """Windows that slide over memory: a row is the row before it, moved on by `step` numbers."""
    length, dim = x.shape[-2:]
    memory = x.flatten(-2)[..., : step * (length - 1) + dim].clone()
    return memory.unfold(-1, dim, step)


def overlapping_pairs(x: Tensor) -> Tensor:
    """Windows of which each holds whole pairs of the one before it."""
    return overlapping_rows(x, 2)


def overlapping_entries(x: Tensor) -> Tensor:
    """Batch entries (for a table: heads) that lie one number apart."""
    entry = x[0].contiguous()
    memory = x.flatten()[: entry.numel() + x.shape[0] - 1].clone()
    return memory.as_strided(x.shape, (1, *entry.stride()))


def overlapping_heads(x: Tensor) -> Tensor:
    """Heads (for a table: rows) that lie one number apart."""
    return overlapping_entries(x.transpose(0, 1)).transpose(0, 1)


OVERLAPS = (overlapping_rows, overlapping_pairs, overlapping_entries, overlapping_heads)
LAYOUTS = (sequence_major, with_gaps, last_dim_strided, dim_major, expanded)


# --- What a query sees, one pair at a time ---


def sees(geometry: Geometry, p: int, j: int) -> bool:
    """Whether the query at position p sees key j: the definitions, word for word, in plain ints."""
    match geometry:
        case Full():
            return True
        case Causal(window):
            return j <= p and (window is None or j > p - window)
        case Window(left, right):
            return (left is None or j >= p - left) and (right is None or j <= p + right)
        case Local1d(block, look_back, look_ahead, causal):
            b = p // block
            near = b * block - look_back <= j < (b + 1) * block + look_ahead
            return near and (j <= p or not causal)
        case Local2d((_, cols), (bh, bw), (hh, hw), causal):
            (row, col), (k_row, k_col) = divmod(p, cols), divmod(j, cols)
            a, b = row // bh, col // bw
            near = a * bh - hh <= k_row < (a + 1) * bh + hh
            near = near and b * bw - hw <= k_col < (b + 1) * bw + hw
            return near and (not causal or scan_key(geometry, j) <= scan_key(geometry, p))
    raise TypeError(type(geometry).__name__)


def scan_key(geometry: Local2d, position: int) -> tuple[int, ...]:
    """Sorts positions by the block raster scan: block row, block column, row, column."""
    row, col = divmod(position, geometry.grid[1])
    return row // geometry.block[0], col // geometry.block[1], row, col


def default_offset(geometry: Geometry, q_len: int, k_len: int) -> int:
    """The last query sees the last key; under a Pattern they stand to each other as its own do."""
    if not isinstance(geometry, Pattern):
        return k_len - q_len
    return 0 if q_len == geometry.q_len else (k_len - geometry.k_len) - (q_len - geometry.q_len)


def pairs(variant: Variant, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Which pairs attend, and their offsets j - p_i: both [B or 1, 1, Lq, Lk]."""
    space = tuple(inputs.q.shape[2:-1])
    q_len, k_len = math.prod(space), math.prod(inputs.k.shape[2:-1])
    geometry, offset = variant.geometry(space), inputs.query_offset
    if offset is None:
        offset = default_offset(geometry, q_len, k_len)
    q_pos = torch.arange(q_len, device=inputs.q.device).view(-1, 1) + torch.as_tensor(offset).view(
        -1, 1, 1, 1
    )
    k_pos = torch.arange(k_len, device=inputs.q.device)
    visible = geometry.visible(q_pos, k_pos)
    if inputs.key_lengths is not None:
        visible = visible & (k_pos < inputs.key_lengths.view(-1, 1, 1, 1))
    return visible, k_pos - q_pos


# --- The eager composition ---


def eager_attention(
    variant: Variant, inputs: Inputs, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """What a user writes without this library: every step in the inputs' dtype."""
    visible, offset = pairs(variant, inputs)
    seen, has_key = visible.any(-2).unsqueeze(-1), visible.any(-1, keepdim=True)
    q, k, v = (x.flatten(2, -2) for x in (inputs.q, inputs.k, inputs.v))
    groups = q.shape[1] // max(k.shape[1], 1)
    k, v = (torch.where(seen, x, 0).repeat_interleave(groups, 1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * (q @ k.mT)
    table, geometry = variant.table, variant.geometry(tuple(inputs.q.shape[2:-1]))
    if variant.bias is not None:
        row, used = rows_read(variant.bias, offset, geometry)
        numbers = inputs.bias.expand(q.shape[1], -1)[:, row].movedim(0, 2).squeeze(1)
        logits = logits + torch.where(used, numbers, 0)
    if table is not None:
        row, used = rows_read(table, offset, geometry)
        row = row.expand(*q.shape[:2], -1, -1)
        by_row = (q if inputs.q_rel is None else inputs.q_rel) @ inputs.rel_k.mT
        term = torch.where(used, by_row.gather(-1, row), 0)
        logits = logits + (scale if table.rel_scale is None else table.rel_scale) * term
    # a row without keys stays finite until the end: its softmax would be NaN
    logits = logits.masked_fill(~visible & has_key, -torch.inf).masked_fill(~has_key, 0)
    weights = torch.softmax(logits, -1).masked_fill(~visible, 0)
    out = weights @ v
    if inputs.rel_v is not None:
        by_row = weights.new_zeros(*weights.shape[:-1], table.rows)
        by_row = by_row.scatter_add(-1, row, torch.where(used, weights, 0))
        out = out + by_row @ inputs.rel_v
    lse = torch.logsumexp(logits, -1).masked_fill(~has_key.squeeze(-1), -torch.inf)
    space = tuple(inputs.q.shape[2:-1])
    return out.unflatten(2, space), lse.unflatten(2, space)


# --- Running and comparing ---


def subprocess_environment(**changes: str) -> dict[str, str]:
    """The environment of a test's own process: it imports the package that is under test."""
    root = str(Path(attn_kernels.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path} | changes


def run(
    call: Callable[..., Any], inputs: Inputs, *, gradients: bool = True, **options: Any
) -> dict[str, Tensor]:
    """out, lse and grad_* of every input.

    The loss is sum(out * grad_out) + sum(lse * grad_lse), so all gradients flow at once. It is
    given to autograd as its gradients: the sum itself would be NaN where lse is -inf, and rows
    without keys shall receive a gradient of lse like any other.
    """
    leaves = inputs.map(lambda x: x.detach().requires_grad_(gradients))
    out, lse = call(leaves, **options)
    results = {"out": out.detach(), "lse": lse.detach()}
    if gradients:
        named = leaves.tensors()
        outputs = (out, lse), (inputs.grad_out, inputs.grad_lse.to(lse.dtype))
        grads = torch.autograd.grad(outputs[0], list(named.values()), outputs[1])
        results |= {f"grad_{name}": x for name, x in zip(named, grads, strict=True)}
    return results


def once_for_all_backends(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the last results by the values that went in: the next backend is tested on the same."""
    kept: OrderedDict[int, Any] = OrderedDict()

    def values(x: Any) -> Any:
        if isinstance(x, Tensor):
            memory = x.detach().contiguous().flatten().view(torch.uint8)
            return x.device, x.dtype, x.shape, memory.cpu().numpy().tobytes()
        return x

    def wrapped(variant: Variant, inputs: Inputs, **options: Any) -> dict[str, Tensor]:
        geometry = variant.geometry(tuple(inputs.q.shape[2:-1]))
        given = tuple(values(getattr(inputs, field.name)) for field in fields(inputs))
        key = hash((geometry, variant.table, given, tuple(options.items())))
        if key not in kept:
            kept[key] = function(variant, inputs, **options)
            if len(kept) > 64:
                kept.popitem(last=False)
        return kept[key]

    return wrapped


@once_for_all_backends
def run_truth(variant: Variant, inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """The dense reference in float64, on the same values."""
    wide = inputs.to(torch.float64)
    return run(variant, wide, backend="reference", return_lse=True, **options)


@once_for_all_backends
def run_eager(variant: Variant, inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """The eager composition; its lse is float32 for half types, because the kernels' lse is."""

    def eager(leaves: Inputs, **options: Any) -> tuple[Tensor, Tensor]:
        return eager_attention(variant, leaves, **options)

    results = run(eager, inputs, **options)
    if inputs.q.dtype in (torch.bfloat16, torch.float16):
        single = run(eager, inputs.to(torch.float32), gradients=False, **options)
        results["lse"] = single["lse"]
    return results


def in_own_dtype(inputs: Inputs, target: Target) -> Inputs:
    """float32 inputs in what the target's instruction set is for: see HALF_TYPES."""
    if inputs.q.dtype != torch.float32 or target.isa not in HALF_TYPES:
        return inputs
    dtypes = HALF_TYPES[target.isa]
    return inputs.to(dtypes[inputs.q.shape[2] % len(dtypes)])


def check_against_reference(
    variant: Variant,
    inputs: Inputs,
    target: Target,
    *,
    gradients: bool = True,
    slack: float = 2.0,
    **options: Any,
) -> dict[str, Tensor]:
    """Run `variant` on the target and hold everything that it returns against the truth."""
    inputs = in_own_dtype(inputs, target)
    actual = run(
        variant, inputs, gradients=gradients, backend=target.name, return_lse=True, **options
    )
    truth = run_truth(variant, inputs, **options)
    for name, x in actual.items():
        assert x.shape == truth[name].shape, name
        assert x.dtype == (torch.float32 if name == "lse" else inputs.q.dtype) or (
            inputs.q.dtype == torch.float64 == x.dtype
        ), name
    if inputs.q.dtype == torch.float64:
        for name, x in actual.items():
            assert_close_in_float64(name, x, truth[name])
        return actual
    eager = run_eager(variant, inputs, **options)
    noise = rounding_noise(variant, inputs, truth["lse"], options.get("scale"))
    if inputs.rel_v is not None:  # kernels sum over v + rel_v at once, twice the variance of v
        slack = slack * 2**0.5
    for name, x in actual.items():
        assert_as_accurate_as_eager(name, x, eager[name], truth[name], slack, *noise[name])
    return actual


def rounding_noise(
    variant: Variant, inputs: Inputs, lse: Tensor, scale: float | None
) -> dict[str, tuple[float, float]]:
    """For each result: what the order of its float32 sums may change, and the part of that which
    may show in the mean error, because eager was lucky.

    The softmax gradient of a query that sees one key is zero, as the difference of two equal sums
    over Dv, one of them over out, which v + rel_v makes inexact in half types. A kernel reaches it
    to the rounding of those sums; eager subtracts a number from itself and is exact. Inputs are
    standard normal, so the sums are of size Dv. Backward takes the weights again from lse, and so
    knows them to an ulp of lse; the weight of an only key is 1 for eager. A key's gradient sums
    over the queries that share it, a table's over all. A mean over n vectors is lucky to n ** -0.5.
    """
    eps, dim, value_dim = torch.finfo(torch.float32).eps, inputs.q.shape[-1], inputs.v.shape[-1]
    scale = dim**-0.5 if scale is None else abs(scale)
    if variant.table is not None and variant.table.rel_scale is not None:
        scale = max(scale, abs(variant.table.rel_scale))
    n_keys = inputs.k[..., 0].numel()
    n_queries = inputs.grad_lse.numel()
    per_key = max(1.0, n_queries / max(1, n_keys)) ** 0.5
    largest = lse[lse.isfinite()].abs()
    weight = eps * max(4.0, float(largest.max()) if largest.numel() else 0.0)
    softmax = eps * max(4.0, scale * value_dim) + weight * scale
    keys_seen = pairs(variant, inputs)[0].sum(-1)
    alone = float((keys_seen == 1).sum() / (keys_seen > 0).sum().clamp(min=1))
    if inputs.rel_v is not None:
        softmax += alone * torch.finfo(inputs.q.dtype).eps * scale * value_dim**0.5
    noise = {
        "out": (eps, n_queries),
        "lse": (eps, n_queries),
        "grad_q": (softmax, n_queries),
        "grad_k": (softmax * per_key, n_keys),
        "grad_v": (weight * per_key, n_keys),
        "grad_q_rel": (softmax, n_queries),
    }
    if variant.bias is not None:
        noise["grad_bias"] = softmax * n_queries**0.5, inputs.bias.numel()
    if variant.table is not None:
        n_rows = inputs.rel_k[..., 0].numel()
        noise["grad_rel_k"] = softmax * n_queries**0.5, n_rows
        noise["grad_rel_v"] = weight * n_queries**0.5, n_rows
    return {
        name: (size, size * min(1.0, alone + max(1, n) ** -0.5))
        for name, (size, n) in noise.items()
    }


def assert_as_accurate_as_eager(
    name: str,
    actual: Tensor,
    eager: Tensor,
    truth: Tensor,
    slack: float = 2.0,
    noise: float = 0.0,
    mean_noise: float = 0.0,
) -> None:
    """The error against float64 may be at most `slack` times eager's error in the same dtype.

    Of the maximum: one ulp at the largest value is added, so an exact eager result is not an
    impossible bar. Of the mean: one ulp of each value, averaged, which a correctly rounded result
    (half an ulp at most) always meets. The noises are those of rounding_noise; in the tests of
    Causal and Relative lse uses 7.4 of the 8, grad_v 4.6 and the rest 3, a mean 0.4 of its one.
    """
    truth = truth.to(torch.float64)
    assert not actual.isnan().any(), f"{name} has NaN"
    unbounded = truth.isinf()
    assert torch.equal(actual.isinf(), unbounded), f"{name} is infinite at other places"
    assert torch.equal(actual[unbounded].to(truth.dtype), truth[unbounded]), f"{name}: inf's sign"
    if bool(unbounded.all()):
        return
    eps = torch.finfo(actual.dtype).eps
    magnitude = truth[~unbounded].abs()
    error = (actual.to(truth.dtype) - truth)[~unbounded].abs()
    eager_error = (eager.to(truth.dtype) - truth)[~unbounded].abs().nan_to_num(0.0)
    worst = float(slack * eager_error.max() + eps * magnitude.max() + 8 * noise)
    mean = float(slack * eager_error.mean() + eps * magnitude.mean() + mean_noise)
    assert float(error.max()) <= worst, f"{name}: max error {error.max():.3e} > {worst:.3e}"
    assert float(error.mean()) <= mean, f"{name}: mean error {error.mean():.3e} > {mean:.3e}"


def assert_agree(found: Any, expected: Any, tolerance: float) -> None:
    """Within the tolerance in float64, relative and absolute; within torch's own in float32."""
    in_float64 = most_exact_dtype() == torch.float64
    options = {"rtol": tolerance, "atol": tolerance} if in_float64 else {}
    torch.testing.assert_close(found, expected, **options)


def assert_close_in_float64(name: str, actual: Tensor, truth: Tensor) -> None:
    """Within 1e-11 of the largest value, or of 1: inputs are of that size."""
    assert actual.dtype == torch.float64, name
    assert not actual.isnan().any(), f"{name} has NaN"
    unbounded = truth.isinf()
    assert torch.equal(actual[unbounded], truth[unbounded]), f"{name} is infinite at other places"
    if bool(unbounded.all()):
        return
    error = (actual - truth)[~unbounded].abs().max()
    largest = max(1.0, float(truth[~unbounded].abs().max()))
    assert error <= FLOAT64_TOLERANCE * largest, f"{name}: error {error:.3e}, largest {largest:.3e}"
