"""Breaks of how a call reaches the kernels: memory, numbers and torch's tracers."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "in C++, keys keep the strides that a conversion gives them",
        file="csrc/bindings.cpp",
        old="k = rows_as_type(k, dtype), v",
        new="k = as_type(k, dtype), v",
        tests="tests/test_causal.py -k overlapping",
    ),
    Mutant(
        "a table's heads are looked for in a tuple",
        file="attn_kernels/core/checks.py",
        old="(table.shape[0] == 1 or table.shape[0] == heads)",
        new="table.shape[0] in (1, heads)",
        tests="tests/test_torch.py -k compile_a_table",
    ),
    Mutant(
        "a window is never cut to a number of 64 bits",
        file="attn_kernels/core/geometry.py",
        old="return (smaller(self.window, UNLIMITED),)",
        new="return (self.window,)",
        tests="tests/test_causal.py -k endless",
    ),
    Mutant(
        "the compiler may look into what is decided by values",
        file="attn_kernels/core/tracing.py",
        old="untraced = torch.compiler.disable(real, reason=reason)",
        new="untraced = real",
        tests="tests/test_torch.py -k compile_a_pattern",
    ),
    Mutant(
        "a traced program holds a Python function",
        file="attn_kernels/core/autograd.py",
        old="is_autocast_enabled(x.device.type) or torch.jit.is_tracing():",
        new="is_autocast_enabled(x.device.type):",
        tests="tests/test_layers.py -k traced",
    ),
]
