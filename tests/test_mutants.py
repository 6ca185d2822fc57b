"""Every mutant still fits the code: its old text stands exactly once in its file.

Whether tests notice the mutants is what `python tests/mutants` says, which takes longer.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "mutants"
sys.path.insert(0, str(HERE))
MUTANTS = runpy.run_path(str(HERE / "__main__.py"), run_name="mutants")["all_mutants"]()
sys.path.remove(str(HERE))


def test_names_tell_mutants_apart():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_fits_the_code(mutant):
    root = Path(__file__).parents[1]
    text = (root / mutant.file).read_text()
    assert text.count(mutant.old) == 1, mutant.file
    assert mutant.old != mutant.new
