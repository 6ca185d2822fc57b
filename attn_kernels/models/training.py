"""What training the models needs: the smoothed loss and the warm-up schedule of the Transformer."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from attn_kernels.nn.checks import check_count, check_fraction


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, ignore: int = -100
) -> Tensor:
    """Mean cross-entropy against targets smoothed over all V classes (Szegedy et al. 2016).

        q(y) = 1 - smoothing + smoothing / V        for the target
        q(y) = smoothing / V                        for every other class

    This is torch's formula. tensor2tensor gives the target 1 - smoothing and the others
    smoothing / (V - 1), and subtracts the entropy of that distribution; the Annotated Transformer
    gives smoothing / (V - 2) and excludes padding. The three differ in value for one smoothing.

    Args:
        logits: [..., V].
        targets: int64 [...]; where they are `ignore`, nothing counts.
    """
    check_fraction("smoothing", smoothing)
    if targets.numel() == 0:
        raise ValueError("there must be at least one token to predict, got none")
    return F.cross_entropy(
        logits.flatten(0, -2).float() if logits.dtype.itemsize < 4 else logits.flatten(0, -2),
        targets.flatten(),
        ignore_index=ignore,
        label_smoothing=smoothing,
    )


def warmup_rate(step: int, dim: int, warmup: int = 4000, factor: float = 1.0) -> float:
    """factor * dim^-0.5 * min(step^-0.5, step * warmup^-1.5), the Transformer's learning rate.

    Steps count from 1. With torch: `LambdaLR(Adam(parameters, lr=1.0, betas=(0.9, 0.98),
    eps=1e-9), lambda step: warmup_rate(step + 1, dim))`.
    """
    check_count("step", step)
    check_count("warmup", warmup)
    return factor * dim**-0.5 * min(step**-0.5, step * warmup**-1.5)
