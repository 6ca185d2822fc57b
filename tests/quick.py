"""The short run of the tests (--quick): one case of each test for each backend under test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

# Left out because a case takes seconds: files and tests.
NOT_QUICK = {
    "test_examples.py",
    "test_an_example_goes_on_with_the_reference_if_asked",
    "test_documentation_builds_without_warnings",
    "test_peak_memory_is_linear",
    "test_random_calls",
    "test_what_was_prepared_for_another_call",
}


def one_of_each(items: Iterable[Any], target_of: Callable[[Any], Any]) -> set[Any]:
    """The first case of every test for every target, without NOT_QUICK."""
    found: dict[tuple, Any] = {}
    for item in items:
        if item.path.name not in NOT_QUICK and item.originalname not in NOT_QUICK:
            test = (item.path, item.cls, item.originalname, target_of(item))
            found.setdefault(test, item)
    return set(found.values())
