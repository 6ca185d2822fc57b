"""Vision Transformer."""

from __future__ import annotations

import pytest
import torch
from common import dice
from model_checks import check_backends_agree, count_parameters, model_dtype

from attn_kernels.models import ViT, ViTConfig


def tiny(**changes) -> ViT:
    torch.manual_seed(0)
    config = ViTConfig(image=12, patch=4, channels=2, dim=16, layers=2, heads=2, hidden=24,
                       **{"classes": 5} | changes)  # fmt: skip
    model = ViT(config).eval()
    for parameter in model.parameters():  # the head starts at 0
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 12, 12, generator=dice(1))


def test_backends_agree(backend):
    labels = torch.tensor([4, 0, 2])

    def run(model):
        x = images().to(model_dtype(model))
        return model.features(x), model.loss(x, labels)

    check_backends_agree(tiny(), run, backend.name)


def test_patches_come_row_by_row():
    """Behind the class token; a pixel of row 0 and patch column 2 is in token 3 alone."""
    model, x = tiny(), images()
    changed = x.clone()
    changed[:, 0, 1, 9] += 1
    read: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    for each in (x, changed):
        model(each)
    assert (read[0] != read[1]).any(2).all(0).nonzero().tolist() == [[3]]


def test_patches_are_a_set_without_positions():
    """Patches in another order give the same logits, but not once there are positions."""
    model, x = tiny().double(), images().double()
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4)  # [B, C, 3, 3, 4, 4]
    order = torch.tensor([4, 2, 8, 0, 6, 1, 7, 5, 3])
    shuffled = patches.flatten(2, 3)[:, :, order].unflatten(2, (3, 3))
    shuffled = shuffled.transpose(3, 4).reshape(x.shape)
    assert not torch.allclose(model(shuffled), model(x))
    torch.nn.init.zeros_(model.positions.weight)
    torch.testing.assert_close(model(shuffled), model(x))


def test_counts():
    """timm's vit_base_patch16_224 without head; then table 1 of the paper, in millions."""
    count = count_parameters(lambda: ViT(ViTConfig.preset("b16", classes=0)))
    assert count == 85_798_656
    for name, published in (("b16", 86), ("l16", 307), ("h14", 632)):
        config = ViTConfig.preset(name)
        count = count_parameters(lambda c=config: ViT(c))
        assert abs(count / published / 1e6 - 1) < 0.01
    for name in ViTConfig.presets:
        with torch.device("meta"):
            ViT(ViTConfig.preset(name))


def test_a_new_model_says_nothing():
    torch.manual_seed(0)
    model = ViT(ViTConfig.preset("digits"))
    assert not model(torch.randn(2, 1, 8, 8)).any()


def test_without_a_head_the_class_token_comes_out():
    model = tiny(classes=0)
    assert torch.equal(model(images()), model.features(images())[:, 0])


def test_bad_input():
    model = tiny()
    with pytest.raises(ValueError, match=r"images must have shape \[batch, 2, 12, 12\], got"):
        model(torch.randn(1, 2, 16, 16))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\), got 5 to 5"):
        model.loss(images(1), torch.tensor([5]))
    with pytest.raises(ValueError, match="image must be a multiple of patch, got 10 and 4"):
        ViTConfig(image=10, patch=4)
    with pytest.raises(ValueError, match="labels need a head"):
        tiny(classes=0).loss(images(1), torch.tensor([0]))
