"""Launchers of the backward kernels: what they allocate, in which order they run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.layouts import empty_in_layout
from . import geometry as rules
from .backward import grad_q_kernel, margin, prepare_kernel
from .buffers import Buffer
from .configs import Config
from .grad_kv import grad_kv_kernel
from .grad_table import grad_edges_kernel, grad_table_kernel
from .launch import (
    Call,
    config_of,
    contiguous_last,
    describable,
    descriptors,
    head_stride,
    strides,
)
from .prepared import Launch, form

PREPARE_ROWS = 32
EDGE_QUERIES, EDGE_COLUMNS = 128, 32  # of one step
PREPARED = ("DIM", "V_DIM", "PITCH_K", "PITCH_V", "BLOCK_D", "BLOCK_DV")  # what it is told
# Scores by table row wait here between two kernels, for as many tiles of queries as fit.
SHEARED_BYTES = 256 << 20


def pitch_of(n_rows: int, config: Config) -> int:
    """Columns of a row of sheared scores. It is a constant of the kernels (addresses that are sums
    with one need no registers), and of four sizes between powers of two: few tables are compiled
    for."""
    block = config.block_k
    width = rules.cdiv(n_rows, block) * block + 2 * margin(config.block_q, block)
    step = max(block, rules.power_of_2(width) // 8)
    return rules.cdiv(width, step) * step


class Sums(NamedTuple):
    """What is kept of a query.

    lse in powers of two and delta: [sorts, batch, heads, rows], see prepare_kernel, as also for
    `room`. far, for a clipped table: see grad_q_kernel.
    """

    room: int
    rows: int
    lse_2: Buffer
    delta: Buffer
    far: Buffer | None

    @property
    def all(self) -> list[Buffer | None]:
        return [self.lse_2, self.delta, self.far]


def sum_buffers(call: Call) -> Sums:
    batch, heads, q_len, _ = call.q.shape
    room = rules.block_room(call.geometry, call.extent)
    if room:
        rows = room * rules.query_tiles(call.geometry, call.extent, 0, room)
    else:  # steps of up to 128 queries, from multiples of 16 on
        rows = (q_len + 128) // 16 * 16 + 16
    sides = 1 if call.rel != "clip" else 2 if rules.is_causal(call.geometry) else 3
    lse_2 = Buffer((sides, batch, heads, rows))
    delta = lse_2 if call.rel_v is not None else Buffer((1, batch, heads, rows))
    far = Buffer((2 * len(table_dims(call)), batch, heads, q_len)) if call.rel == "clip" else None
    return Sums(room, rows, lse_2, delta, far)


def table_dims(call: Call) -> list[int]:
    """Of every table the width of a row."""
    return [x.shape[2] for x in (call.rel_k, call.rel_v) if x is not None]


class Lots(NamedTuple):
    """grad_q's tiles of queries, as many at a time as sheared scores have room for.

    starts: the first tile of every lot, and behind the last; n_tiles: in a head. pitch: of a row of
    sheared scores. sheared, reach: see grad_q_kernel, for the largest lot. grads: of every table,
    by batch entry and head.
    """

    starts: list[int]
    n_tiles: int
    pitch: int
    sheared: list[Buffer]
    reach: Buffer | None
    grads: list[Buffer]


def lots_of(call: Call, config: Config) -> Lots:
    batch, heads, q_len, _ = call.q.shape
    n_tiles = rules.query_tiles(call.geometry, call.extent, q_len, config.block_q)
    programs = n_tiles * batch * heads
    dims = table_dims(call)
    if not dims:
        return Lots([0, programs], n_tiles, 0, [], None, [])
    pitch = pitch_of(call.n_rows, config)
    tile_bytes = len(dims) * config.block_q * pitch * call.q.element_size()
    n_lots = rules.cdiv(programs, max(1, SHEARED_BYTES // tile_bytes))
    most = rules.cdiv(programs, n_lots)
    return Lots(
        [i * programs // n_lots for i in range(n_lots + 1)], n_tiles, pitch,
        [Buffer((most * config.block_q, pitch), call.q.dtype) for _ in dims],
        Buffer((most, 3), torch.int32),
        [Buffer((batch, heads, call.n_rows, dim)) for dim in dims],
    )  # fmt: skip


def table_totals(call: Call) -> list[Buffer]:
    """Tables' gradients before they are rounded."""
    tables = [x for x in (call.rel_k, call.rel_v) if x is not None]
    return [Buffer(tuple(x.shape)) for x in tables if x.dtype != torch.float32]


class Backward:
    """One backward call: its buffers, and a method per kernel. They run in this order."""

    def __init__(
        self, call: Call, grad_out: Tensor, out: Tensor, grad_lse: Tensor | None, lse: Tensor
    ) -> None:
        self.call, self.lse = call, lse.contiguous()
        self.grad_out, self.out = contiguous_last(grad_out), contiguous_last(out)
        if call.describable("grad_kv") and not describable(self.grad_out):
            # one row for all, of a sum's gradient, or an odd address: contiguous() may do nothing
            self.grad_out = self.grad_out.clone(memory_format=torch.contiguous_format)
        self.grad_lse = None if grad_lse is None else grad_lse.contiguous()
        q, k, v = call.q, call.k, call.v
        self.grad_q, self.grad_k, self.grad_v = (empty_in_layout(x, x.shape[3]) for x in (q, k, v))
        self.grad_q_rel = None
        if call.q_rel is not None:
            self.grad_q_rel = empty_in_layout(call.q_rel, q.shape[3])
        given = (self.grad_out, self.out, self.grad_lse, self.lse)
        self.known = call.known.setdefault(tuple(map(form, given)), {})
        self.sums = sum_buffers(call)
        self.lse_2, self.delta = (x.on(call.device) for x in self.sums.all[:2])
        self.far = None if self.sums.far is None else self.sums.far.on(call.device)
        self.table_grads: list[Tensor] = []

    def launch(self, prepare: Callable[..., Launch], *settings: object) -> Launch:
        """What an equal call has prepared with these settings, or prepare(*settings)."""
        key = prepare.__name__, *settings
        if key not in self.known:
            self.known[key] = prepare(*settings)
        return self.known[key]

    @property
    def rel_query(self) -> Tensor:
        """What is multiplied with rel_k."""
        return self.call.q if self.call.q_rel is None else self.call.q_rel

    @property
    def sizes(self) -> tuple[object, ...]:
        """heads .. extent of the kernels' arguments."""
        call = self.call
        return (
            call.q.shape[1], call.group, call.q.shape[2], call.k.shape[2],
            call.query_offset, call.extent,
        )  # fmt: skip

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        call = self.call
        return (
            call.q, call.k, call.v, call.rel_k, call.rel_v, call.q_rel, call.key_lengths,
            call.query_offsets, call.pattern, self.grad_out, self.lse_2, self.delta,
        )  # fmt: skip

    @property
    def input_strides(self) -> tuple[int, ...]:
        call = self.call
        return (
            *call.q.stride()[:3], *call.k.stride()[:3], *call.v.stride()[:3],
            *strides(call.q_rel, 3), *self.grad_out.stride()[:3],
        )  # fmt: skip

    @property
    def table_strides(self) -> tuple[int, ...]:
        """Of both tables; and of lse and delta, by sort, head and block."""
        tables = head_stride(self.call.rel_k), head_stride(self.call.rel_v)
        return *tables, self.lse_2.stride(0), self.sums.rows, self.sums.room

    def prepare(self, config: Config | None = None) -> None:
        call = self.call
        self.launch(self.prepare_launch)(
            self.rel_query, self.out, self.lse, self.grad_out, self.grad_lse, call.rel_k,
            call.rel_v, self.lse_2, self.delta,
        )  # fmt: skip

    def prepare_launch(self) -> Launch:
        call, what, q = self.call, self.call.what(), self.rel_query
        batch, heads, q_len, _ = q.shape
        n_tiles = rules.cdiv(self.sums.rows, PREPARE_ROWS)
        return Launch(
            prepare_kernel, (n_tiles * batch * heads,),
            *q.stride()[:3], *self.out.stride()[:3], *self.grad_out.stride()[:3],
            *self.table_strides, heads, q_len, call.extent, n_tiles, call.n_rows, call.rel_scale,
            GEOMETRY=call.geometry, SIDES=self.lse_2.shape[0], BLOCK_Q=PREPARE_ROWS, num_warps=4,
            **{name: what[name] for name in PREPARED},
        )  # fmt: skip

    def run_grad_q(self, config: Config) -> None:
        """Tiles of queries, and with each lot what it adds to the tables' gradients."""
        call = self.call
        tables, lots = self.tables, lots_of(call, config)
        sheared: list[Tensor | None] = [x.on(call.device) for x in lots.sheared]
        reach = None if lots.reach is None else lots.reach.on(call.device)
        self.table_grads = [x.on(call.device) for x in lots.grads]
        described = config.described and call.describable("grad_q")
        rows = descriptors(described, config.block_k, call.keys_end, call.k, call.v)
        for first, end in pairwise(lots.starts):
            cut = config, first, end - first, lots.n_tiles, lots.pitch
            self.launch(self.grad_q_launch, *cut)(
                *self.inputs, *rows, self.grad_q, self.grad_q_rel, self.far,
                *sheared, *[None] * (2 - len(sheared)), reach,
            )  # fmt: skip
            for i, (_, x, _) in enumerate(tables):
                self.launch(self.grad_table_launch, i, *cut)(
                    x, sheared[i], reach, self.table_grads[i]
                )
        if self.far is not None:
            for i, (_, x, _) in enumerate(tables):
                self.launch(self.grad_edges_launch, i)(x, self.far, self.table_grads[i])

    def grad_q_launch(
        self, config: Config, first: int, count: int, n_tiles: int, pitch: int
    ) -> Launch:
        """Tiles from `first` on, of n_tiles in every head; sheared scores have rows of `pitch`."""
        call = self.call
        return Launch(
            grad_q_kernel, (count,),
            *self.input_strides, *self.grad_q.stride()[:3], *strides(self.grad_q_rel, 3),
            *self.table_strides, *strides(self.far, 1), *self.sizes, n_tiles, call.n_rows,
            call.scale, call.rel_scale, first,
            **call.what(), WHOLE=config.whole, PITCH=pitch, BLOCK_Q=config.block_q,
            BLOCK_K=config.block_k, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    def grad_table_launch(
        self, i: int, config: Config, first: int, count: int, n_tiles: int, pitch: int
    ) -> Launch:
        """What these tiles add to the gradient of table i."""
        _, x, scale = self.tables[i]
        rows = 64 if x.element_size() == 2 else 32
        heads_here = (first + count - 1) // n_tiles - first // n_tiles + 1
        return Launch(
            grad_table_kernel, (heads_here, rules.cdiv(self.call.n_rows, rows)),
            *x.stride()[:3], x.shape[1], x.shape[2], n_tiles, self.call.n_rows, first, count,
            scale,
            DIM=x.shape[3], PITCH=pitch, PRECISION=self.call.precision,
            BLOCK_Q=config.block_q, BLOCK_K=config.block_k, BLOCK_R=rows,
            BLOCK_D=max(16, rules.power_of_2(x.shape[3])), num_warps=4, num_stages=2,
        )  # fmt: skip

    def grad_edges_launch(self, i: int) -> Launch:
        """What keys beyond table i add to its gradient."""
        _, x, scale = self.tables[i]
        batch, heads, q_len, dim = x.shape
        return Launch(
            grad_edges_kernel, (batch * heads * rules.cdiv(dim, EDGE_COLUMNS),),
            *x.stride()[:3], self.far.stride(0), 2 * i, heads, q_len, self.call.n_rows, scale,
            CAUSAL=rules.is_causal(self.call.geometry), DIM=dim, BLOCK_Q=EDGE_QUERIES,
            BLOCK_C=EDGE_COLUMNS, num_warps=4,
        )  # fmt: skip

    @property
    def tables(self) -> list[tuple[Tensor, Tensor, float]]:
        """Every table, what its gradient is a sum of, and by what that is scaled."""
        call = self.call
        tables = [(call.rel_k, self.rel_query, call.rel_scale), (call.rel_v, self.grad_out, 1.0)]
        return [row for row in tables if row[0] is not None]

    def run_grad_kv(self, config: Config) -> None:
        call = self.call
        described = config.described and call.describable("grad_kv")
        rows = descriptors(described, config.block_q, call.q.shape[2], call.q, self.grad_out)
        self.launch(self.grad_kv_launch, config)(*self.inputs, *rows, self.grad_k, self.grad_v)

    def grad_kv_launch(self, config: Config) -> Launch:
        call = self.call
        batch, k_heads, k_len, _ = call.k.shape
        n_tiles = rules.key_tiles(call.geometry, call.extent, k_len, config.block_k)
        return Launch(
            grad_kv_kernel, (n_tiles * batch * k_heads,),
            *self.input_strides, *self.grad_k.stride()[:3], *self.grad_v.stride()[:3],
            *self.table_strides, *self.sizes, n_tiles, call.n_rows, call.scale, call.rel_scale,
            **call.what(), DENSE=rules.cells_are_dense(call.geometry, call.extent),
            BLOCK_Q=config.block_q, BLOCK_K=config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    def steps(self) -> list[tuple[str | None, Callable[[Config], None]]]:
        """(direction of the configuration, launch) of every kernel, in order."""
        return [(None, self.prepare), ("grad_q", self.run_grad_q), ("grad_kv", self.run_grad_kv)]

    def table_gradients(self) -> list[Tensor]:
        """Of rel_k and rel_v: over the batch, and the heads of a shared table, summed in order."""
        grads = []
        for grad, (table, _, _) in zip(self.table_grads, self.tables, strict=True):
            shared = table.shape[0] == 1
            total = grad.sum((0, 1)).unsqueeze(0) if shared else grad.sum(0)
            grads.append(total.to(table.dtype))
        return grads


def backward_launches(
    call: Call, grad_out: Tensor, out: Tensor, grad_lse: Tensor | None, lse: Tensor
) -> list[tuple[str | None, Callable[[Config], None]]]:
    """Every launch of a backward call, for benchmarks/compiled.py."""
    return Backward(call, grad_out, out, grad_lse, lse).steps()


def backward(
    call: Call, grad_out: Tensor, out: Tensor, grad_lse: Tensor | None, lse: Tensor,
    configs: dict[str, Config] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v, rel_k, rel_v, q_rel; empty tensors for inputs that are absent."""
    work = Backward(call, grad_out, out, grad_lse, lse)
    absent = partial(call.q.new_empty, 0)  # an operator's results may not share memory
    if not call.has_pairs:
        for grad in (work.grad_q, work.grad_k, work.grad_v, work.grad_q_rel):
            if grad is not None:
                grad.zero_()
        tables = [torch.zeros_like(table) for table, _, _ in work.tables]
    else:
        for direction, step in work.steps():
            if direction is None:
                step(None)
            elif configs is not None:
                step(configs[direction])
            else:
                step(config_of(call, direction, step))
        tables = work.table_gradients()
    tables += [absent() for _ in range(2 - len(tables))]
    grad_q_rel = absent() if work.grad_q_rel is None else work.grad_q_rel
    return work.grad_q, work.grad_k, work.grad_v, *tables, grad_q_rel
