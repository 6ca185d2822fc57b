"""RNN sequence to sequence, without attention and with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_checks import (
    check_backends_agree,
    check_causal,
    parameter_count,
    randomise,
    seeded,
    weight_count,
)
from torch.nn import functional as F

from attn_kernels.models.recurrent_attention import AdditiveAttention, DotAttention
from attn_kernels.models.seq2seq import RnnSeq2Seq, RnnSeq2SeqConfig
from attn_kernels.models.seq2seq_attention import (
    BahdanauConfig,
    BahdanauSeq2Seq,
    LuongConfig,
    LuongSeq2Seq,
)
from attn_kernels.models.tokens import reverse

VOCABULARIES = {"source_vocab": 11, "target_vocab": 9}
RNN = RnnSeq2SeqConfig(**VOCABULARIES, embed_dim=5, hidden_dim=6, layers=2)
BAHDANAU = BahdanauConfig(**VOCABULARIES, embed_dim=5, hidden_dim=6, align_dim=4, maxout_dim=3)
LUONG = LuongConfig(**VOCABULARIES, embed_dim=5, hidden_dim=6, layers=2)
BUILDS = {
    "rnn": lambda: RnnSeq2Seq(RNN),
    "bahdanau": lambda: BahdanauSeq2Seq(BAHDANAU),
    "luong-dot": lambda: LuongSeq2Seq(replace(LUONG, score="dot")),
    "luong-general": lambda: LuongSeq2Seq(LUONG),
    "luong-concat": lambda: LuongSeq2Seq(replace(LUONG, score="concat")),
    "luong-unfed": lambda: LuongSeq2Seq(replace(LUONG, input_feeding=False, reverse_source=False)),
}
ATTENTIVE = [name for name in BUILDS if name != "rnn"]

SOURCE = torch.tensor([[3, 4, 5, 10, 2], [6, 2, 0, 0, 0], [7, 3, 9, 2, 0]])
TARGET = torch.tensor([[3, 4, 5, 2], [8, 2, 0, 0], [6, 7, 2, 0]])


@pytest.fixture(params=BUILDS)
def model(request):
    return randomise(seeded(BUILDS[request.param]), std=0.5)


@pytest.fixture(params=ATTENTIVE)
def attentive(request):
    return randomise(seeded(BUILDS[request.param]), std=0.5)


def test_backends_agree(model, fused):
    check_backends_agree(model, fused.name, lambda m: (m(SOURCE, TARGET), m.loss(SOURCE, TARGET)))


def test_nothing_looks_ahead(model):
    target = torch.tensor([[3, 4, 5, 6, 7, 8, 2]] * 3)
    with torch.no_grad():
        check_causal(lambda t: model(SOURCE, t), target, 11 - target)


def test_padding_changes_nothing(model):
    with torch.no_grad():
        together = model(SOURCE, TARGET)
        for entry, length in enumerate([5, 2, 4]):
            alone = model(SOURCE[entry : entry + 1, :length], TARGET[entry : entry + 1])
            torch.testing.assert_close(alone[0], together[entry])
        whole = model.loss(SOURCE, TARGET)
        sums = [
            -together.log_softmax(-1)[b, t, TARGET[b, t]]
            for b in range(3)
            for t in range(4)
            if TARGET[b, t]
        ]
        torch.testing.assert_close(whole, torch.stack(sums).mean())


def test_generation_is_teacher_forcing_token_for_token(model):
    tokens = model.generate(SOURCE, max_len=6)
    prefix = torch.empty(3, 0, dtype=torch.int64)
    ended = torch.zeros(3, dtype=torch.bool)
    for _ in range(tokens.shape[1]):
        # The last token of the target is never read.
        logits = model(SOURCE, torch.cat([prefix, torch.full((3, 1), 2)], 1))[:, -1]
        logits[:, :2] = -torch.inf  # pad and bos
        token = logits.argmax(-1).masked_fill(ended, 2)
        prefix = torch.cat([prefix, token.unsqueeze(1)], 1)
        ended = ended | (token == 2)
    assert torch.equal(tokens, prefix)
    assert torch.equal(model.generate(SOURCE, max_len=6, beam=1)[:, : tokens.shape[1]], tokens)


def test_beam_scores_are_log_probabilities(model):
    found = model.search(SOURCE, max_len=5, beam=3)
    for entry in range(3):
        for tokens, score, length in zip(*(x[entry] for x in found), strict=True):
            output = tokens[:length].unsqueeze(0)
            with torch.no_grad():
                logits = model(SOURCE[entry : entry + 1], output)
            logits[..., :2] = -torch.inf
            expected = logits.log_softmax(-1).gather(-1, output.unsqueeze(-1)).sum()
            torch.testing.assert_close(score, expected.float(), rtol=1e-4, atol=1e-4)


def test_alignments_are_the_weights_that_attention_used(attentive):
    """They are distributions over the source's tokens in the source's order."""
    weights = attentive.alignments(SOURCE, TARGET)
    assert weights.shape == (3, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    assert (weights[1, :, 2:] == 0).all()
    assert (weights[1, :, :2] > 0).all()
    # Attending to entry j alone: the annotation of that token is the context.
    state = attentive.start(SOURCE)
    memory = state.memory
    if getattr(attentive.config, "reverse_source", False):
        memory = reverse(memory, state.lengths)
    seen = []
    handle = attentive.attention.register_forward_hook(
        lambda module, args, out: seen.append(out[:, -1])
    )
    with torch.no_grad():
        for token in range(4):
            attentive(SOURCE, torch.cat([TARGET[:, :token], torch.full((3, 1), 2)], 1))
            torch.testing.assert_close(
                seen[-1], (weights[:, token : token + 1] @ memory).squeeze(1)
            )
    handle.remove()


@pytest.mark.parametrize("general", [False, True])
def test_dot_attention_is_its_formula(general, fused):
    torch.manual_seed(0)
    layer = DotAttention(7, general, fused.name).double()
    query, memory = torch.randn(2, 3, 7).double(), torch.randn(2, 4, 7).double()
    lengths = torch.tensor([4, 2])
    matrix = layer.memory.weight if general else torch.eye(7).double()
    for entry, length in enumerate(lengths):
        scores = torch.einsum("ta,ab,sb->ts", query[entry], matrix, memory[entry, :length])
        expected = scores.softmax(-1) @ memory[entry, :length]
        torch.testing.assert_close(
            layer(query, layer.keys(memory), memory, lengths)[entry], expected
        )


def test_additive_attention_is_its_formula():
    """Luong writes it v . tanh(W [s; h])."""
    torch.manual_seed(0)
    layer = AdditiveAttention(3, 5, 4).double()
    query, memory = torch.randn(2, 2, 3).double(), torch.randn(2, 6, 5).double()
    matrix = torch.cat([layer.query.weight, layer.memory.weight], 1)
    expected = torch.empty(2, 2, 6).double()
    for b, t, s in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(6)):
        hidden = torch.tanh(matrix @ torch.cat([query[b, t], memory[b, s]]) + layer.query.bias)
        expected[b, t, s] = layer.score.weight[0] @ hidden
    torch.testing.assert_close(layer.weights(query, layer.keys(memory)), expected.softmax(-1))


def test_bahdanau_decoder_is_its_equations():
    model = randomise(seeded(BUILDS["bahdanau"]), std=0.5)
    state = model.start(SOURCE)
    y = torch.randn(3, 5).double()
    context = model.attention(state.hidden.unsqueeze(1), state.keys, state.memory, state.lengths)[
        :, 0
    ]
    inputs = torch.cat([y, context], 1) @ model.cell.inputs.weight.T + model.cell.inputs.bias
    w_z, w_r, w = inputs[:, :6], inputs[:, 6:12], inputs[:, 12:]
    u_z, u_r = model.cell.gates.weight[:6], model.cell.gates.weight[6:]
    s = state.hidden
    z, r = torch.sigmoid(w_z + s @ u_z.T), torch.sigmoid(w_r + s @ u_r.T)
    s_next = (1 - z) * s + z * torch.tanh(w + (r * s) @ model.cell.candidate.weight.T)
    features, after = model.advance(y, state)
    torch.testing.assert_close(after.hidden, s_next)
    t = model.deep(torch.cat([s_next, y, context], 1))
    t = torch.maximum(t[:, 0::2], t[:, 1::2])
    torch.testing.assert_close(model.readout(features), model.output(t))


def test_source_is_read_backwards_into_the_decoder():
    model = randomise(seeded(BUILDS["rnn"]))
    backwards = SOURCE[:1].flip(1)
    _, (hidden, cell) = model.encoder(model.source_embedding(backwards))
    out, _ = model.decoder(model.target_embedding(torch.tensor([[1]])), (hidden, cell))
    torch.testing.assert_close(model(SOURCE[:1], torch.tensor([[2]])), model.output(out))


def test_published_sizes():
    with torch.device("meta"):
        sutskever = RnnSeq2Seq(RnnSeq2SeqConfig.preset("sutskever2014"))
    assert weight_count(sutskever) == 384_000_000  # section 3.4
    recurrent = weight_count(sutskever.encoder) + weight_count(sutskever.decoder)
    assert recurrent == 64_000_000


@pytest.mark.parametrize("score", ["dot", "general", "concat"])
def test_luong_size(score):
    """Four layers of 1000, input feeding, 50k words: the arithmetic of the paper's sizes."""
    with torch.device("meta"):
        model = LuongSeq2Seq(LuongConfig.preset(f"luong2015-{score}"))
    lstm = 4 * 1000 * 2000
    own = {"dot": 0, "general": 1000 * 1000, "concat": 1000 * 2000 + 1000}[score]
    expected = 3 * 50_000 * 1000 + 8 * lstm + 4 * 1000 * 1000 + 2000 * 1000 + own
    assert weight_count(model) == expected


def test_bahdanau_size():
    """m = 620, n = 1000, n' = 1000, l = 500, 30k words, by the matrices of appendix A."""
    with torch.device("meta"):
        model = BahdanauSeq2Seq(BahdanauConfig.preset("rnnsearch"))
    m, n, align, maxout, words = 620, 1000, 1000, 500, 30_000
    encoder = 2 * 3 * (n * m + n * n)
    decoder = 3 * (n * m + n * n + n * 2 * n) + n * n + (align * n + align * 2 * n + align)
    readout = 2 * maxout * (n + m + 2 * n) + words * maxout
    assert weight_count(model) == 2 * words * m + encoder + decoder + readout
    assert (
        parameter_count(model) - weight_count(model)
        == 2 * 6 * n + n + align + 3 * n + 2 * maxout + words
    )


@pytest.mark.parametrize("name", ["rnn", "bahdanau", "luong-general"])
def test_learns_to_copy(name):
    torch.manual_seed(0)
    model = BUILDS[name]()
    target = torch.tensor([[3, 4, 2], [5, 6, 2], [4, 5, 2], [6, 3, 2]])
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(target, target).backward()
        optimizer.step()
    model.eval()
    assert torch.equal(model.generate(target, max_len=5), target)
    assert torch.equal(model.generate(target, max_len=5, beam=2)[:, :3], target)


def test_bad_input():
    model = BUILDS["luong-dot"]()
    with pytest.raises(ValueError, match=r"^source must lie in \[0, 11\), got 2 to 11$"):
        model(torch.tensor([[11, 2]]), TARGET[:1])
    with pytest.raises(ValueError, match=r"^target must lie in \[0, 9\), got -1 to 2$"):
        model(SOURCE[:1], torch.tensor([[-1, 2]]))
    with pytest.raises(
        ValueError, match=r"^source must have at least one token, got none in entry 1$"
    ):
        model(torch.tensor([[3, 2], [0, 0]]), TARGET[:2])
    with pytest.raises(
        ValueError, match=r"^source must have at least one token, got none in entry 0$"
    ):
        model.generate(torch.empty(1, 0, dtype=torch.int64), max_len=3)
    with pytest.raises(
        ValueError, match=r"^source must have pad 0 only at its end, got it inside entry 0$"
    ):
        model(torch.tensor([[3, 0, 2]]), TARGET[:1])
    with pytest.raises(ValueError, match=r"^target must have batch 3 like source, got 2$"):
        model(SOURCE, TARGET[:2])
    with pytest.raises(
        ValueError,
        match=r"^LuongConfig: score must be one of 'dot', 'general', 'concat', got 'local'$",
    ):
        replace(LUONG, score="local")
    with pytest.raises(
        ValueError, match=r"^RnnSeq2SeqConfig: eos must be below target_vocab = 9, got 9$"
    ):
        replace(RNN, eos=9)
    with pytest.raises(
        ValueError, match=r"^BahdanauConfig: pad, bos and eos must differ, got 1, 1 and 2$"
    ):
        replace(BAHDANAU, pad=1)


def test_loss_is_cross_entropy_without_padding():
    model = seeded(BUILDS["rnn"])
    logits = model(SOURCE, TARGET)
    real = TARGET != 0
    torch.testing.assert_close(
        model.loss(SOURCE, TARGET), F.cross_entropy(logits[real], TARGET[real])
    )
