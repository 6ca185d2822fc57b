"""explain(): the backend chosen for given inputs, and what the work costs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .backends import REFERENCE, choose, cpu_library
from .geometry import Full, Geometry
from .score import Relative
from .validate import check_inputs


@dataclass(frozen=True)
class Explanation:
    """What attention() would do with some inputs. Operations and bytes are of useful work only.

    Attributes:
        backend, reason: who computes, and why.
        detail: the instruction set, or nothing.
        tile: queries in a tile; 0 where there are no tiles.
        key_splits: parts the keys of a tile are cut in, forward (few queries over many keys).
        query_chunks: parts the queries of one head are cut in, backward.
        visible_pairs: (query, key) pairs that attend, over batch and heads.
        forward_flops, backward_flops: of the products over visible pairs.
        bytes_read, bytes_written: every input read once and every output written once, forward.
        forward_memory, backward_memory: bytes allocated beside inputs and results, with the current
            number of threads.
    """

    backend: str
    reason: str
    detail: str
    tile: int
    key_splits: int
    query_chunks: int
    visible_pairs: int
    forward_flops: int
    backward_flops: int
    bytes_read: int
    bytes_written: int
    forward_memory: int
    backward_memory: int

    def __str__(self) -> str:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return "\n".join(
            f"{name.replace('_', ' '):16} {value:,}"
            if isinstance(value, int)
            else f"{name:16} {value}"
            for name, value in values
        )


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    geometry: Geometry = Full(),  # noqa: B008 (frozen)
    score: Relative | None = None,
    *,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    query_offset: int | Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Explanation:
    """Say what attention() would do with these arguments, without doing it.

    key_lengths and tensors of offsets are not looked into: counts are those of whole sequences.
    return_lse changes nothing: lse is always computed.
    """
    check_inputs(q, k, v, geometry, score, scale, key_lengths, query_offset)
    name, reason = choose(backend, q, v)
    (batch, heads, q_len, dim), (_, _, k_len, v_dim) = q.shape, v.shape
    default = geometry.default_offset(q_len, k_len)
    given = query_offset is not None and not isinstance(query_offset, Tensor)
    offset = int(query_offset) if given else default
    pairs = batch * heads * geometry.visible_pairs(q_len, k_len, offset)
    products, back_products = dim + v_dim, 3 * dim + 2 * v_dim
    tensors = [q, k, v]
    if score is not None:
        products, back_products = products + dim, back_products + 3 * dim
        if score.rel_v is not None:
            products, back_products = products + v_dim, back_products + 2 * v_dim
        tensors += [x for x in (score.rel_k, score.rel_v, score.q_rel) if x is not None]

    if name == "triton":
        at = query_offset if isinstance(query_offset, Tensor) else offset
        plan = triton_plan(q, k, v, geometry, score, key_lengths, at)
    else:
        plan = dense_plan(q, k_len) if name == REFERENCE else cpu_plan(q, k, v, geometry, score)
    return Explanation(
        backend=name,
        reason=reason,
        **plan,
        visible_pairs=pairs,
        forward_flops=2 * pairs * products,
        backward_flops=2 * pairs * back_products,
        bytes_read=sum(x.numel() * x.element_size() for x in tensors),
        bytes_written=batch * heads * q_len * (v_dim * q.element_size() + 4),
    )


def dense_plan(q: Tensor, k_len: int) -> dict[str, int | str]:
    """The reference: logits and weights of every pair, kept for autograd."""
    logits = q.shape[0] * q.shape[1] * q.shape[2] * k_len * max(q.element_size(), 4)
    return {
        "detail": "",
        "tile": 0,
        "key_splits": 1,
        "query_chunks": 1,
        "forward_memory": 2 * logits,
        "backward_memory": 4 * logits,
    }


def triton_plan(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, score: Relative | None,
    key_lengths: Tensor | None, query_offset: int | Tensor,
) -> dict[str, int | str]:  # fmt: skip
    """What the launchers say of the operator's call. Nothing there depends on scales, nor on what
    is in a pattern."""
    from ..triton.plan import plan

    rel_k = rel_v = q_rel = offsets = None
    clip = score is None or score.beyond == "clip"
    if score is not None:
        rel_k, rel_v, q_rel = score.rel_k, score.rel_v, score.q_rel
    if isinstance(query_offset, Tensor):
        offsets, query_offset = query_offset, 0
    return plan(
        q, k, v, rel_k, rel_v, q_rel, key_lengths, offsets, None, query_offset,
        geometry.name, geometry.extent(), clip, 1.0, 1.0,
    )  # fmt: skip


def cpu_plan(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, score: Relative | None
) -> dict[str, int | str]:
    """The C++ kernels' own figures, with what the binding converts."""
    is_double, is_half = q.dtype == torch.float64, q.element_size() == 2
    table = [0, 0, 0]
    if score is not None:
        table = [score.rel_k.shape[0], score.rel_k.shape[1], int(score.rel_v is not None)]
    sizes = [*q.shape[:2], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], *table]
    few, splits, scratch, parts, chunks, back_scratch, back_parts = cpu_library.plan(
        sizes, is_double, geometry.name, geometry.extent()
    )
    widened = 4 * (k.numel() + v.numel()) if is_half else 0  # float32 copies of half-precision keys
    threads = torch.get_num_threads()
    return {
        "detail": cpu_library.isa,
        "tile": 0 if few else 32 if is_double else 64,
        "key_splits": splits,
        "query_chunks": chunks,
        "forward_memory": threads * scratch + parts + (0 if few else widened),
        "backward_memory": threads * back_scratch + back_parts + widened,
    }
