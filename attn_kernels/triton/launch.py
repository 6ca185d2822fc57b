"""Launchers: from the operators' arguments to kernels, grids and configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..core.ops import empty_in_layout
from . import geometry as rules
from .configs import Config, Kind, arch_of, choose, key_splits
from .forward import attention_fwd_kernel, merge_splits_kernel

PACKED_ROWS = 128  # query heads share a tile where a head's queries fill less than this
FEW_QUERIES = 64  # rows of a key head up to which keys are split


def contiguous_last(x: Tensor | None) -> Tensor | None:
    """x itself unless its last dimension has gaps: every other stride is free."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Of [batch, heads, seq, dim] in tiles of rows of one head."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, x.shape[3]])


def run(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch a kernel. benchmarks/compiled.py stands in here, and compiles instead."""
    kernel[grid](*args, **options)


def strides(x: Tensor | None, n: int) -> tuple[int, ...]:
    """The first n strides; a table that all heads share has head stride 0."""
    if x is None:
        return (0,) * n
    return tuple(0 if size == 1 and n == 2 and i == 0 else x.stride(i)
                 for i, size in enumerate(x.shape[:n]))  # fmt: skip


@dataclass(frozen=True)
class Call:
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

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, rel_k: Tensor | None, rel_v: Tensor | None,
        q_rel: Tensor | None, key_lengths: Tensor | None, query_offsets: Tensor | None,
        pattern: Tensor | None, query_offset: int, geometry: str, extent: Sequence[int], clip: bool,
        scale: float, rel_scale: float,
    ) -> Call:  # fmt: skip
        tensors = [contiguous_last(x) for x in (q, k, v, rel_k, rel_v, q_rel)]
        kind, numbers = rules.kind(geometry, tuple(extent))
        return cls(
            *tensors, key_lengths, query_offsets, pattern, query_offset, kind, numbers, clip,
            scale, rel_scale,
        )  # fmt: skip

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
        return self.geometry.startswith("local_2d")

    @property
    def packed(self) -> bool:
        """Whether the heads of a group share tiles."""
        shared_tables = all(x is None or x.shape[0] == 1 for x in (self.rel_k, self.rel_v))
        few = self.q.shape[2] < PACKED_ROWS
        tiles_are_queries = self.is_canvas or self.geometry == "pattern"
        return self.group > 1 and few and shared_tables and not tiles_are_queries

    @property
    def precision(self) -> str:
        """float32 products obey torch's setting for matrix products."""
        exact = torch.get_float32_matmul_precision() == "highest"
        return "ieee" if exact else "tf32"

    def what(self) -> dict[str, object]:
        """The constexpr arguments that say what is computed, for every kernel."""
        dim, v_dim = self.q.shape[3], self.v.shape[3]
        return {
            "DIM": dim, "V_DIM": v_dim, "GEOMETRY": self.geometry, "REL": self.rel,
            "CAUSAL": rules.is_causal(self.geometry), "FOLDED": self.folded,
            "PRECISION": self.precision,
            "BLOCK_D": max(16, triton.next_power_of_2(dim)),
            "BLOCK_DV": max(16, triton.next_power_of_2(v_dim)),
        }  # fmt: skip

    @property
    def describable(self) -> bool:
        """Whether a tensor descriptor can tell where K and V lie, and tiles of keys are rows."""
        one_dimension = not self.is_canvas and self.geometry != "pattern" and self.rel_k is None
        return one_dimension and all(
            x.numel() > 0 and x.shape[3] >= 16 and x.shape[3] == triton.next_power_of_2(x.shape[3])
            and x.data_ptr() % 16 == 0
            and all(step > 0 and step * x.element_size() % 16 == 0 for step in x.stride()[:3])
            for x in (self.k, self.v)
        )  # fmt: skip

    def kind(self, direction: str) -> Kind:
        """What decides the configuration."""
        if self.is_canvas:
            rows = self.extent[2] * self.extent[3]
        elif direction == "grad_kv":
            rows = self.k.shape[2]
        else:
            rows = self.q.shape[2] * (self.group if self.packed and direction == "forward" else 1)
        dim = max(16, triton.next_power_of_2(max(self.q.shape[3], self.v.shape[3])))
        return Kind(
            direction, arch_of(self.q.device), dim, self.q.element_size(),
            self.rel_k is not None, self.rel_v is not None,
            min(128, triton.next_power_of_2(rows)), self.group > 1, self.geometry == "pattern",
            self.describable, rules.has_low(self.geometry), self.is_canvas,
        )  # fmt: skip

    def tuning_key(self) -> str:
        """What changes the best configuration beside its kind."""
        rounded = [triton.next_power_of_2(max(n, 1)) for n in (self.q.shape[2], self.k.shape[2])]
        device = torch.cuda.get_device_name(self.q.device) if self.q.is_cuda else "interpreter"
        return f"{device} {self.geometry} {rounded}"


def forward(call: Call, config: Config | None = None) -> tuple[Tensor, Tensor]:
    """Return (out, lse), with the strides that the operator's fake promises."""
    q, v = call.q, call.v
    out = empty_in_layout(q, v.shape[3])
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    if config is None:
        config = choose(
            call.kind("forward"), call.tuning_key(), lambda c: launch_forward(call, c, out, lse)
        )
    launch_forward(call, config, out, lse)
    return out, lse


def multiprocessors(x: Tensor) -> int:
    """Of the tensor's device; 2 where there is none and the interpreter runs."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2


def split_count(call: Call, config: Config, rows: int, programs: int) -> int:
    """Parts that the keys are cut in: more than one where queries are few and keys many."""
    if rows > FEW_QUERIES or call.is_canvas:
        return 1
    return key_splits(programs, call.k.shape[2], config.block_k, multiprocessors(call.q))


def launch_forward(
    call: Call, config: Config, out: Tensor, lse: Tensor, splits: int | None = None
) -> None:
    """Run the forward kernel; split over keys and merged, if queries are few."""
    q, k, v = call.q, call.k, call.v
    batch, heads, q_len, _ = q.shape
    packed = call.packed
    rows = q_len * (call.group if packed else 1)
    n_tiles = rules.query_tiles(call.geometry, call.extent, rows, config.block_q)
    programs = n_tiles * batch * (k.shape[1] if packed else heads)
    if splits is None:
        splits = split_count(call, config, rows, programs)
    part, part_lse = out, lse
    if splits > 1:
        part = q.new_empty(splits, *q.shape[:3], v.shape[3], dtype=torch.float32)
        part_lse = q.new_empty(splits, *q.shape[:3], dtype=torch.float32)
    part_strides = part.stride()[-4:-1] if splits > 1 else out.stride()[:3]
    rows = (None, None)
    if config.late and config.described and call.describable:
        rows = (descriptor(k, config.block_k), descriptor(v, config.block_k))
    run(
        attention_fwd_kernel, (programs, splits),
        q, k, v, call.rel_k, call.rel_v, call.q_rel, call.key_lengths, call.query_offsets,
        call.pattern, *rows, part, part_lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides(call.q_rel, 3), *part_strides,
        *strides(call.rel_k, 2), *strides(call.rel_v, 2),
        part.stride(0) if splits > 1 else 0, part_lse.stride(0) if splits > 1 else 0,
        heads, call.group, q_len, k.shape[2], call.query_offset, call.extent, n_tiles,
        call.n_rows, call.scale, call.rel_scale,
        **call.what(), PACKED=packed, SPLIT=splits > 1,
        LATE=config.late and not call.is_canvas,  # where finding keys again costs more
        BLOCK_Q=config.block_q, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if splits > 1:
        run(
            merge_splits_kernel, (batch * heads * q_len,),
            part, part_lse, out, lse, *out.stride()[:3], part.stride(0), part_lse.stride(0),
            heads, q_len, splits,
            V_DIM=v.shape[3], BLOCK_DV=triton.next_power_of_2(v.shape[3]),
            BLOCK_SPLITS=triton.next_power_of_2(splits), num_warps=4,
        )  # fmt: skip
