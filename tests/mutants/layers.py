"""Breaks of what every layer and model holds."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "resetting a layer leaves what is inside a container",
        file="attn_kernels/nn/layer.py",
        old="            reset_parts(part)",
        new="            pass",
        tests="tests/test_every_module.py -k reset",
    ),
    Mutant(
        "resetting leaves the estimates of spectral norm",
        file="attn_kernels/models/sagan.py",
        old="    if normed:\n",
        new="    if False:\n",
        tests="tests/test_every_module.py -k reset",
    ),
    Mutant(
        "a constant is made on the default device, which may be meta",
        file="attn_kernels/models/constant.py",
        old='with torch.device("cpu"), torch.inference_mode(False):',
        new="with torch.inference_mode(False):",
        tests="tests/test_every_module.py -k meta",
    ),
    Mutant(
        "the host asks the device whether ids are in range",
        file="attn_kernels/nn/checks.py",
        old="    if is_asserted_by_device(holds):",
        new="    if False:",
        tests="tests/test_every_module.py -k wait",
    ),
    Mutant(
        "a cache ignores another context",
        file="attn_kernels/nn/attention.py",
        old="            cache.check_context(context)\n",
        new="",
        tests="tests/test_layers.py -k context",
    ),
]
