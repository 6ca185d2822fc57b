"""Breaks of what users are told in a clone, and of what make installs."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "an example trains on the reference where the kernels are not built",
        file="examples/options.py",
        old="if reason := backends()[name].reason:",
        new="if asked and (reason := backends()[name].reason):",
        tests="tests/test_install.py -k programs",
    ),
    Mutant(
        "make replaces the triton that came with torch",
        file="tools/environment.py",
        old='KEPT = ("torch", "triton")',
        new='KEPT = ("torch",)',
        tests="tests/test_install.py -k environment",
    ),
]
