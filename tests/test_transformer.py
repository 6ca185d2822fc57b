"""The Transformer and what it is trained and searched with."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from common import dice
from model_checks import check_backends_agree, check_causal, count_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels.models import Transformer, TransformerConfig
from attn_kernels.models.sampling import generate, sample
from attn_kernels.models.search import beam_search, length_penalty
from attn_kernels.models.training import smoothed_cross_entropy, warmup_rate
from attn_kernels.nn import TransformerLayer

TINY = TransformerConfig.preset("small", vocab=13, dim=16, hidden=24, heads=2)


def tiny(**changes) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig.from_dict(TINY.to_dict() | changes)
    model = Transformer(config).eval()
    with torch.no_grad():  # larger than at the start, so that different inputs differ clearly
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def sentences(length: int = 7) -> Tensor:
    """Three sentences, two of them padded."""
    tokens = torch.randint(3, 13, (3, length), generator=dice(1))
    tokens[:, 0] = 1
    tokens[0, 4:], tokens[2, 3:] = 0, 0
    return tokens


class TestModel:
    @pytest.mark.parametrize("norm", ["post", "pre"])
    def test_backends_agree(self, backend, norm):
        source, target = sentences(), sentences(9)

        def run(model):
            return model(source, target), model.loss(source, target)

        check_backends_agree(tiny(norm=norm), run, backend.name)

    def test_decoder_is_causal(self):
        model, target = tiny(), sentences()
        target[target == 0] = 5
        check_causal(lambda tokens: model(sentences(), tokens), target, 13)

    def test_padding_of_the_source_changes_nothing(self):
        model, source, target = tiny(), sentences(), sentences()
        padded = F.pad(source, (0, 5))
        torch.testing.assert_close(model(padded, target), model(source, target))

    def test_encoder_is_equivariant_without_positions(self):
        """Self-attention sees a set: permuting the inputs permutes the outputs."""
        encoder, x = tiny().double().encoder, torch.randn(2, 9, 16, dtype=torch.float64)
        order = torch.randperm(9)
        torch.testing.assert_close(encoder(x[:, order]), encoder(x)[:, order])

    @pytest.mark.parametrize("beams", [1, 4])
    def test_cache_changes_no_translation(self, backend, beams):
        model = tiny()
        for layer in (*model.encoder.layers, *model.decoder.layers):
            layer.attention.backend = backend.name
        cached = model.translate(sentences(), beams=beams, steps=12)
        again = model.translate(sentences(), beams=beams, steps=12, cached=False)
        assert torch.equal(cached, again)
        assert len({tuple(row) for row in cached.tolist()}) > 1

    def test_the_source_is_projected_once(self):
        model, calls = tiny(), []
        model.decoder.layers[0].cross.key.register_forward_hook(lambda *_: calls.append(1))
        assert model.translate(sentences(), steps=5).shape[1] > 1
        assert len(calls) == 1

    def test_dropout_acts_in_training_only(self):
        model, source = tiny(dropout=0.5), sentences()
        assert torch.equal(model(source, source), model(source, source))
        model.train()
        for kept in (model.dropout, model.encoder.layers[0].attention_residual.dropout):
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.5 * (module is kept)
            assert not torch.equal(model(source, source), model(source, source))

    def test_counts_of_the_paper(self):
        """65 and 213 million in table 3, whose vocabulary is "about 37000"."""
        for name, published in (("base", 65e6), ("big", 213e6)):
            config = TransformerConfig.preset(name)
            count = count_parameters(lambda config=config: Transformer(config))
            assert abs(count / published - 1) < 0.03
            torchs = count_parameters(
                lambda c=config: nn.Transformer(
                    c.dim, c.heads, c.layers, c.layers, c.hidden, batch_first=True
                )
            )
            # torch normalises once more behind each stack, and has no embeddings
            assert count == torchs - 2 * 2 * config.dim + config.vocab * config.dim

    def test_bad_input(self):
        model = tiny()
        with pytest.raises(ValueError, match=r"source must lie in \[0, 13\), got 0 to 13"):
            model.translate(torch.tensor([[0, 13]]))
        with pytest.raises(ValueError, match=r"source must have shape \[batch, length > 0\]"):
            model.translate(torch.empty(1, 0, dtype=torch.int64))
        with pytest.raises(ValueError, match="source must have at least one token, got none in"):
            model.translate(torch.zeros(1, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match="source must have pad 0 only at its end"):
            model.translate(torch.tensor([[3, 0, 4]]))
        with pytest.raises(ValueError, match="beams must be at least 1, got 0"):
            model.translate(sentences(), beams=0)
        with pytest.raises(ValueError, match="norm must be one of 'post', 'pre', got 'middle'"):
            TransformerConfig(norm="middle")


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_layers_equal_torchs(norm):
    """An encoder layer and a decoder layer, with torch's weights."""
    from attn_kernels import Causal
    from attn_kernels.nn import Attention, FeedForward

    torch.manual_seed(0)
    x, memory = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm == "pre"}
    theirs = nn.TransformerDecoderLayer(16, 4, 24, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = TransformerLayer(
        Attention(16, 4, geometry=Causal()), FeedForward(16, 24), Attention(16, 4), norm=norm
    )
    state = {}
    for name, attention in (("attention", theirs.self_attn), ("cross", theirs.multihead_attn)):
        for part, weight, bias in zip(
            ("query", "key", "value"),
            attention.in_proj_weight.chunk(3),
            attention.in_proj_bias.chunk(3),
            strict=True,
        ):
            state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"] = weight, bias
        state |= {f"{name}.out.{k}": v for k, v in attention.out_proj.state_dict().items()}
    for name, module in (
        ("attention_residual.norm", theirs.norm1),
        ("cross_residual.norm", theirs.norm2),
        ("feed_forward_residual.norm", theirs.norm3),
        ("feed_forward.inner", theirs.linear1),
        ("feed_forward.outer", theirs.linear2),
    ):
        state |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
    ours.load_state_dict(state)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    expected = theirs(x, memory, tgt_mask=mask, tgt_is_causal=True)
    torch.testing.assert_close(ours(x, memory), expected)


class TestTraining:
    def test_smoothed_cross_entropy(self):
        logits, targets = torch.randn(2, 3, 5).double(), torch.tensor([[0, 4, 9], [1, 9, 2]])
        smoothing, kept = 0.1, targets != 9
        wanted = F.one_hot(targets.where(kept, 0), 5) * (1 - smoothing) + smoothing / 5
        expected = -(wanted * logits.log_softmax(-1)).sum(-1)[kept].mean()
        torch.testing.assert_close(smoothed_cross_entropy(logits, targets, 0.1, 9), expected)

    def test_warmup_rate(self):
        assert warmup_rate(4000, 512) == pytest.approx(512**-0.5 * 4000**-0.5)
        assert warmup_rate(1, 512) == pytest.approx(warmup_rate(4000, 512) / 4000)
        assert warmup_rate(16000, 512) == pytest.approx(warmup_rate(4000, 512) / 2)
        with pytest.raises(ValueError, match="step must be at least 1, got 0"):
            warmup_rate(0, 512)


class Chain:
    """A language of 4 ids whose next token depends on the last one, and on the length."""

    end, vocab = 3, 4

    def __init__(self, seed: int, entries: int) -> None:
        generator = dice(seed)
        self.table = torch.randn(entries, 6, self.vocab, self.vocab, generator=generator) * 2

    def logits_of(self, beams: int):
        tables = self.table.repeat_interleave(beams, 0)
        rows = torch.arange(len(tables))
        return lambda tokens: tables[rows, tokens.shape[1], tokens[:, -1]]

    def best(self, entry: int, steps: int, alpha: float) -> tuple[list[int], float]:
        """The best finished sequence of all there are."""
        table, found = self.table[entry].log_softmax(-1), {}
        for length in range(1, steps + 1):
            for body in itertools.product(range(3), repeat=length - 1):
                whole, score = (0, *body, self.end), 0.0
                for i in range(length):
                    score += float(table[i + 1, whole[i], whole[i + 1]])
                found[whole[1:]] = score / length_penalty(length, alpha)
        best = max(found, key=found.get)
        return list(best), found[best]


class TestSearch:
    @pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
    def test_wide_beam_finds_the_best(self, alpha):
        chain, entries = Chain(3, 8), 8
        tokens, scores = beam_search(
            chain.logits_of(400), lambda entries: None, torch.zeros(entries, dtype=torch.int64),
            beams=400, end=3, steps=5, alpha=alpha,
        )  # fmt: skip
        for entry in range(entries):
            best, score = chain.best(entry, 5, alpha)
            row = tokens[entry].tolist()
            assert row[: len(best)] == best
            assert set(row[len(best) :]) <= {3}
            assert math.isclose(float(scores[entry]), score, rel_tol=1e-5)

    def test_one_beam_is_greedy(self):
        chain, start = Chain(5, 64), torch.zeros(64, dtype=torch.int64)
        tokens, _ = beam_search(
            chain.logits_of(1), lambda entries: None, start, beams=1, end=3, steps=5, alpha=1.0
        )
        greedy = generate(chain.logits_of(1), start[:, None], 5, temperature=0, end=3)[:, 1:]
        assert torch.equal(tokens, greedy)

    def test_entries_do_not_wait_for_each_other(self):
        """An entry that is done is done, whatever the others of its batch still do."""
        chain, start = Chain(5, 64), torch.zeros(64, dtype=torch.int64)
        options = {"beams": 2, "end": 3, "steps": 5, "alpha": 1.0}
        tokens, scores = beam_search(chain.logits_of(2), lambda entries: None, start, **options)
        whole = chain.table
        for entry in range(64):
            chain.table = whole[entry : entry + 1]
            alone, score = beam_search(
                chain.logits_of(2), lambda entries: None, start[:1], **options
            )
            assert tokens[entry, : alone.shape[1]].tolist() == alone[0].tolist()
            assert float(scores[entry]) == float(score)

    def test_a_long_sequence_may_still_win(self):
        """0.6 to end at once, or 0.4 and then nothing to lose for 10 tokens: with alpha = 1 that is
        log 0.6 against log 0.4 / 2.5."""
        first = torch.tensor([0.0, 0.4, 0.6]).log()
        more, stop = torch.tensor([[-torch.inf, 0.0, -torch.inf], [-torch.inf, -torch.inf, 0.0]])

        def logits_of(tokens: Tensor) -> Tensor:
            length = tokens.shape[1]
            return (first if length == 1 else more if length < 10 else stop).expand(2, 3)

        tokens, scores = beam_search(
            logits_of, lambda entries: None, torch.zeros(1, dtype=torch.int64),
            beams=2, end=2, steps=10, alpha=1.0,
        )  # fmt: skip
        assert tokens.tolist() == [[1] * 9 + [2]]
        assert float(scores) == pytest.approx(math.log(0.4) / 2.5)

    def test_without_an_end_the_best_live_one_is_returned(self):
        logits = torch.tensor([0.0, 2.0, 1.0, -torch.inf])
        tokens, scores = beam_search(
            lambda tokens: logits.expand(len(tokens), 4), lambda entries: None,
            torch.zeros(2, dtype=torch.int64), beams=2, end=3, steps=4, alpha=0.0,
        )  # fmt: skip
        assert tokens.tolist() == [[1] * 4] * 2
        torch.testing.assert_close(scores, 4 * logits.log_softmax(-1)[1].expand(2))

    def test_a_wider_beam_is_not_worse_here(self):
        chain, start = Chain(7, 16), torch.zeros(16, dtype=torch.int64)

        def mean(beams: int) -> float:
            search = beam_search(
                chain.logits_of(beams), lambda entries: None, start, beams=beams, end=3, steps=5
            )
            return float(search[1].mean())

        assert mean(1) < mean(3) < mean(400) + 1e-6


class TestSampling:
    def test_frequencies_follow_the_softmax(self):
        logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
        drawn = sample(logits.expand(20000, 4), temperature=2.0, generator=dice(0))
        found = drawn.bincount(minlength=4) / 20000
        torch.testing.assert_close(found, (logits / 2).softmax(0), rtol=0, atol=0.015)

    def test_top_k_and_temperature_0(self):
        logits = torch.randn(64, 10)
        drawn = sample(logits, top_k=3)
        assert (logits.gather(1, drawn[:, None]) >= logits.topk(3).values[:, -1:]).all()
        assert torch.equal(sample(logits, temperature=0), logits.argmax(1))
        assert torch.equal(sample(logits, top_k=1), logits.argmax(1))

    def test_same_seed_same_ids(self):
        logits = torch.zeros(100, 7)
        draws = [sample(logits, generator=dice(s)) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])

    def test_behind_the_end_there_is_nothing(self):
        def logits_of(tokens: Tensor) -> Tensor:  # 2 ends, after 1 and then after 0
            wanted = torch.tensor([1 + (tokens.shape[1] >= 3), 1 + (tokens.shape[1] >= 5)])
            return F.one_hot(wanted, 3).float()

        tokens = generate(logits_of, torch.zeros(2, 1, dtype=torch.int64), 9, temperature=0, end=2)
        assert tokens.tolist() == [[0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 2]]

    def test_bad_input(self):
        with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
            sample(torch.zeros(1, 2), temperature=-1)
        with pytest.raises(ValueError, match="tokens must hold at least one token"):
            generate(lambda tokens: tokens, torch.empty(1, 0, dtype=torch.int64), 1)
