"""Breaks of what lies around the Triton kernels."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "Triton: the strides of a dimension of one count for descriptors",
        file="attn_kernels/triton/launch.py",
        old="batch if n_batch > 1 else dim",
        new="batch",
        tests="tests/test_triton.py -k launchers",
    ),
    Mutant(
        "Triton: explain() forgets a buffer",
        file="attn_kernels/triton/plan.py",
        old="*lots.sheared, lots.reach,",
        new="*lots.sheared,",
        tests="tests/test_triton.py -k launchers",
    ),
    Mutant(
        "Triton: keys beyond a table count for its first row only",
        file="attn_kernels/triton/grad_table.py",
        old="scale * tl.sum(high, 0)",
        new="0.0 * tl.sum(high, 0)",
        tests="tests/test_triton.py -k launchers",
    ),
]
