"""SAGAN: the attention block, the generator and the discriminator."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from common import dice
from model_checks import check_backends_agree, randomise
from torch import nn
from torch.nn import functional as F

from attn_kernels.models import SaganConfig, SaganDiscriminator, SaganGenerator, SelfAttention2d
from attn_kernels.models.sagan import DiscriminatorBlock

CONFIG = SaganConfig(
    image=16, image_channels=2, bottom=2, width=8, latent=5, classes=3, attention_at=4
)
LABELS = torch.tensor([0, 2, 1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def noise(*shape, like=None):
    x = torch.randn(*shape, generator=dice(0))
    return x.to(next(like.parameters()).dtype) if like is not None else x


def settled(model, *inputs):
    """Weights replaced, and the estimates of their singular values brought up to date."""
    randomise(model.double()).train()
    with torch.no_grad():
        for _ in range(20):
            model(*inputs)
    return model.eval()


def plain_weight(module):
    return module.weight.flatten(1).double()  # as normalised


def test_block_starts_as_the_identity():
    block, x = SelfAttention2d(16), noise(2, 16, 4, 6)
    assert torch.equal(block(x), x)
    assert block.gamma.shape == ()


@pytest.mark.parametrize("pool", [True, False])
def test_block_is_its_formula(pool, backend):
    block = randomise(SelfAttention2d(16, pool=pool, backend=backend.name).double().eval())
    x = noise(2, 16, 4, 6).double()
    q, k, v = (
        torch.einsum("oc,bchw->bohw", plain_weight(w), x)
        for w in (block.query, block.key, block.value)
    )
    assert (q.shape[1], k.shape[1], v.shape[1]) == (2, 2, 8)  # C/8, C/8, C/2
    if pool:
        k, v = (y.unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax((3, 5)) for y in (k, v))
    weights = torch.einsum("bdq,bdk->bqk", q.flatten(2), k.flatten(2)).softmax(-1)
    out = torch.einsum("bqk,bdk->bdq", weights, v.flatten(2))
    y = x + block.gamma * (plain_weight(block.out) @ out).view(2, 16, 4, 6)
    torch.testing.assert_close(block(x), y)
    maps = block.attention_maps(x)
    assert maps.shape == ((2, 4, 6, 2, 3) if pool else (2, 4, 6, 4, 6))
    torch.testing.assert_close(maps.reshape(weights.shape), weights)


def test_block_is_equivariant_without_pooling():
    """Attention sees a set of cells: permuting them permutes the result."""
    block, x = randomise(SelfAttention2d(8, pool=False).double().eval()), noise(1, 8, 3, 5).double()
    order = torch.randperm(15, generator=dice(0))

    def permuted(x):
        return x.flatten(2)[..., order].view_as(x)

    torch.testing.assert_close(block(permuted(x)), permuted(block(x)))


def test_generator_backends_agree(backend):
    model = settled(SaganGenerator(CONFIG), noise(3, 5).double(), LABELS)

    def run(model):
        images = model(noise(3, 5, like=model), LABELS)
        return images, (images * noise(3, 2, 16, 16, like=model)).sum()

    check_backends_agree(model, run, backend.name)


def test_discriminator_backends_agree(backend):
    model = settled(SaganDiscriminator(CONFIG), noise(3, 2, 16, 16).double(), LABELS)

    def run(model):
        judged = model(noise(3, 2, 16, 16, like=model), LABELS)
        return judged, model.loss(judged, judged.flip(0))

    check_backends_agree(model, run, backend.name)


@pytest.mark.parametrize("network", [SaganGenerator, SaganDiscriminator])
def test_every_weight_has_spectral_norm(network):
    """Largest singular value 1 (matrices [out, rest]), after enough steps of power iteration."""
    model = network(replace(CONFIG, width=4)).train()
    inputs = noise(3, 5) if network is SaganGenerator else noise(3, 2, 16, 16)
    with torch.no_grad():
        for _ in range(100):
            model(inputs, LABELS)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) > 10
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        torch.testing.assert_close(largest, torch.tensor(1.0), rtol=0.02, atol=0)


def test_hinge_losses():
    model = SaganDiscriminator(CONFIG)
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert model.loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert SaganGenerator(CONFIG).loss(fake).item() == pytest.approx(2 / 3)


def test_discriminator_projects_on_its_class():
    images = noise(1, 2, 16, 16).double().expand(3, -1, -1, -1)
    model = settled(SaganDiscriminator(CONFIG), images, LABELS)
    features = []
    model.last.register_forward_hook(lambda module, args, out: features.append((args[0], out)))
    judged = model(images, torch.arange(3))
    x, linear = features[0]
    torch.testing.assert_close(judged, linear[:, 0] + model.embedding.weight @ x[0])


def test_generator_knows_its_class_and_its_noise():
    model = settled(SaganGenerator(CONFIG), noise(3, 5).double(), LABELS)
    images = model.generate(3, LABELS, generator=dice(0))
    assert images.shape == (3, 2, 16, 16)
    assert images.abs().max() <= 1
    again = model.generate(3, LABELS, generator=dice(0))
    assert torch.equal(images, again)
    assert not torch.equal(images[1], model.generate(3, LABELS.roll(1), generator=dice(0))[1])
    assert not torch.equal(images, model.generate(3, LABELS, generator=dice(1)))


def test_unconditional():
    config = replace(CONFIG, classes=0)
    images = SaganGenerator(config).eval().generate(2)
    assert SaganDiscriminator(config)(images).shape == (2,)


def test_learns_a_mean():
    """A few steps of both: the generator's mean follows the data's."""
    torch.manual_seed(0)
    config = SaganConfig.preset("digits", width=4, classes=0)
    generator, discriminator = SaganGenerator(config), SaganDiscriminator(config)
    steps = [
        torch.optim.Adam(network.parameters(), rate, betas=(0.0, 0.9))
        for network, rate in ((generator, 0.001), (discriminator, 0.004))
    ]
    for _ in range(20):
        real = torch.tanh(torch.randn(8, 1, 8, 8) * 0.2 + 1)
        fake = generator(torch.randn(8, 32))
        steps[1].zero_grad()
        discriminator.loss(discriminator(real), discriminator(fake.detach())).backward()
        steps[1].step()
        steps[0].zero_grad()
        generator.loss(discriminator(fake)).backward()
        steps[0].step()
    assert generator.attention.gamma != 0
    assert fake.mean() > 0.1


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes():
    """The published code's networks for 128 x 128, by its widths 16, 16, 8, 4, 2, 1."""

    def conv(inputs, outputs, size):
        return inputs * outputs * size**2 + outputs

    def attention(c):
        return c * (c // 8) * 2 + c * (c // 2) * 2 + 1

    config = SaganConfig.preset("sagan128", width=4, classes=10)  # the published width is 64
    widths = [64, 64, 32, 16, 8, 4]
    expected = 128 * 64 * 16 + 64 * 16 + attention(16) + 2 * 4 + conv(4, 3, 3)
    for a, b in itertools.pairwise(widths):
        expected += conv(a, b, 3) + conv(b, b, 3) + conv(a, b, 1) + 2 * 10 * (a + b)
    assert parameters_of(SaganGenerator(config)) == expected

    widths = [3, 4, 8, 16, 32, 64]
    expected = attention(8) + 2 * conv(64, 64, 3) + 65 + 10 * 64
    for a, b in itertools.pairwise(widths):
        expected += conv(a, b, 3) + conv(b, b, 3) + conv(a, b, 1)
    assert parameters_of(SaganDiscriminator(config)) == expected


def test_attention_stands_where_the_config_says():
    seen = []
    for network, inputs in (
        (SaganGenerator, noise(1, 5)),
        (SaganDiscriminator, noise(1, 2, 16, 16)),
    ):
        for side in (4, 8):
            model = network(replace(CONFIG, attention_at=side)).eval()
            model.attention.register_forward_hook(
                lambda module, args, out: seen.append(out.shape[2])
            )
            model(inputs, LABELS[:1])
    assert seen == [4, 8, 4, 8]


def test_bad_input():
    generator, discriminator = SaganGenerator(CONFIG), SaganDiscriminator(CONFIG)
    with pytest.raises(ValueError, match=r"^labels must lie in \[0, 3\), got 0 to 3$"):
        generator(noise(2, 5), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"^labels must be given: the model has 3 classes$"):
        generator.generate(2)
    with pytest.raises(ValueError, match=r"^labels must have shape \[2\], got \[3\]$"):
        generator(noise(2, 5), LABELS)
    with pytest.raises(ValueError, match=r"^labels must be None for a model without classes$"):
        SaganGenerator(replace(CONFIG, classes=0))(noise(3, 5), LABELS)
    with pytest.raises(ValueError, match=r"^noise must have shape \[batch, 5\], got \[2, 6\]$"):
        generator(noise(2, 6), LABELS[:2])
    with pytest.raises(
        ValueError, match=r"^images must have shape \[batch, 2, 16, 16\], got \[3, 2, 8, 8\]$"
    ):
        discriminator(noise(3, 2, 8, 8), LABELS)
    with pytest.raises(
        ValueError,
        match=r"^x must have shape \[batch, 16, rows, cols\] of an even size, got \[2, 16, 3, 4\]$",
    ):
        SelfAttention2d(16)(noise(2, 16, 3, 4))
    with pytest.raises(
        ValueError, match=r"^SaganConfig: attention_at must be one of \[4, 8\], got 16$"
    ):
        replace(CONFIG, attention_at=16)
    with pytest.raises(
        ValueError,
        match=r"^SaganConfig: image must be bottom times a power of 2, .*, got 24 and bottom 2$",
    ):
        replace(CONFIG, image=24)


def test_blocks_double_and_halve_by_the_nearest_and_the_mean():
    """The published order: the mean is taken behind the sum of both paths."""
    block = DiscriminatorBlock(2, 3).eval()
    x = noise(1, 2, 4, 4)
    path = block.conv2(F.relu(block.conv1(F.relu(x))))
    expected = F.avg_pool2d(path, 2) + F.avg_pool2d(block.shortcut(x), 2)
    torch.testing.assert_close(block(x), expected)
