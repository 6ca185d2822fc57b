"""Greedy and beam search against exhaustive search over a small language model."""

from __future__ import annotations

import itertools

import pytest
import torch

from attn_kernels.models.search import beam_search, greedy_search, select

VOCAB, MAX_LEN, EOS = 4, 5, 0


def language_model(batch: int, seed: int = 0):
    """A random model of which the next token depends on the last two, and its start state."""
    generator = torch.Generator().manual_seed(seed)
    table = 2 * torch.randn(batch, VOCAB, VOCAB, VOCAB, generator=generator)

    def step(tokens, state):
        owner, previous = state["owner"], state["previous"]
        assert tokens.shape == owner.shape
        return table[owner, previous, tokens], {"owner": owner, "previous": tokens}

    start = torch.full((batch,), 1)
    return step, {"owner": torch.arange(batch), "previous": start}, start, table.log_softmax(-1)


def every_output():
    """All outputs that end with EOS within MAX_LEN tokens."""
    for length in range(MAX_LEN):
        for words in itertools.product(range(1, VOCAB), repeat=length):
            yield (*words, EOS)


def log_probability(table, tokens) -> float:
    history, total = (1, 1), 0.0
    for token in tokens:
        total += table[history][token].item()
        history = (history[1], token)
    return total


def normalised(table, tokens, length_penalty: float) -> float:
    return log_probability(table, tokens) / ((5 + len(tokens)) / 6) ** length_penalty


def plain_beam_search(table, beam: int, length_penalty: float):
    """The definition in lists: one entry, no early stop."""
    live, done = [()], []
    for _ in range(MAX_LEN):
        grown = [(*tokens, token) for tokens in live for token in range(VOCAB)]
        grown.sort(key=lambda tokens: log_probability(table, tokens), reverse=True)
        done += [tokens for tokens in grown[:beam] if tokens[-1] == EOS]
        live = [tokens for tokens in grown if tokens[-1] != EOS][:beam]
    return sorted(done, key=lambda tokens: normalised(table, tokens, length_penalty), reverse=True)[
        :beam
    ]


def trim(tokens, length) -> tuple[int, ...]:
    return tuple(tokens[: int(length)].tolist())


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0, -0.5])
def test_wide_beam_finds_the_best_outputs(length_penalty):
    step, state, start, table = language_model(batch=3)
    beam = VOCAB ** (MAX_LEN - 1)
    found = beam_search(
        step, state, start, eos=EOS, max_len=MAX_LEN, beam=beam, length_penalty=length_penalty
    )
    for entry in range(3):
        scores = {
            tokens: normalised(table[entry], tokens, length_penalty) for tokens in every_output()
        }
        expected = sorted(scores, key=scores.get, reverse=True)[:10]
        got = [trim(*pair) for pair in zip(found.tokens[entry], found.lengths[entry], strict=True)]
        assert got[:10] == expected
        torch.testing.assert_close(
            found.scores[entry, :10], torch.tensor([scores[t] for t in expected])
        )


@pytest.mark.parametrize("length_penalty", [0.0, 3.0, -3.0])
@pytest.mark.parametrize("beam", [1, 2, 3])
def test_narrow_beam_is_its_definition(beam, length_penalty):
    """Stopping early changes nothing."""
    step, state, start, table = language_model(batch=64, seed=1)
    for entry in range(64):  # one at a time: a batch goes on until its last entry may stop
        entries = select(state, torch.tensor([entry]))
        found = beam_search(
            step,
            entries,
            start[:1],
            eos=EOS,
            max_len=MAX_LEN,
            beam=beam,
            length_penalty=length_penalty,
        )
        expected = plain_beam_search(table[entry], beam, length_penalty)
        got = [trim(*pair) for pair in zip(found.tokens[0], found.lengths[0], strict=True)]
        assert not expected or got[: len(expected)] == expected


def test_beam_of_one_is_greedy():
    step, state, start, _ = language_model(batch=64)
    greedy = greedy_search(step, state, start, eos=EOS, max_len=MAX_LEN)
    beam = beam_search(step, state, start, eos=EOS, max_len=MAX_LEN, beam=1)
    assert torch.equal(greedy, beam.tokens[:, 0, : greedy.shape[1]])
    ended = greedy.eq(EOS).any(1)
    assert 0 < ended.sum() < 64  # both kinds occur
    assert torch.equal(greedy.ne(EOS).sum(1) + ended, beam.lengths[:, 0])


def test_an_entry_does_not_depend_on_its_batch():
    step, state, start, table = language_model(batch=16)
    together = beam_search(step, state, start, eos=EOS, max_len=MAX_LEN, beam=3)
    for entry in range(16):
        alone = beam_search(
            step, select(state, torch.tensor([entry])), start[:1], eos=EOS, max_len=MAX_LEN, beam=3
        )
        assert torch.equal(alone.lengths[0], together.lengths[entry])
        assert torch.equal(alone.tokens[0], together.tokens[entry, :, : alone.tokens.shape[2]])
        best = trim(together.tokens[entry, 0], together.lengths[entry, 0])
        assert log_probability(table[entry], best) == pytest.approx(
            together.scores[entry, 0].item(), abs=1e-5
        )


def test_nothing_finished_returns_the_unfinished():
    def step(tokens, state):
        return torch.tensor([-torch.inf, 0.0, 1.0, 2.0]).expand(tokens.shape[0], -1), state

    found = beam_search(step, None, torch.ones(2, dtype=torch.int64), eos=EOS, max_len=3, beam=2)
    assert found.tokens[:, 0].tolist() == [[3, 3, 3]] * 2
    assert found.lengths.tolist() == [[3, 3]] * 2
    assert found.scores.isfinite().all()


def test_select_reaches_every_kind_of_state():
    class Cache:
        def reorder(self, index):
            self.index = index

    x, index = torch.arange(3), torch.tensor([2, 0])
    state = select({"a": (x, [x]), "b": None, "c": Cache()}, index)
    assert state["a"][0].tolist() == state["a"][1][0].tolist() == [2, 0]
    assert state["b"] is None
    assert state["c"].index is index


def test_limits():
    step, state, start, _ = language_model(batch=1)
    with pytest.raises(ValueError, match=r"^max_len must be at least 1, got 0$"):
        greedy_search(step, state, start, eos=EOS, max_len=0)
    with pytest.raises(ValueError, match=r"^beam must be at least 1, got 0$"):
        beam_search(step, state, start, eos=EOS, max_len=3, beam=0)
    with pytest.raises(TypeError, match=r"^beam must be an int, got float$"):
        beam_search(step, state, start, eos=EOS, max_len=3, beam=2.0)
