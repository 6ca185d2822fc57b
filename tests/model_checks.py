"""What every model must hold: backends agree, the future is unseen, caches change nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import most_exact_dtype
from torch import Tensor, nn

from attn_kernels.nn import set_backend

# Relative to the largest entry of what is compared; gradients that vanish by symmetry (a key's
# bias) are held against the model's largest gradient instead.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
VANISHING = 0.01

Run = Callable[[nn.Module], tuple[Tensor, Tensor]]


def outcome(model: nn.Module, run: Run, backend: str) -> dict[str, Tensor]:
    """The output, the loss and the gradient of every parameter."""
    set_backend(model, backend)
    model.zero_grad(set_to_none=True)
    output, loss = run(model)
    loss.backward()
    found = {"output": output.detach(), "loss": loss.detach()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name] = parameter.grad
    return found


def check_backends_agree(model: nn.Module, run: Run, backend: str) -> None:
    """run(model) -> (output, loss) gives the same with `backend` as with the dense reference, in
    float64 (where the backend has it) and float32, gradients of all parameters included. run moves
    its inputs' dtype itself if they are floating (`model_dtype`); dropout is off."""
    model.eval()
    for dtype in dict.fromkeys((most_exact_dtype(), torch.float32)):
        tolerance = TOLERANCES[dtype]
        model.to(dtype)
        expected = outcome(model, run, "reference")
        found = outcome(model, run, backend)
        names = [name for name in expected if name not in ("output", "loss")]
        largest = max(float(expected[name].abs().max()) for name in names)
        for name, reference in expected.items():
            assert torch.isfinite(found[name]).all(), name
            floor = VANISHING * largest if name in names else 0.0
            size = max(float(reference.abs().max()), floor)
            error = float((found[name] - reference).abs().max())
            assert error <= tolerance * size, f"{name}, {dtype}: {error:.2e} of {size:.2e}"
    set_backend(model, None)


def model_dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def check_causal(call: Callable[[Tensor], Tensor], tokens: Tensor, vocab: int) -> None:
    """call(tokens [B, L]) -> [B, L, ...]: another token changes nothing before it, and something
    at it."""
    before = call(tokens)
    for place in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % vocab
        after = call(changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=0)
        assert not torch.equal(after[:, place], before[:, place])


def count_parameters(make: Callable[[], nn.Module]) -> int:
    """How many parameters the model of make() has; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def count_weights(make: Callable[[], nn.Module]) -> int:
    """As count_parameters, matrices and larger alone: what papers count, no biases and norms."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters() if parameter.dim() > 1)


def randomise(model: nn.Module, seed: int = 1, std: float = 0.3) -> nn.Module:
    """Replace every parameter: what starts at zero (biases, gates) would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
        parameter.data.copy_(std * noise)
    return model
