"""How the tests are run: the short run has each test for each backend, a long one tells how far it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import quick
from progress import Progress


def item(name: str, target: str | None = None, file: str = "test_some.py") -> SimpleNamespace:
    """What --quick asks of a test."""

    class Item(SimpleNamespace):
        __hash__ = object.__hash__

    return Item(path=Path(file), cls=None, originalname=name, target=target)


def test_quick_has_one_case_of_each_test_and_backend():
    first, other, plain = item("test_a", "cpu-avx2"), item("test_a", "triton"), item("test_b")
    elsewhere = item("test_b", file="test_other.py")
    slow = item("test_peak_memory_is_linear", "cpu-avx2"), item("test_c", file="test_examples.py")
    items = [first, item("test_a", "cpu-avx2"), other, plain, *slow, elsewhere, item("test_b")]
    found = quick.one_of_each(items, lambda x: x.target)
    assert [x for x in items if any(x is y for y in found)] == [first, other, plain, elsewhere]


def test_what_quick_leaves_out_exists():
    """A test that was renamed would come back unnoticed."""
    files = list(Path(__file__).parent.rglob("*.py"))
    for name in quick.NOT_QUICK:
        if name.endswith(".py"):
            assert any(file.name == name for file in files), name
        else:
            assert any(f"def {name}(" in file.read_text() for file in files), name


def test_a_long_run_tells_how_long_it_will_go_on():
    found = Progress(SimpleNamespace(stats={"failed": [None]}))
    found.session = SimpleNamespace(testscollected=2000)
    found.done = 500
    assert found.line(61) == "500 of 2000 tests, 1 failed, 1:01, about 3:03 left"
