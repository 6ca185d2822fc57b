"""Greedy and beam search over any decoder that reads one token and a state at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# step(tokens [N], state) -> (logits [N, vocab] of the next token, the state that follows).
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


class Hypotheses(NamedTuple):
    """The outputs found for each input, best first. Past its end a hypothesis repeats `eos`.

    tokens is [batch, beam, length]; scores and lengths (`eos` counted) are [batch, beam].
    """

    tokens: Tensor
    scores: Tensor
    lengths: Tensor


def select(state: Any, index: Tensor) -> Any:
    """The entries `index` of a state along the batch: tensors by their first dimension, nested in
    tuples, lists and dicts; any other object by its method `reorder(index)`, in place (caches).
    """
    if state is None or isinstance(state, Tensor):
        return None if state is None else state.index_select(0, index)
    if isinstance(state, dict):
        return {key: select(value, index) for key, value in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(select(value, index) for value in state))
    if isinstance(state, list | tuple):
        return type(state)(select(value, index) for value in state)
    state.reorder(index)
    return state


def length_factor(length: int, length_penalty: float) -> float:
    """GNMT's ((5 + length) / 6) ** length_penalty, by which a log-probability is divided."""
    return ((5 + length) / 6) ** length_penalty


@torch.no_grad()
def greedy_search(step: Step, state: Any, start: Tensor, *, eos: int, max_len: int) -> Tensor:
    """Take the likeliest token each time.

    Args:
        step, state: the decoder and its state for the whole batch.
        start: [batch] int64, the first token that the decoder reads; it is not in the result.
        eos: the token that ends an output.
        max_len: the most tokens of an output, `eos` counted.
    Returns:
        [batch, length <= max_len] int64; an output repeats `eos` past its end.
    """
    check_limits(1, max_len)
    tokens, last = [], start
    ended = torch.zeros_like(start, dtype=torch.bool)
    for _ in range(max_len):
        logits, state = step(last, state)
        last = logits.argmax(-1).masked_fill(ended, eos)
        tokens.append(last)
        ended = ended | (last == eos)
        if ended.all():
            break
    return torch.stack(tokens, 1)


@torch.no_grad()
def beam_search(
    step: Step,
    state: Any,
    start: Tensor,
    *,
    eos: int,
    max_len: int,
    beam: int,
    length_penalty: float = 0.0,
) -> Hypotheses:
    """Keep the `beam` best unfinished outputs, and the `beam` best finished ones by

        score = log p(tokens) / ((5 + length) / 6) ** length_penalty.

    An output is finished when `eos` is among the `beam` best continuations of its batch entry, so
    beam=1 without a penalty is greedy search. Search ends when no unfinished output can still win.
    An entry of which nothing finished in `max_len` tokens returns its unfinished outputs.

    Args: as for `greedy_search`; `state` has one entry per batch entry, not per hypothesis.
    """
    check_limits(beam, max_len)
    batch, device = start.shape[0], start.device
    entries = torch.arange(batch, device=device)
    state = select(state, entries.repeat_interleave(beam))
    first_hypothesis = (entries * beam).unsqueeze(1)

    live = torch.full((batch, beam, max_len), eos, dtype=torch.int64, device=device)
    live_score = torch.full((batch, beam), -torch.inf, device=device)
    live_score[:, 0] = 0  # the hypotheses are all alike before the first token
    done, done_score = live.clone(), torch.full_like(live_score, -torch.inf)
    done_length = torch.full_like(done_score, max_len, dtype=torch.int64)
    last = start.repeat_interleave(beam)

    for length in range(1, max_len + 1):
        logits, state = step(last, state)
        vocab = logits.shape[-1]
        score = logits.float().log_softmax(-1).view(batch, beam, vocab) + live_score.unsqueeze(2)
        # At most `beam` of the 2 * beam best end: enough remain to go on with.
        score, choice = score.flatten(1).topk(2 * beam)
        parent, token = choice // vocab, choice % vocab
        grown = take(live, parent)
        grown[:, :, length - 1] = token
        ends = token == eos

        ended = (score / length_factor(length, length_penalty)).masked_fill(~ends, -torch.inf)
        done_score, kept = torch.cat([done_score, ended[:, :beam]], 1).topk(beam)
        done = take(torch.cat([done, grown[:, :beam]], 1), kept)
        lengths = torch.full_like(done_length, length)
        done_length = torch.cat([done_length, lengths], 1).gather(1, kept)

        live_score, kept = score.masked_fill(ends, -torch.inf).topk(beam)
        live = take(grown, kept)
        reachable = live_score[:, 0] / length_factor(max_len, max(length_penalty, 0.0))
        if (reachable <= done_score[:, -1]).all():
            break
        state = select(state, (first_hypothesis + parent.gather(1, kept)).flatten())
        last = live[:, :, length - 1].flatten()

    unfinished = done_score[:, :1] == -torch.inf
    live_score = live_score / length_factor(length, length_penalty)
    return Hypotheses(
        torch.where(unfinished.unsqueeze(2), live, done)[:, :, :length],
        torch.where(unfinished, live_score, done_score),
        torch.where(unfinished, length, done_length),
    )


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens [batch, n, length] at index [batch, m]: [batch, m, length]."""
    return tokens.gather(1, index.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def check_limits(beam: int, max_len: int) -> None:
    for name, value in (("beam", beam), ("max_len", max_len)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
