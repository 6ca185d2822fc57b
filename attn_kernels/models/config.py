"""Configurations of models: frozen dataclasses with the papers' sizes as named presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """Base of all configurations: a subclass adds fields, `presets`, and checks in __post_init__.

    A preset names only what differs from the defaults of the fields.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def preset(cls: type[C], name: str, **changes: Any) -> C:
        """The preset of that name, with some fields changed."""
        if name not in cls.presets:
            known = ", ".join(cls.presets)
            raise ValueError(f"{cls.__name__}: preset must be one of {known}, got {name!r}")
        return cls(**{**cls.presets[name], **changes})

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """The configuration that to_dict gave, also after a round trip through JSON."""
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            missing, unknown = sorted(known - set(values)), sorted(set(values) - known)
            raise ValueError(
                f"{cls.__name__}: the values must name every field and no other,"
                f" got missing {missing} and unknown {unknown}"
            )
        return cls(**{name: as_tuple(value) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as numbers, strings, booleans, None and tuples of them."""
        return asdict(self)


def as_tuple(value: Any) -> Any:
    """Lists, as JSON gives them, as the tuples they were."""
    return tuple(map(as_tuple, value)) if isinstance(value, (list, tuple)) else value
