"""Breaks of the geometries' rules."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "a causal window shows one key more",
        file="attn_kernels/core/geometry.py",
        old="seen & (k_pos > q_pos - self.extent()[0])",
        new="seen & (k_pos >= q_pos - self.extent()[0])",
        tests="tests/test_geometry.py",
    ),
    Mutant(
        "in C++, a window begins one key late",
        file="csrc/geometry.h",
        old="span.start = pos - g.window + 1;",
        new="span.start = pos - g.window + 2;",
        tests="tests/test_rules.py",
    ),
]
