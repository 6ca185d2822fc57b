"""Launchers: from the operators' arguments to kernels, grids and configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..core.layouts import empty_in_layout
from . import geometry as rules
from .buffers import Buffer
from .configs import Config, Kind, arch_of, choose, key_splits, search_wanted
from .forward import attention_fwd_kernel, merge_splits_kernel
from .prepared import Launch, form, known

PACKED_ROWS = 128  # query heads share a tile where a head's queries fill less than this
FEW_QUERIES = 64  # rows of a key head up to which keys are split


def contiguous_last(x: Tensor | None) -> Tensor | None:
    """x itself unless its last dimension has gaps: every other stride is free."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def row_strides(x: Tensor) -> list[int]:
    """From entry to entry, head to head, row to row. Where there is but one, its stride leads
    nowhere, and torch leaves any number there: a descriptor takes multiples of 16 bytes."""
    n_batch, n_heads, n_rows, dim = x.shape
    batch, head, row, _ = x.stride()
    return [batch if n_batch > 1 else dim, head if n_heads > 1 else dim, row if n_rows > 1 else dim]


def describable(x: Tensor) -> bool:
    """Whether a tensor descriptor can tell where x lies."""
    return (
        x.numel() > 0 and x.data_ptr() % 16 == 0
        and all(step > 0 and step * x.element_size() % 16 == 0 for step in row_strides(x))
    )  # fmt: skip


def descriptors(
    wanted: bool, rows: int, end: int, *tensors: Tensor
) -> list[TensorDescriptor | None]:
    """Of tensors [batch, heads, seq, dim], in tiles of rows of one head, zeros from `end` on; or
    None."""
    if not wanted:
        return [None] * len(tensors)
    shapes = [(*x.shape[:2], end, x.shape[3]) for x in tensors]
    return [
        TensorDescriptor(x, list(shape), [*row_strides(x), 1], [1, 1, rows, shape[3]])
        for x, shape in zip(tensors, shapes, strict=True)
    ]


def strides(x: Tensor | None, n: int) -> tuple[int, ...]:
    """The first n."""
    return (0,) * n if x is None else x.stride()[:n]


def head_stride(table: Tensor | None) -> int:
    """0 where all heads share the table."""
    return 0 if table is None or table.shape[0] == 1 else table.stride(0)


def precision_of(dtype: torch.dtype) -> str:
    """float32 products obey torch's setting for matrix products, and other types have one way.

    Of torch's two interfaces this one answers whichever was used; the older raises after the newer.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


class Call(NamedTuple):
    """The arguments of one operator call, checked by core/validate.py, as the kernels take them."""

    q: Tensor
    k: Tensor
    v: Tensor
    rel_k: Tensor | None
    rel_v: Tensor | None
    q_rel: Tensor | None
    key_lengths: Tensor | None
    query_offsets: Tensor | None
    pattern: Tensor | None  # the table of core/pattern_tiles.py
    query_offset: int
    geometry: str
    extent: tuple[int, ...]
    clip: bool
    scale: float
    rel_scale: float
    precision: str  # of products
    device: torch.device
    known: dict[Any, Any]  # what equal calls before have prepared

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor | None, rel_v: Tensor | None,
        q_rel: Tensor | None, key_lengths: Tensor | None, query_offsets: Tensor | None,
        pattern: Tensor | None, query_offset: int, geometry: str, extent: Sequence[int], clip: bool,
        scale: float, rel_scale: float,
    ) -> Call:  # fmt: skip
        tensors = [
            contiguous_last(x) for x in (q, k, v, rel_k, rel_v, q_rel, key_lengths, query_offsets)
        ]
        tensors.append(pattern)
        settings = query_offset, *rules.kind(geometry, tuple(extent)), clip, scale, rel_scale
        how = precision_of(q.dtype), q.device
        return cls(*tensors, *settings, *how, known(*map(form, tensors), *settings, *how))

    @property
    def has_pairs(self) -> bool:
        """Whether there is anything to launch backward."""
        return self.q.numel() > 0 and self.k.numel() > 0

    @property
    def n_rows(self) -> int:
        return 0 if self.rel_k is None else self.rel_k.shape[1]

    @property
    def rel(self) -> str:
        """REL of score.py."""
        return "none" if self.rel_k is None else "clip" if self.clip else "zero"

    @property
    def folded(self) -> bool:
        """One positive scale can be applied inside exp2."""
        return self.scale > 0 and (self.rel_k is None or self.rel_scale == self.scale)

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.k.shape[1]

    @property
    def is_canvas(self) -> bool:
        return rules.facts_of(self.geometry).canvas

    @property
    def packed(self) -> bool:
        """Whether the heads of a group share tiles."""
        shared_tables = all(x is None or x.shape[0] == 1 for x in (self.rel_k, self.rel_v))
        few = self.q.shape[2] < PACKED_ROWS
        tiles_are_queries = self.is_canvas or self.geometry == "pattern"
        return self.group > 1 and few and shared_tables and not tiles_are_queries

    def what(self) -> dict[str, object]:
        """The constexpr arguments that say what is computed, for every kernel.

        PITCH_K, PITCH_V: elements from row to row of the tables, the same in every call of a model.
        """
        dim, v_dim = self.q.shape[3], self.v.shape[3]
        return {
            "DIM": dim, "V_DIM": v_dim, "GEOMETRY": self.geometry, "REL": self.rel,
            "CAUSAL": rules.is_causal(self.geometry), "FOLDED": self.folded,
            "PRECISION": self.precision,
            "PITCH_K": 0 if self.rel_k is None else self.rel_k.stride(1),
            "PITCH_V": 0 if self.rel_v is None else self.rel_v.stride(1),
            "BLOCK_D": max(16, rules.power_of_2(dim)),
            "BLOCK_DV": max(16, rules.power_of_2(v_dim)),
        }  # fmt: skip

    def describable(self, direction: str) -> bool:
        """Whether tensor descriptors can tell where a step's rows lie, and these are neighbours."""
        key = "describable", direction
        if key not in self.known:
            self.known[key] = self.steps_are_describable(direction)
        return self.known[key]

    def steps_are_describable(self, direction: str) -> bool:
        if self.is_canvas or self.geometry == "pattern":
            return False
        if direction == "grad_q" and not self.one_end:
            return False
        if direction != "grad_kv" and self.keys_end == 0:
            return False
        dims = self.q.shape[3], self.v.shape[3]
        steps = (self.q,) if direction == "grad_kv" else (self.k, self.v)
        whole = all(dim >= 16 and dim == rules.power_of_2(dim) for dim in dims)
        return whole and all(map(describable, steps))

    @property
    def one_end(self) -> bool:
        """Whether the keys that somebody sees end at the same one in every entry: a descriptor has
        one end, behind which it gives zeros, and what lies there may be NaN."""
        return self.key_lengths is None and self.query_offsets is None

    @property
    def keys_end(self) -> int:
        """Behind the last key that somebody sees, if that is known without looking at tensors."""
        k_len = self.k.shape[2]
        if self.query_offsets is not None:
            return k_len
        last = self.query_offset + self.q.shape[2] - 1
        return rules.keys_end(self.geometry, self.extent, last, k_len)

    def kind(self, direction: str) -> Kind:
        """What decides the configuration."""
        if self.is_canvas:
            rows = self.extent[2] * self.extent[3]
        elif direction == "grad_kv":
            rows = self.k.shape[2]
        else:
            rows = self.q.shape[2] * (self.group if self.packed and direction == "forward" else 1)
        dim = max(16, rules.power_of_2(max(self.q.shape[3], self.v.shape[3])))
        grouped = {"forward": self.packed, "grad_kv": self.group > 1}.get(direction, False)
        return Kind(
            direction, arch_of(self.device), dim, self.q.element_size(), self.geometry, self.rel,
            self.rel_v is not None, min(128, rules.power_of_2(rows)), grouped,
            self.describable(direction),
        )  # fmt: skip

    def tuning_key(self) -> str:
        """What changes the best configuration beside its kind."""
        rounded = [rules.power_of_2(n) for n in (self.q.shape[2], self.k.shape[2])]
        return f"{device_name(self.device)} {self.geometry} {rounded}"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def config_of(call: Call, direction: str, launch: Callable[[Config], object]) -> Config:
    """The configuration of a kernel. `launch` runs it with one, should a search want to."""
    searches = search_wanted()
    config = call.known.get((direction, searches))
    if config is None:
        config = choose(call.kind(direction), call.tuning_key, launch)
        if not (searches and torch.cuda.is_current_stream_capturing()):  # then it is final
            call.known[direction, searches] = config
    return config


def forward(call: Call, config: Config | None = None) -> tuple[Tensor, Tensor]:
    """Return (out, lse), with the strides that the operator's fake promises."""
    q, v = call.q, call.v
    out = empty_in_layout(q, v.shape[3])
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    if config is None:
        config = config_of(call, "forward", lambda c: launch_forward(call, c, out, lse))
    launch_forward(call, config, out, lse)
    return out, lse


@cache
def multiprocessors(device: torch.device) -> int:
    """Of the device; 2 where there is none and the interpreter runs."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def forward_tiles(call: Call, config: Config) -> tuple[int, int]:
    """(tiles of queries in a head, or in a group's if these are packed; in all)."""
    batch, heads, rows, _ = call.q.shape
    if call.packed:
        heads, rows = heads // call.group, rows * call.group
    n_tiles = rules.query_tiles(call.geometry, call.extent, rows, config.block_q)
    return n_tiles, n_tiles * batch * heads


def split_count(call: Call, config: Config) -> int:
    """Parts that the keys are cut in: more than one where queries are few and keys many."""
    rows = call.q.shape[2] * (call.group if call.packed else 1)
    if rows > FEW_QUERIES or call.is_canvas:
        return 1
    _, programs = forward_tiles(call, config)
    return key_splits(programs, call.k.shape[2], config.block_k, multiprocessors(call.device))


def split_parts(call: Call, splits: int) -> list[Buffer]:
    """Room for out and lse once for every part of the keys; none if there is one part."""
    rows = splits, *call.q.shape[:3]
    return [Buffer((*rows, call.v.shape[3])), Buffer(rows)] if splits > 1 else []


class Forward(NamedTuple):
    """The launches of one configuration."""

    parts: list[Buffer]
    described: bool
    attention: Launch
    merge: Launch


def launch_forward(
    call: Call, config: Config, out: Tensor, lse: Tensor, splits: int | None = None
) -> None:
    """Run the forward kernel; split over keys and merged, if queries are few."""
    key = config, splits, out.stride()
    if key not in call.known:
        call.known[key] = prepare_forward(call, config, out, splits)
    plan = call.known[key]
    part, part_lse = [each.on(call.device) for each in plan.parts] or (out, lse)
    rows = descriptors(plan.described, config.block_k, call.keys_end, call.k, call.v)
    plan.attention(
        call.q, call.k, call.v, call.rel_k, call.rel_v, call.q_rel, call.key_lengths,
        call.query_offsets, call.pattern, *rows, part, part_lse,
    )  # fmt: skip
    if plan.parts:
        plan.merge(part, part_lse, out, lse)


def prepare_forward(call: Call, config: Config, out: Tensor, splits: int | None) -> Forward:
    q, k, v = call.q, call.k, call.v
    batch, heads, q_len, _ = q.shape
    v_dim = v.shape[3]
    n_tiles, programs = forward_tiles(call, config)
    if splits is None:
        splits = split_count(call, config)
    out_strides, between_parts = out.stride()[:3], (0, 0)
    if splits > 1:
        out_strides = heads * q_len * v_dim, q_len * v_dim, v_dim
        between_parts = batch * heads * q_len * v_dim, batch * heads * q_len
    attention = Launch(
        attention_fwd_kernel, (programs, splits),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides(call.q_rel, 3), *out_strides,
        head_stride(call.rel_k), head_stride(call.rel_v), *between_parts,
        heads, call.group, q_len, k.shape[2], call.query_offset, call.extent, n_tiles,
        call.n_rows, call.scale, call.rel_scale,
        **call.what(), PACKED=call.packed, SPLIT=splits > 1,
        LATE=config.late and not call.is_canvas,  # where finding keys again costs more
        WHOLE=config.whole, BLOCK_Q=config.block_q, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    merge = Launch(
        merge_splits_kernel, (batch * heads * q_len,), *out.stride()[:3], *between_parts,
        heads, q_len, splits,
        V_DIM=v_dim, BLOCK_DV=rules.power_of_2(v_dim),
        BLOCK_SPLITS=rules.power_of_2(splits), num_warps=4,
    )  # fmt: skip
    described = config.described and call.describable("forward")
    return Forward(split_parts(call, splits), described, attention, merge)
