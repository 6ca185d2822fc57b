"""Random calls against the float64 reference: what no list of cases thinks of.

ATTN_KERNELS_EXAMPLES is the number of calls per backend. Unset, it is a fixed set of 150 (Triton:
40); set, every run draws new ones.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from common import (
    DTYPES,
    LAYOUTS,
    Inputs,
    Table,
    Target,
    Variant,
    check_against_reference,
    dice,
    make_inputs,
    most_exact_dtype,
)
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from attn_kernels import Causal, Full, Local1d, Local2d, Pattern, Relative, attention
from attn_kernels.core.geometry import Geometry

EXAMPLES = os.environ.get("ATTN_KERNELS_EXAMPLES")
DEFAULT = {"triton": 40}  # whose calls all compile kernels of their own, which takes seconds


def random_calls(backend: str) -> settings:
    return settings(
        max_examples=int(EXAMPLES or DEFAULT.get(backend, 150)),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


counts = st.integers
lengths = st.one_of(counts(0, 40), counts(60, 70), counts(120, 140), counts(250, 270))
dims = st.one_of(counts(1, 40), st.sampled_from([48, 64, 80, 128]))


@st.composite
def patterns(draw: Any, q_len: int, k_len: int) -> Pattern:
    """A mask of at least so many queries and keys: blocks that are seen in full, in part or not at
    all, of any size, so that tiles are of every kind and no run begins where a tile does."""
    size = q_len + draw(counts(0, 70)), k_len + draw(counts(0, 70))
    block = draw(counts(1, 100)), draw(counts(1, 100))
    full, part = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    generator = dice(draw(counts(0, 99)))
    kinds = torch.rand([n // b + 1 for n, b in zip(size, block, strict=True)], generator=generator)
    kinds = kinds.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    pairs = torch.rand(size, generator=generator) < draw(st.floats(0, 1))
    kinds = kinds[: size[0], : size[1]]
    return Pattern.from_mask((kinds < full) | (kinds > part) & pairs)


@st.composite
def geometries_1d(draw: Any, q_len: int, k_len: int) -> Geometry:
    kind = draw(st.sampled_from(["full", "causal", "local", "local-both", "pattern", "pattern"]))
    if kind == "pattern":
        return draw(patterns(q_len, k_len))
    if kind == "full":
        return Full()
    if kind == "causal":
        return Causal(draw(st.none() | counts(1, 150)))
    ahead = 0 if kind == "local" else draw(counts(0, 80))
    return Local1d(draw(counts(1, 150)), draw(counts(0, 150)), ahead, causal=kind == "local")


@st.composite
def tables(draw: Any, causal: bool) -> Table:
    rows = draw(counts(1, 200))
    return Table(
        rows if causal or rows % 2 else rows + 1,
        per_head=draw(st.booleans()),
        rel_v=draw(st.sampled_from([None, "shared", "per_head"])),
        q_rel=draw(st.booleans()),
        beyond=draw(st.sampled_from(["clip", "zero"])),
        rel_scale=draw(st.none() | st.floats(-0.5, 0.5)),
    )


def with_layouts(draw: Any, inputs: Inputs) -> Inputs:
    """Every tensor in a layout of its own."""
    layout = st.sampled_from([None, *LAYOUTS])
    laid_out = {}
    names = [*inputs.tensors(), "grad_out", "grad_lse"]
    for name in names:
        x, chosen = getattr(inputs, name), draw(layout)
        laid_out[name] = x if chosen is None or x.numel() == 0 else chosen(x)
    return replace(inputs, **laid_out)


def sizes(draw: Any) -> dict[str, Any]:
    k_heads = draw(counts(1, 3))
    return {
        "batch": draw(counts(1, 3)),
        "heads": k_heads * draw(counts(1, 3)),
        "k_heads": k_heads,
        "dim": draw(dims),
        "value_dim": draw(dims),
        "dtype": draw(
            st.sampled_from([x for x in DTYPES if x.itemsize <= most_exact_dtype().itemsize])
        ),
        "seed": draw(counts(0, 9)),
    }


@st.composite
def calls_1d(draw: Any) -> tuple[Variant, Inputs]:
    """A 1-D geometry, perhaps with tables, on any lengths, with any entries."""
    q_len = draw(lengths)
    k_len = draw(st.just(q_len) | lengths)
    geometry = draw(geometries_1d(q_len, k_len))
    table = draw(st.none() | tables(geometry.causal))

    def call(x: Inputs, **options: Any) -> Any:
        score = None
        if table is not None:
            score = Relative(x.rel_k, x.rel_v, x.q_rel, table.beyond, table.rel_scale)
        return attention(x.q, x.k, x.v, geometry, score, **options)

    variant = Variant("1d", call, lambda _: geometry, table)
    inputs = make_inputs(variant, (q_len,), (k_len,), **sizes(draw))
    batch = inputs.q.shape[0]
    inputs = replace(
        inputs,
        key_lengths=draw(st.none() | entries(batch, counts(0, k_len + 5))),
        query_offset=draw(offsets(geometry, q_len, k_len, batch)),
    )
    return variant, with_layouts(draw, inputs)


def offsets(geometry: Geometry, q_len: int, k_len: int, batch: int) -> st.SearchStrategy[Any]:
    """None, an int or one for each batch entry; under a Pattern all rows of an int are its own."""
    offset = counts(-50, 300)
    if not isinstance(geometry, Pattern):
        return st.none() | offset | entries(batch, offset)
    rows = range(geometry.q_len - q_len + 1)
    default = st.none() if geometry.default_offset(q_len, k_len) in rows else st.nothing()
    return default | st.sampled_from(rows) | entries(batch, offset)


@st.composite
def calls_2d(draw: Any) -> tuple[Variant, Inputs]:
    """A canvas of any shape with any block and halo."""
    grid = draw(st.tuples(counts(0, 20), counts(0, 20)))
    block = draw(st.tuples(counts(1, 12), counts(1, 12)))
    halo = draw(st.tuples(counts(0, 9), counts(0, 9)))
    geometry = Local2d(grid, block, halo, draw(st.booleans()))

    def call(x: Inputs, **options: Any) -> Any:
        out, lse = attention(*(t.flatten(2, 3) for t in (x.q, x.k, x.v)), geometry, **options)
        return out.unflatten(2, grid), lse.unflatten(2, grid)

    variant = Variant("2d", call, lambda _: geometry)
    inputs = make_inputs(variant, grid, **sizes(draw))
    lengths = entries(inputs.q.shape[0], counts(0, grid[0] * grid[1]))
    inputs = replace(inputs, key_lengths=draw(st.none() | lengths))
    return variant, with_layouts(draw, inputs)


def entries(batch: int, values: st.SearchStrategy[int]) -> st.SearchStrategy[torch.Tensor]:
    """One number per batch entry, int64 or int32."""
    numbers = st.lists(values, min_size=batch, max_size=batch)
    return st.builds(
        lambda each, dtype: torch.tensor(each, dtype=dtype),
        numbers,
        st.sampled_from([torch.int64, torch.int32]),
    )


def test_random_calls(backend: Target) -> None:
    """Values and all gradients. Slack 4: some draws have so few numbers that eager may be lucky."""

    @random_calls(backend.name)
    @given(call=st.one_of(calls_1d(), calls_1d(), calls_2d()))
    def check(call: tuple[Variant, Inputs]) -> None:
        variant, inputs = call
        shapes = {name: (list(x.shape), x.stride()) for name, x in inputs.tensors().items()}
        note(f"{variant.geometry(tuple(inputs.q.shape[2:-1]))} {variant.table} {inputs.q.dtype}")
        note(f"{shapes} {inputs.key_lengths=} {inputs.query_offset=}")
        check_against_reference(variant, inputs, backend, slack=4.0)

    check()
