"""The GPT-style decoder."""

from __future__ import annotations

import pytest
import torch
from common import dice
from model_checks import check_backends_agree, check_causal, count_parameters

from attn_kernels.models import GPT, GPTConfig

TINY = {"vocab": 11, "max_length": 24, "dim": 16, "layers": 2, "heads": 4}


def tiny(**changes) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():  # larger than at the start, so that different inputs differ clearly
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


def tokens(length: int = 12) -> torch.Tensor:
    return torch.randint(11, (2, length), generator=dice(1))


VARIANTS = [{}, {"windows": (None, 4)}, {"kv_heads": 2, "activation": "gelu", "hidden": 24}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
class TestVariants:
    def test_backends_agree(self, backend, changes):
        x = tokens()
        check_backends_agree(tiny(**changes), lambda m: (m(x), m.loss(x)), backend.name)

    def test_causal(self, changes):
        check_causal(tiny(**changes), tokens(), 11)

    def test_cache_changes_no_token(self, changes):
        model = tiny(**changes)
        generated = [
            model.generate(tokens(3), 20, top_k=5, cached=cached, generator=dice(2))
            for cached in (True, False)
        ]
        assert torch.equal(*generated)
        assert generated[0].shape == (2, 23)
        assert torch.equal(generated[0][:, :3], tokens(3))


def test_loss_is_of_the_token_that_follows():
    model, x = tiny(), tokens()
    expected = torch.nn.functional.cross_entropy(model(x)[:, :-1].mT, x[:, 1:])
    torch.testing.assert_close(model.loss(x), expected)


def test_key_heads():
    attention = tiny(kv_heads=2).decoder.layers[0].attention
    assert attention.key.weight.shape == attention.value.weight.shape == (8, 16)


def test_a_window_hides_what_is_before_it():
    """Two layers that see 3 tokens each reach 4 tokens back, and no farther."""
    model, x = tiny(windows=(3,)), tokens(12)
    changed = x.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 11
    same = (model(x) == model(changed)).all(-1).all(0)
    assert same.tolist() == [True] * 2 + [False] * 5 + [True] * 5


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_counts_of_the_released_models(name, count):
    assert count_parameters(lambda: GPT(GPTConfig.preset(name))) == count


def test_bad_input():
    model = tiny()
    with pytest.raises(ValueError, match="x must end within the 24 positions of the model, got 25"):
        model(tokens(25))
    with pytest.raises(ValueError, match=r"must fit in max_length = 24 tokens, got 20 \+ 5"):
        model.generate(tokens(20), 5)
    with pytest.raises(ValueError, match="tokens must hold at least one token"):
        model.generate(tokens(0), 5)
    with pytest.raises(ValueError, match="there must be at least one token to predict, got none"):
        model.loss(tokens(1))
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 11\), got 0 to 11"):
        model(torch.tensor([[0, 11]]))
    with pytest.raises(ValueError, match=r"preset must be one of gpt2, .*, got 'gpt5'"):
        GPTConfig.preset("gpt5")


def test_configuration_survives_json():
    import json

    config = GPTConfig(windows=(None, 4))
    values = json.loads(json.dumps(config.to_dict()))
    assert GPTConfig.from_dict(values) == config
    with pytest.raises(ValueError, match=r"missing \['dim'\] and unknown \['width'\]"):
        GPTConfig.from_dict({("width" if k == "dim" else k): v for k, v in values.items()})
