"""What a call would do, without doing it: for explain()."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .buffers import Buffer
from .configs import settled
from .launch import Call, device_name, split_count, split_parts
from .launch_backward import lots_of, sum_buffers, table_totals


def plan(q: Tensor, *args: Any) -> dict[str, int | str]:
    """Of the operators' arguments. Copies that gradients in odd layouts take are not counted."""
    inputs = q, *args
    call = Call.of(*map(described, inputs))._replace(device=q.device, known={})
    forward, grad_q = (
        settled(call.kind(direction), call.tuning_key) for direction in ("forward", "grad_q")
    )
    splits = split_count(call, forward)
    copies = sum(x.nbytes for x in inputs if isinstance(x, Tensor) and has_gaps(x))
    backward = [*sum_buffers(call).all]
    if call.has_pairs:
        lots = lots_of(call, grad_q)
        backward += [*lots.sheared, lots.reach, *lots.grads, *table_totals(call)]
    return {
        "detail": device_name(q.device),
        "tile": forward.block_q,
        "key_splits": splits,
        "query_chunks": 1,
        "forward_memory": copies + bytes_of(split_parts(call, splits)),
        "backward_memory": copies + bytes_of(backward),
    }


def bytes_of(buffers: list[Buffer | None]) -> int:
    return sum(each.bytes for each in buffers if each is not None)


def has_gaps(x: Tensor) -> bool:
    """Whether Call.of copies it."""
    return x.stride(-1) != 1


def described(x: Any) -> Any:
    """An argument as Call.of leaves it; a copy has no memory."""
    if isinstance(x, Tensor) and has_gaps(x):
        return torch.empty(x.shape, dtype=x.dtype, device="meta")
    return x
