"""Breaks of what users are told: types, messages, and how arguments may be written."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "types: causal attention with return_lse is said to give a tensor",
        file="attn_kernels/causal.py",
        old=") -> tuple[Tensor, Tensor]: ...",
        new=") -> Tensor: ...",
        tests="tests/test_types.py",
    ),
    Mutant(
        "messages: a nested tensor is taken for a dense one",
        file="attn_kernels/core/checks.py",
        old="if x.layout is not torch.strided or x.is_nested:",
        new="if x.layout is not torch.strided:",
        tests="tests/test_errors.py",
    ),
    Mutant(
        "messages: a pattern's function may take FlexAttention's four arguments",
        file="attn_kernels/core/pattern.py",
        old="signature.bind(0, 0)",
        new="signature.bind(*[0] * len(signature.parameters))",
        tests="tests/test_errors.py",
    ),
    Mutant(
        "lists stay lists in a canvas's geometry",
        file="attn_kernels/core/geometry.py",
        old="tuple(getattr(self, name))",
        new="getattr(self, name)",
        tests="tests/test_geometry.py -k lists",
    ),
]
