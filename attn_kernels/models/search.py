"""Beam search with the length penalty of GNMT."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attn_kernels.nn.checks import check_count


def length_penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6) ** alpha: what a log-probability is divided by (Wu et al. 2016,
    arXiv 1609.08144, equation 14). Some libraries divide by length ** alpha instead."""
    return ((5 + length) / 6) ** alpha


class Finished:
    """The best finished sequence of each of B entries, and how many have finished."""

    def __init__(self, batch: int, steps: int, end: int, device: torch.device) -> None:
        self.tokens = torch.full((batch, steps), end, device=device)
        self.score = torch.full((batch,), -torch.inf, device=device)
        self.count = torch.zeros(batch, dtype=torch.int64, device=device)

    def add(self, tokens: Tensor, scores: Tensor) -> None:
        """Of tokens [B, n, length] those whose scores [B, n] are not -inf have finished."""
        score, place = scores.max(1)
        better = score > self.score
        best = tokens[torch.arange(len(tokens), device=tokens.device), place]
        self.tokens[better, : tokens.shape[2]] = best[better]
        self.score = torch.where(better, score, self.score)
        self.count += torch.isfinite(scores).sum(1)


@torch.no_grad()
def beam_search(
    logits_of: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor], None],
    start: Tensor,
    *,
    beams: int,
    end: int,
    steps: int,
    alpha: float = 0.6,
) -> tuple[Tensor, Tensor]:
    """The best sequence found for each of B entries, by log-probability over length penalty.

    Each step extends `beams` live sequences of an entry. An extension by `end` that is among the
    best `beams` is finished. An entry is done when it has `beams` finished sequences, or when no
    live one can still beat its best. Without any finished sequence the best live one is returned.

    Args:
        logits_of: the logits [B * beams, V] that follow tokens [B * beams, length].
        reorder: called with entries [B * beams] before the next step: row i continues what row
            entries[i] was. A cache follows it.
        start: the first token, [B].
        steps: the longest sequence, `end` counted.
        alpha: exponent of the length penalty; 0 is none.
    Returns:
        Tokens behind `start`, [B, length], filled up with `end`; scores [B].
    """
    check_count("beams", beams)
    check_count("steps", steps)
    batch, device = len(start), start.device
    first_row = torch.arange(batch, device=device).unsqueeze(1) * beams
    tokens = start.repeat_interleave(beams).view(batch, beams, 1)
    live = torch.full((batch, beams), -torch.inf, device=device)
    live[:, 0] = 0  # all beams are equal at first: only one may be extended
    finished = Finished(batch, steps, end, device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    for length in range(1, steps + 1):
        logits = logits_of(tokens.flatten(0, 1)).unflatten(0, (batch, beams)).float()
        scores = live.unsqueeze(-1) + torch.log_softmax(logits, -1)
        vocabulary = scores.shape[-1]
        # at most `beams` of twice as many can end, so enough are left to go on
        most = min(2 * beams, beams * vocabulary)
        best, flat = scores.flatten(1).topk(most)
        beam, token = flat // vocabulary, flat % vocabulary
        tokens = torch.cat((tokens.gather(1, expand(beam, tokens)), token.unsqueeze(-1)), -1)

        ends = token == end
        finishing = ends & (torch.arange(most, device=device) < beams) & ~done.unsqueeze(1)
        penalised = best / length_penalty(length, alpha)
        finished.add(tokens[..., 1:], penalised.masked_fill(~finishing, -torch.inf))

        live, kept = best.masked_fill(ends, -torch.inf).topk(min(beams, most))
        tokens = tokens.gather(1, expand(kept, tokens))
        # a log-probability only falls, and the penalty only grows, up to the longest sequence
        hope = live.amax(1) / length_penalty(steps if alpha > 0 else length, alpha)
        done = done | (finished.count >= beams) | (finished.score >= hope)
        if bool(done.all()):
            break
        reorder((first_row + beam.gather(1, kept)).flatten())
    unfinished = (finished.count == 0).unsqueeze(1)
    penalised = live / length_penalty(tokens.shape[2] - 1, alpha)
    finished.add(tokens[..., 1:], penalised.masked_fill(~unfinished, -torch.inf))
    lengths = ((finished.tokens != end).sum(1) + 1).clamp(max=steps)
    return finished.tokens[:, : max(lengths.tolist(), default=0)], finished.score


def expand(index: Tensor, like: Tensor) -> Tensor:
    """An index [B, n] for gathering rows of `like` [B, m, length]."""
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])
