"""RNN sequence to sequence, without attention and with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from common import dice, most_exact_dtype
from model_checks import (
    check_backends_agree,
    check_causal,
    count_parameters,
    count_weights,
    randomise,
)

from attn_kernels.models import (
    BahdanauConfig,
    BahdanauSeq2Seq,
    LuongConfig,
    LuongSeq2Seq,
    RnnSeq2Seq,
    RnnSeq2SeqConfig,
)
from attn_kernels.models.recurrent import forbid
from attn_kernels.models.recurrent_attention import AdditiveAttention, DotAttention
from attn_kernels.models.search import beam_search
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
TARGET = torch.tensor([[1, 3, 4, 5, 2], [1, 8, 2, 0, 0], [1, 6, 7, 2, 0]])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def built(name):
    return randomise(BUILDS[name]().double().eval(), std=0.5)


@pytest.fixture(params=BUILDS)
def model(request):
    return built(request.param)


@pytest.fixture(params=ATTENTIVE)
def attentive(request):
    return built(request.param)


def test_backends_agree(model, fused):
    check_backends_agree(model, lambda m: (m(SOURCE, TARGET), m.loss(SOURCE, TARGET)), fused.name)


def test_nothing_looks_ahead(model):
    target = torch.tensor([[1, 3, 4, 5, 6, 7, 8]] * 3)
    with torch.no_grad():
        check_causal(lambda tokens: model(SOURCE, tokens), target, 9)


def test_padding_changes_nothing(model):
    with torch.no_grad():
        together = model(SOURCE, TARGET)
        for entry, length in enumerate([5, 2, 4]):
            alone = model(SOURCE[entry : entry + 1, :length], TARGET[entry : entry + 1])
            torch.testing.assert_close(alone[0], together[entry])


def test_loss_is_cross_entropy_without_padding(model):
    with torch.no_grad():
        log_p = model(SOURCE, TARGET).log_softmax(-1)
        pairs = [(b, t) for b in range(3) for t in range(4) if TARGET[b, t + 1]]
        expected = -sum(log_p[b, t, TARGET[b, t + 1]] for b, t in pairs) / len(pairs)
        torch.testing.assert_close(model.loss(SOURCE, TARGET), expected)


@torch.no_grad()
def test_generation_is_teacher_forcing_token_for_token(model):
    tokens = model.translate(SOURCE, beams=1, steps=6)
    prefix = torch.ones(3, 1, dtype=torch.int64)
    ended = torch.zeros(3, dtype=torch.bool)
    for _ in range(tokens.shape[1]):
        logits = model(SOURCE, prefix)[:, -1]
        logits[:, [0, 1]] = -torch.inf  # pad and start
        token = logits.argmax(-1).masked_fill(ended, 2)
        prefix = torch.cat([prefix, token.unsqueeze(1)], 1)
        ended = ended | (token == 2)
    assert torch.equal(tokens, prefix[:, 1:])
    assert ended.all() or tokens.shape[1] == 6


@torch.no_grad()
def test_beam_search_with_states_is_beam_search_without(model):
    """The states follow their hypotheses."""
    source = torch.randint(3, 11, (16, 5), generator=dice(0))
    repeated = source.repeat_interleave(3, 0)

    def logits_of(tokens):
        return forbid(model(repeated, tokens)[:, -1], (0, 1))

    start = torch.ones(16, dtype=torch.int64)
    expected, _ = beam_search(
        logits_of, lambda entries: None, start, beams=3, end=2, steps=8, alpha=0.5
    )
    assert torch.equal(model.translate(source, beams=3, steps=8, alpha=0.5), expected)


@torch.no_grad()
def test_alignments_are_the_weights_that_attention_used(attentive):
    """Distributions over the source's tokens, in its order, that give the decoder's contexts."""
    weights = attentive.alignments(SOURCE, TARGET)
    assert weights.shape == (3, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5, dtype=torch.float64))
    assert (weights[1, :, 2:] == 0).all()
    assert (weights[1, :, :2] > 0).all()
    state = attentive.first_state(SOURCE)
    memory = state.memory
    if getattr(attentive.config, "reverse_source", False):
        memory = reverse(memory, state.lengths)
    contexts = []
    attentive.attention.register_forward_hook(lambda module, args, out: contexts.append(out))
    attentive(SOURCE, TARGET)
    torch.testing.assert_close(torch.cat(contexts, 1), weights @ memory)


@pytest.mark.parametrize("general", [False, True])
def test_dot_attention_is_its_formula(general, fused):
    torch.manual_seed(0)
    layer = DotAttention(7, general, fused.name).to(most_exact_dtype())
    query, memory = (
        torch.randn(2, 3, 7).to(most_exact_dtype()),
        torch.randn(2, 4, 7).to(most_exact_dtype()),
    )
    lengths = torch.tensor([4, 2])
    matrix = layer.memory.weight if general else torch.eye(7).to(most_exact_dtype())
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
    model = built("bahdanau")
    state = model.first_state(SOURCE)
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
    model = built("rnn")
    backwards = SOURCE[:1].flip(1)
    _, (hidden, cell) = model.encoder(model.source_embedding(backwards))
    out, _ = model.decoder(model.target_embedding(torch.tensor([[1]])), (hidden, cell))
    torch.testing.assert_close(model(SOURCE[:1], torch.tensor([[1]])), model.output(out))


def test_published_sizes():
    config = RnnSeq2SeqConfig.preset("sutskever2014")
    assert count_weights(lambda: RnnSeq2Seq(config)) == 384_000_000  # section 3.4
    assert count_weights(lambda: RnnSeq2Seq(config).encoder) == 32_000_000
    assert count_weights(lambda: RnnSeq2Seq(config).decoder) == 32_000_000


@pytest.mark.parametrize("score", ["dot", "general", "concat"])
def test_luong_size(score):
    """Four layers of 1000, input feeding, 50k words: the arithmetic of the paper's sizes."""
    config = LuongConfig.preset(f"luong2015-{score}")
    lstm = 4 * 1000 * 2000
    own = {"dot": 0, "general": 1000 * 1000, "concat": 1000 * 2000 + 1000}[score]
    expected = 3 * 50_000 * 1000 + 8 * lstm + 4 * 1000 * 1000 + 2000 * 1000 + own
    assert count_weights(lambda: LuongSeq2Seq(config)) == expected


def test_bahdanau_size():
    """m = 620, n = 1000, n' = 1000, l = 500, 30k words, by the matrices of appendix A."""

    def build():
        return BahdanauSeq2Seq(BahdanauConfig.preset("rnnsearch"))

    m, n, align, maxout, words = 620, 1000, 1000, 500, 30_000
    encoder = 2 * 3 * (n * m + n * n)
    decoder = 3 * (n * m + n * n + n * 2 * n) + n * n + (align * n + align * 2 * n + align)
    readout = 2 * maxout * (n + m + 2 * n) + words * maxout
    weights = count_weights(build)
    assert weights == 2 * words * m + encoder + decoder + readout
    assert count_parameters(build) - weights == 2 * 6 * n + n + align + 3 * n + 2 * maxout + words


@pytest.mark.parametrize(
    "build",
    [
        lambda: RnnSeq2Seq(replace(RNN, hidden_dim=24, layers=1, init_range=0.3)),
        lambda: BahdanauSeq2Seq(replace(BAHDANAU, hidden_dim=24, maxout_dim=12)),
        lambda: LuongSeq2Seq(replace(LUONG, hidden_dim=24, layers=1, dropout=0.0)),
    ],
    ids=["rnn", "bahdanau", "luong"],
)
def test_learns_to_copy(build):
    torch.manual_seed(0)
    model = build()
    source = torch.tensor([[3, 4], [5, 6], [4, 5], [6, 3]])
    target = torch.cat([torch.full((4, 1), 1), source, torch.full((4, 1), 2)], 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(source, target).backward()
        optimizer.step()
    model.eval()
    assert torch.equal(model.translate(source, beams=1, steps=5), target[:, 1:])
    assert torch.equal(model.translate(source, beams=3, steps=5), target[:, 1:])


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
        model.translate(torch.empty(1, 0, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"^source must have pad 0 only at its end, got it inside entry 0$"
    ):
        model(torch.tensor([[3, 0, 2]]), TARGET[:1])
    with pytest.raises(
        ValueError, match=r"^target must have at least one token, got none in entry 0$"
    ):
        model.loss(SOURCE[:1], torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^target must have batch 3 like source, got 2$"):
        model(SOURCE, TARGET[:2])
    with pytest.raises(ValueError, match=r"^source must have shape \[batch, length\], got \[5\]$"):
        model.translate(SOURCE[0])
    with pytest.raises(ValueError, match=r"^beams must be at least 1, got 0$"):
        model.translate(SOURCE, beams=0)
    with pytest.raises(
        ValueError,
        match=r"^LuongConfig: score must be one of 'dot', 'general', 'concat', got 'local'$",
    ):
        replace(LUONG, score="local")
    with pytest.raises(
        ValueError,
        match=r"^RnnSeq2SeqConfig: pad, start and end must be below the 9 words of the target, got \(0, 1, 9\)$",
    ):
        replace(RNN, end=9)
    with pytest.raises(
        ValueError, match=r"^BahdanauConfig: pad, start and end must differ, got \(1, 1, 2\)$"
    ):
        replace(BAHDANAU, pad=1)
