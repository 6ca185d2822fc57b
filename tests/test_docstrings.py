"""Docstrings: every public function and class has an example, and the examples run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest
import torch

import attn_kernels
from attn_kernels import nn

# What an example may name without importing it.
NAMES = {"torch": torch}
for module in (attn_kernels, nn):
    NAMES |= {name: getattr(module, name) for name in module.__all__}
PUBLIC = [
    pytest.param(module, name, id=f"{module.__name__}.{name}")
    for module in (attn_kernels, nn)
    for name in module.__all__
    if callable(getattr(module, name))
]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_example(module: ModuleType, name: str) -> None:
    """The docstring has an `Example:`, which gives what it says."""
    text = getattr(module, name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, dict(NAMES), name, None, None)
    assert example.examples, f"{name} has no example: an `Example:` with lines of >>>"
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not failed, "".join(report)
