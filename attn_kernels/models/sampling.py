"""Sampling: one token from logits, and a sequence token by token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attn_kernels.nn.checks import check_count


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One id per row, drawn from softmax(logits / temperature).

    Args:
        logits: [..., V].
        temperature: 0 takes the largest logit.
        top_k: only the k largest logits may be drawn.
        generator: draws the same ids for the same seed.
    Returns:
        int64 [...].
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        check_count("top_k", top_k)
        least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    weights = torch.softmax(logits.float() / temperature, -1)
    drawn = torch.multinomial(weights.flatten(0, -2), 1, generator=generator)
    return drawn.view(logits.shape[:-1])


@torch.no_grad()
def generate(
    logits_of: Callable[[Tensor], Tensor],
    tokens: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    end: int | None = None,
) -> Tensor:
    """Continue `tokens` [B, L] by up to `steps` sampled ones: [B, up to L + steps].

    Args:
        logits_of: the logits [B, V] that follow tokens [B, any length]. It may keep a cache.
        temperature, top_k, generator: as for `sample`.
        end: behind this id a sequence holds nothing else; all of them ended, generation stops.
    """
    check_count("steps", steps, 0)
    if tokens.shape[1] == 0:
        raise ValueError("tokens must hold at least one token to continue, got none")
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(steps):
        new = sample(logits_of(tokens), temperature=temperature, top_k=top_k, generator=generator)
        if end is not None:
            new = torch.where(ended, end, new)
            ended = new == end
        tokens = torch.cat((tokens, new.unsqueeze(1)), 1)
        if end is not None and bool(ended.all()):
            break
    return tokens
