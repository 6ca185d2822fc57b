"""Breaks of the terms of a score."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "a bias is read one row too far",
        file="csrc/cpu/score/bias.h",
        old="const T* from = window + step.keys - 1 - key;",
        new="const T* from = window + step.keys - key;",
        tests="tests/test_bias.py",
    ),
    Mutant(
        "the gradient of a bias forgets keys behind the table",
        file="csrc/cpu/score/bias.h",
        old="add_beyond(*--from, table.rows - 1);",
        new="--from;",
        tests="tests/test_bias.py",
    ),
    Mutant(
        "a named zero_row is ignored",
        file="csrc/score.h",
        old="return given >= 0 ? given : causal",
        new="return causal",
        tests="tests/test_bias.py",
    ),
    Mutant(
        "decoding adds a bias in base e instead of 2",
        file="csrc/cpu/few.h",
        old="row[j] += table.data[place] * T(kLog2E);",
        new="row[j] += table.data[place];",
        tests="tests/test_bias.py",
    ),
    Mutant(
        "under vmap a term's table is shared by all samples",
        file="attn_kernels/core/batching.py",
        old="fold(x, dim, 0, heads) if kind == TABLE else",
        new="(x if dim is None else x.select(dim, 0)) if kind == TABLE else",
        tests="tests/test_torch.py -k vmap",
    ),
    Mutant(
        "sinks scale the output of queries without keys to NaN",
        file="attn_kernels/core/sinks.py",
        old="finite = torch.where(has_key, lse, 0)",
        new="finite = lse + 0",
        tests="tests/test_sinks.py",
    ),
    Mutant(
        "sinks change lse but not the output",
        file="attn_kernels/core/sinks.py",
        old="(out * share).to(out.dtype)",
        new="out",
        tests="tests/test_sinks.py",
    ),
]
