"""Image Transformer, its canvas and its mixtures of logistics."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from common import dice, most_exact_dtype
from model_checks import check_backends_agree, check_causal, count_parameters, randomise
from torch.nn import functional as F

from attn_kernels import Local1d, Local2d
from attn_kernels.models import ImageTransformer, ImageTransformerConfig, logistic
from attn_kernels.models.canvas import from_canvas, read_before, scan_order, to_canvas

ONE_D = ImageTransformerConfig(
    image=(4, 3),
    channels=2,
    levels=5,
    layers=2,
    dim=16,
    heads=2,
    hidden=12,
    dropout=0.1,
    block=(5,),
    memory=(5,),
)
# A canvas of 4 x 6 (5 x 3 for the logistic one) that is not a multiple of the block; rows != columns.
TWO_D = replace(ONE_D, block=(3, 4), memory=(2, 5))
CONFIGS = {
    "1d": ONE_D,
    "1d-classes": replace(ONE_D, classes=3),
    "1d-logistic": replace(ONE_D, output="logistic", mixtures=2, positions="learned", image=(5, 3)),
    "1d-superres": replace(ONE_D, source=(2, 2), encoder_layers=1),
    "2d": TWO_D,
    "2d-classes-superres": replace(
        TWO_D, classes=3, source=(2, 2), encoder_layers=1, positions="learned"
    ),
    "2d-logistic": replace(
        TWO_D, output="logistic", mixtures=2, image=(5, 3), block=(2, 2), memory=(2, 1)
    ),
    "2d-blockwise": replace(TWO_D, blockwise_shift=True),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=CONFIGS)
def model(request):
    return built(CONFIGS[request.param])


def built(config):
    torch.manual_seed(0)
    return randomise(ImageTransformer(config).to(most_exact_dtype()).eval())


def batch(config, count=3, seed=0):
    """Images and the conditions that the model wants."""
    generator = dice(seed)

    def images(size):
        return torch.randint(config.levels, (count, config.channels, *size), generator=generator)

    labels = torch.arange(count) % config.classes if config.classes else None
    return images(config.image), labels, images(config.source) if config.source else None


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "2d-blockwise"])
def test_backends_agree(name, fused):
    inputs = batch(CONFIGS[name])
    check_backends_agree(built(CONFIGS[name]), lambda m: (m(*inputs), m.loss(*inputs)), fused.name)


@torch.no_grad()
def test_nothing_looks_ahead_along_the_scan(model):
    """And what was written just before is read, at every place but the first of a block if the
    shift is blockwise."""
    config = model.config
    images, labels, source = batch(config)
    cells = model.cells_of(images)[:, model.scan.value]

    def outputs(cells):
        in_raster = torch.empty_like(cells).index_copy(1, model.scan.value, cells)
        out = model(model.images_of(in_raster), labels, source)
        out = out.movedim(1, 3).flatten(2, 3) if out.dim() == 5 else out
        return out.flatten(1, 2)[:, model.scan.value]

    if config.blockwise_shift:
        before = outputs(cells)
        for place in range(cells.shape[1]):
            changed = cells.clone()
            changed[:, place] = (changed[:, place] + 1) % config.levels
            assert torch.equal(outputs(changed)[:, : place + 1], before[:, : place + 1])
    else:
        last = cells[:, -1:]
        check_causal(
            lambda cells: outputs(torch.cat([cells, last], 1))[:, 1:], cells[:, :-1], config.levels
        )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_cache_changes_no_image(model, fused, temperature):
    for layer in model.modules():
        if hasattr(layer, "backend"):
            layer.backend = fused.name
    _, labels, source = batch(model.config, 2)
    found = [
        model.generate(
            2,
            labels,
            source,
            temperature=temperature,
            cached=cached,
            generator=dice(3),
        )
        for cached in (True, False)
    ]
    assert torch.equal(*found)
    assert found[0].shape == (2, 2, *model.config.image)
    assert len(found[0].unique()) > 1


@torch.no_grad()
def test_blockwise_shift_hides_the_last_cell_of_each_block():
    """The difference to the shift along the whole scan: nothing reads those cells."""
    for blockwise in (False, True):
        config = replace(TWO_D, blockwise_shift=blockwise)
        model = built(config)
        images, _, _ = batch(config)
        canvas = to_canvas(images)
        before = model(images)
        last = [(2, 3), (2, 5), (3, 3)]  # of the blocks of a 4 x 6 canvas, but the very last one
        for row, col in last:
            changed = canvas.clone()
            changed[:, row, col] = (changed[:, row, col] + 1) % config.levels
            assert torch.equal(model(from_canvas(changed, 2)), before) == blockwise


def test_attention_is_local_in_one_layer():
    """A cell reads the inputs of its own block and of the memory, no others. Rows come first."""
    expected_geometries = (Local1d(5, 5), Local2d((4, 6), (3, 4), (2, 5), causal=True))
    for config, geometry in zip((ONE_D, TWO_D), expected_geometries, strict=True):
        model = built(replace(config, layers=1))
        canvas = config.canvas
        x = torch.randn(1, canvas[0] * canvas[1], 16).double().requires_grad_()
        for place in range(x.shape[1]):
            (grad,) = torch.autograd.grad(model.decoder(x)[0, place].sum(), x)
            reached = grad[0].abs().sum(-1) > 0
            expected = [bool(geometry.visible(place, key)) for key in range(x.shape[1])]
            assert reached.tolist() == expected


@torch.no_grad()
def test_input_is_embedding_position_and_class():
    config = CONFIGS["1d-classes"]
    model, (images, labels, _) = built(config), batch(config)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images, labels)
    values = images.permute(0, 2, 3, 1).flatten(1)  # row, column, channel
    for place, entry in itertools.product((0, 1, 9), range(3)):
        expected = (
            model.positions.table(seen[0])[place] + model.class_embedding.weight[labels[entry]]
        )
        if place:
            row = 5 * ((place - 1) % 2) + values[entry, place - 1]
            expected = expected + 4 * model.embedding.table[row]  # sqrt(16)
        torch.testing.assert_close(seen[0][entry, place], expected)


@torch.no_grad()
def test_loss_is_per_value():
    for name in ("1d", "1d-logistic"):
        model, (images, _, _) = built(CONFIGS[name]), batch(CONFIGS[name])
        out = model(images)
        if name == "1d":
            assert out.shape == (3, 2, 4, 3, 5)
            log_p = out.log_softmax(-1).gather(-1, images.unsqueeze(-1)).sum()
        else:
            log_p = logistic.log_probability(out, images.permute(0, 2, 3, 1), 5).sum()
        torch.testing.assert_close(model.loss(images), -log_p / images.numel())
        assert model.bits_per_dim(images) == pytest.approx(model.loss(images).item() / math.log(2))


def test_canvas_puts_channels_side_by_side():
    images = torch.arange(2 * 3 * 4).view(1, 2, 3, 4)  # 2 channels
    canvas = to_canvas(images)
    assert canvas.shape == (1, 3, 8)
    assert canvas[0, 0].tolist() == [0, 12, 1, 13, 2, 14, 3, 15]
    assert torch.equal(from_canvas(canvas, 2), images)
    assert torch.equal(from_canvas(canvas.unsqueeze(-1).expand(-1, -1, -1, 5), 2)[..., 4], images)


def test_scan_and_shift():
    """A 3 x 4 canvas in blocks of 2 x 2: blocks in raster order, cells in raster order inside."""
    geometry = Local2d((3, 4), (2, 2), (1, 1), causal=True)
    assert scan_order(geometry, 12).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]
    assert read_before(geometry, 12, False).tolist() == [12, 0, 5, 2, 1, 4, 3, 6, 7, 8, 9, 10]
    assert read_before(geometry, 12, True).tolist() == [12, 0, 12, 2, 1, 4, 3, 6, 12, 8, 12, 10]
    assert scan_order(Local1d(2, 2), 3).tolist() == [0, 1, 2]
    assert read_before(Local1d(2, 2), 3, False).tolist() == [3, 0, 1]


class TestLogistic:
    @pytest.mark.parametrize("channels", [1, 2, 3])
    def test_probabilities_sum_to_one(self, channels):
        generator = dice(channels)
        count = logistic.parameter_count(channels, 2)
        parameters = 2 * torch.randn(4, 1, count, generator=generator, dtype=torch.float64)
        pixels = torch.tensor(list(itertools.product(range(5), repeat=channels)))
        total = logistic.log_probability(parameters, pixels, 5).exp().sum(-1)
        torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64))

    def test_is_its_formula(self):
        parameters = torch.randn(logistic.parameter_count(3, 2), generator=dice(0)).double()
        mixture = logistic.split(parameters, 3)
        pixel, half, expected = torch.tensor([2, 0, 4]), 1 / 4, 0.0
        x = pixel / 2 - 1
        for m in range(2):
            mu, s, a = (
                mixture.means[:, m],
                mixture.log_scales[:, m].exp(),
                mixture.coefficients[:, m],
            )
            red = torch.sigmoid((x[0] + half - mu[0]) / s[0]) - torch.sigmoid(
                (x[0] - half - mu[0]) / s[0]
            )
            green = torch.sigmoid((x[1] + half - mu[1] - a[0] * x[0]) / s[1])
            blue = 1 - torch.sigmoid((x[2] - half - mu[2] - a[1] * x[0] - a[2] * x[1]) / s[2])
            expected = expected + mixture.weights.softmax(-1)[m] * red * green * blue
        torch.testing.assert_close(logistic.log_probability(parameters, pixel, 5), expected.log())

    def test_gradients_are_finite_far_from_the_data(self):
        parameters = torch.zeros(3, logistic.parameter_count(1, 1))
        parameters[:, 1], parameters[:, 2] = torch.tensor([-50.0, 0.0, 50.0]), -20.0
        parameters.requires_grad_()
        log_p = logistic.log_probability(parameters, torch.tensor([[0], [128], [255]]), 256)
        log_p.sum().backward()
        assert log_p.isfinite().all()
        assert parameters.grad.isfinite().all()
        bounded = parameters.detach().clone()
        bounded[:, 2] = -7.0  # PixelCNN++'s least log scale
        assert torch.equal(
            log_p, logistic.log_probability(bounded, torch.tensor([[0], [128], [255]]), 256)
        )

    def test_draws_follow_the_probabilities(self):
        """Chi-squared over all 5 x 5 pixels, 24 degrees of freedom."""
        generator = dice(0)
        parameters = torch.randn(1, logistic.parameter_count(2, 2), generator=generator).double()
        drawn = logistic.draw(parameters.expand(20_000, -1), 2, 5, generator=generator)
        pixels = torch.tensor(list(itertools.product(range(5), repeat=2)))
        expected = 20_000 * logistic.log_probability(parameters, pixels, 5).exp()
        counts = (drawn @ torch.tensor([5, 1])).bincount(minlength=25)
        assert ((counts - expected) ** 2 / expected).sum() < 60

    def test_temperature_zero_takes_the_mean(self):
        parameters = torch.tensor(
            [[0.0, 1.0, -0.5, 0.5, 0.0, 0.0]]
        ).double()  # weights, means, log scales
        assert logistic.draw(parameters, 1, 5, temperature=0.0).tolist() == [[3]]


@pytest.mark.parametrize("name", ["digits", "digits-2d"])
def test_learns(name):
    """Two images that class tells apart: soon both are written without a mistake."""
    torch.manual_seed(0)
    config = ImageTransformerConfig.preset(
        name,
        image=(4, 4),
        levels=3,
        dim=16,
        hidden=32,
        layers=1,
        classes=2,
        dropout=0.0,
        block=(8,) if name == "digits" else (2, 2),
        memory=(8,) if name == "digits" else (2, 2),
    )
    model, images = ImageTransformer(config), torch.randint(3, (2, 1, 4, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(90):
        optimizer.zero_grad()
        model.loss(images, torch.arange(2)).backward()
        optimizer.step()
    assert torch.equal(model.eval().generate(2, torch.arange(2), temperature=0), images)


@pytest.mark.parametrize("name", ImageTransformerConfig.presets)
def test_sizes(name):
    """The arithmetic of the paper's sizes, for every preset."""
    c = ImageTransformerConfig.preset(name)
    d, inner = c.dim, c.heads * (c.head_dim or c.dim // c.heads)
    attention = 4 * d * inner + 3 * inner + d
    feed_forward, norm = 2 * d * c.hidden + c.hidden + d, 2 * d
    table = c.channels * c.levels * d
    encoder = c.encoder_layers * (attention + feed_forward + 2 * norm)
    cross = attention + norm if c.source else 0
    expected = c.layers * (attention + feed_forward + 2 * norm + cross) + encoder + c.classes * d
    expected += table if c.source else 0
    if c.output == "categorical":
        expected += table + (d + 1) * c.levels
    else:
        expected += (
            4 * d + (d + 1) * 100 + 64 * d // 2
        )  # 1 x 3 convolution, 10 mixtures, 32 rows and columns
    assert count_parameters(lambda: ImageTransformer(c)) == expected


def test_bad_input():
    model = ImageTransformer(CONFIGS["1d-classes"])
    images, labels, _ = batch(CONFIGS["1d-classes"])
    with pytest.raises(ValueError, match=r"^images must lie in \[0, 5\), got 5 to 9$"):
        model(images + 5 - images.min(), labels)
    with pytest.raises(
        ValueError, match=r"^images must have shape \[batch, 2, 4, 3\], got \[3, 2, 3, 4\]$"
    ):
        model(images.mT, labels)
    with pytest.raises(ValueError, match=r"^images must be int64 or int32, got float32$"):
        model(images.float(), labels)
    with pytest.raises(ValueError, match=r"^labels must lie in \[0, 3\), got 1 to 3$"):
        model(images, labels + 1)
    with pytest.raises(
        ValueError, match=r"^labels must be given: the model is conditioned on them$"
    ):
        model.generate(2)
    with pytest.raises(
        ValueError, match=r"^source must be None: the model is not conditioned on them$"
    ):
        model(images, labels, images)
    with pytest.raises(ValueError, match=r"^labels must have batch 2, got 3$"):
        model.generate(2, labels)
    with pytest.raises(ValueError, match=r"^temperature must be at least 0, got -1$"):
        model.generate(3, labels, temperature=-1)
    superres = ImageTransformer(CONFIGS["1d-superres"])
    with pytest.raises(
        ValueError, match=r"^source must have shape \[batch, 2, 2, 2\], got \[3, 2, 4, 3\]$"
    ):
        superres(images, source=images)
    with pytest.raises(
        ValueError,
        match=r"^ImageTransformerConfig: block and memory must have one number each or two, got \(2, 2\) and \(2,\)$",
    ):
        replace(ONE_D, block=(2, 2), memory=(2,))
    with pytest.raises(
        ValueError,
        match=r"^ImageTransformerConfig: blockwise_shift must be False for a 1-D block, got True$",
    ):
        replace(ONE_D, blockwise_shift=True)
    with pytest.raises(
        ValueError,
        match=r"^ImageTransformerConfig: source must be given if and only if there are encoder_layers, got \(2, 2\) and 0$",
    ):
        replace(ONE_D, source=(2, 2))


def test_categorical_and_cross_entropy_agree_on_uniform():
    model = ImageTransformer(ONE_D).eval()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    images, _, _ = batch(ONE_D)
    torch.testing.assert_close(
        model.loss(images), F.cross_entropy(torch.zeros(1, 5), torch.tensor([0]))
    )
