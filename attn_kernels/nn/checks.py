"""Rules on the arguments of layers and models, and their messages: name, rule, what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_counts(owner: Any, *names: str, least: int = 1) -> None:
    """check_count for these attributes of `owner`, named after its class."""
    for name in names:
        check_count(f"{type(owner).__name__}: {name}", getattr(owner, name), least)


def check_fraction(name: str, value: Any) -> None:
    """Raise unless 0 <= value < 1: a rate of dropout, a share of smoothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_tensor(name: str, value: Any, axes: tuple[str, ...], dim: int | None = None) -> None:
    """Raise unless `value` is a tensor with these axes, the last of size `dim` if that is given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dim() != len(axes) or (dim is not None and value.shape[-1] != dim):
        expected = list(axes) if dim is None else [*axes[:-1], dim]
        text = ", ".join(map(str, expected))
        raise ValueError(f"{name} must have shape [{text}], got {list(value.shape)}")


def check_ids(name: str, ids: Any, count: int, axes: tuple[str, ...] = ("batch", "length")) -> None:
    """Raise unless `ids` are int64 or int32 in [0, count); the range as in `check_all`."""
    check_tensor(name, ids, axes)
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be int64 or int32, got {str(ids.dtype)[6:]}")
    if ids.numel() > 0:
        least, most = ids.aminmax()
        check_all(
            f"{name} must lie in [0, {count})",
            (least >= 0) & (most < count),
            lambda: f"{int(least)} to {int(most)}",
        )


def check_all(
    rule: str, holds: Tensor, found: Callable[[], str], error: type[Exception] = ValueError
) -> None:
    """Raise error(f"{rule}, got {found()}") unless every entry of `holds` is true.

    On a GPU the device asserts it, as torch does for the index of an embedding: asking it here
    would make the host wait in every step, and no CUDA graph could be captured. torch.compile does
    not check, and on meta there are no values.
    """
    if torch.compiler.is_compiling() or holds.is_meta:
        return
    holds = holds.all() if holds.dim() else holds
    if is_asserted_by_device(holds):
        torch._assert_async(holds, rule)
    elif not holds:
        raise error(f"{rule}, got {found()}")


def is_asserted_by_device(holds: Tensor) -> bool:
    return holds.is_cuda
