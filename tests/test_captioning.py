"""Image captioning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from common import dice
from model_checks import check_backends_agree, check_causal, count_parameters, randomise

from attn_kernels.models import CaptionConfig, CaptionModel

CONFIG = CaptionConfig(
    vocab=9,
    image=(8, 12),
    stages=((4, 1), (6, 2)),
    embed_dim=5,
    hidden_dim=7,
    align_dim=3,
    coverage=0.7,
)
CAPTIONS = torch.tensor([[1, 3, 4, 5, 2], [1, 8, 2, 0, 0], [1, 6, 7, 2, 0]])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return randomise(CaptionModel(CONFIG).double().eval())


def images(model):
    dtype = next(model.parameters()).dtype
    return torch.randn(3, 3, 8, 12, generator=dice(0)).to(dtype)


def test_backends_agree(model, fused):
    def run(model):
        return model(images(model), CAPTIONS), model.loss(images(model), CAPTIONS)

    check_backends_agree(model, run, fused.name)


@torch.no_grad()
def test_nothing_looks_ahead(model):
    words = torch.tensor([[1, 3, 4, 5, 6]] * 3)
    check_causal(lambda words: model(images(model), words), words, 9)


@torch.no_grad()
def test_one_step_is_its_equations(model):
    state = model.first_state(images(model))
    y = torch.randn(3, 5).double()
    h, a, attention = state.hidden, state.memory, model.attention
    c_and_h = torch.tanh(a.mean(1) @ model.initial.weight.T + model.initial.bias)
    torch.testing.assert_close(torch.cat([h, state.cell], 1), c_and_h)
    e = torch.tanh(
        a @ attention.memory.weight.T
        + (h @ attention.query.weight.T + attention.query.bias).unsqueeze(1)
    )
    alpha = (e @ attention.score.weight[0]).softmax(-1)
    beta = torch.sigmoid(h @ model.gate.weight[0] + model.gate.bias)
    z = beta.unsqueeze(1) * torch.einsum("bi,bid->bd", alpha, a)
    h_next, c_next = model.lstm(torch.cat([y, z], 1), (h, state.cell))
    l_h, l_z = model.deep.weight[:, :7], model.deep.weight[:, 7:]
    logits = model.output(y + h_next @ l_h.T + z @ l_z.T + model.deep.bias)
    features, after = model.advance(y, state)
    torch.testing.assert_close(model.readout(features), logits)
    torch.testing.assert_close(after.weights, alpha)
    torch.testing.assert_close(after.cell, c_next)


@torch.no_grad()
def test_loss_is_equation_14(model):
    log_p = model(images(model), CAPTIONS).log_softmax(-1)
    maps = model.attention_maps(images(model), CAPTIONS)
    expected = 0.0
    for entry, length in enumerate([5, 3, 4]):
        for t in range(length - 1):
            expected -= log_p[entry, t, CAPTIONS[entry, t + 1]]
        expected += 0.7 * ((1 - maps[entry, : length - 1].sum(0)) ** 2).sum()
    torch.testing.assert_close(model.loss(images(model), CAPTIONS), expected / 3)


@torch.no_grad()
def test_maps_are_distributions_over_the_grid(model):
    maps = model.attention_maps(images(model), CAPTIONS)
    assert maps.shape == (3, 5, 4, 6)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(3, 5).double())
    assert maps.std() > 0


@torch.no_grad()
def test_maps_point_where_the_image_is():
    """Cells are in raster order: the cell with the largest score is where its evidence is."""
    model = randomise(CaptionModel(replace(CONFIG, stages=((1, 1),), image=(5, 7))).eval(), std=0.0)
    model.network[0].weight[0, 0, 1, 1] = 1.0  # the annotation is the first channel
    model.attention.memory.weight[0], model.attention.score.weight[0, 0] = 1.0, 5.0
    image = torch.zeros(1, 3, 5, 7)
    image[0, 0, 3, 2] = 1.0
    assert int(model.attention_maps(image, torch.tensor([[1]])).flatten().argmax()) == 3 * 7 + 2


@torch.no_grad()
def test_generation_is_teacher_forcing_token_for_token(model):
    found = model.caption(images(model), beams=1, steps=6)
    prefix, ended = torch.ones(3, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)
    for _ in range(found.shape[1]):
        logits = model(images(model), prefix)[:, -1]
        logits[:, [0, 1]] = -torch.inf  # pad and start
        word = logits.argmax(-1).masked_fill(ended, 2)
        prefix, ended = torch.cat([prefix, word.unsqueeze(1)], 1), ended | (word == 2)
    assert torch.equal(found, prefix[:, 1:])
    assert model.caption(images(model), beams=3, steps=6).shape[0] == 3


def test_learns_where_and_what():
    """The word names the bright corner: this needs the image."""
    torch.manual_seed(0)
    config = replace(
        CONFIG, image=(4, 4), stages=((8, 1), (8, 1)), hidden_dim=16, dropout=0.0, coverage=0.1
    )
    model = CaptionModel(config)
    pictures = torch.zeros(4, 3, 4, 4)
    for corner in range(4):
        pictures[corner, :, corner // 2 * 3, corner % 2 * 3] = 1
    captions = torch.tensor([[1, 3 + corner, 2] for corner in range(4)])
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(pictures, captions).backward()
        optimizer.step()
    assert torch.equal(model.eval().caption(pictures, beams=1, steps=3), captions[:, 1:])


def test_published_sizes():
    """VGG-19's convolutions, and the matrices of the sizes of the published code for MS COCO."""
    config = CaptionConfig.preset("show-attend-tell")
    assert config.grid == (14, 14)
    network = count_parameters(lambda: CaptionModel(config).network)
    assert network == 20_024_384
    n, m, d, words = 1800, 512, 512, 10_000
    decoder = (
        words * m  # E
        + 2 * (d * n + n)  # the first state
        + (d * d + n * d + d + d)  # attention
        + (n + 1)  # beta
        + 4 * n * (m + d + n + 2)  # LSTM, with torch's two biases
        + (m * n + m * d + m)  # L_h, L_z
        + (words * m + words)  # L_o
    )
    assert count_parameters(lambda: CaptionModel(config)) == network + decoder


def test_bad_input(model):
    with pytest.raises(
        ValueError, match=r"^images must have shape \[batch, 3, 8, 12\], got \[3, 3, 8, 8\]$"
    ):
        model(images(model)[..., :8], CAPTIONS)
    with pytest.raises(
        ValueError,
        match=r"^images must have shape \[batch, channels, rows, cols\], got \[3, 8, 12\]$",
    ):
        model.caption(images(model)[0])
    with pytest.raises(ValueError, match=r"^target must lie in \[0, 9\), got 1 to 9$"):
        model(images(model), torch.tensor([[1, 9]] * 3))
    with pytest.raises(
        ValueError, match=r"^captions must have at least one token, got none in entry 1$"
    ):
        model.loss(images(model)[:2], torch.tensor([[1, 2], [0, 0]]))
    with pytest.raises(
        ValueError,
        match=r"^CaptionConfig: image must leave a grid behind 1 poolings, got \(1, 4\)$",
    ):
        replace(CONFIG, image=(1, 4))
    with pytest.raises(ValueError, match=r"^CaptionConfig: coverage must be at least 0, got -1$"):
        replace(CONFIG, coverage=-1)
