"""Music Transformer."""

from __future__ import annotations

import pytest
import torch
from common import dice
from model_checks import check_backends_agree, check_causal, count_parameters
from torch import Tensor

from attn_kernels.models import MusicTransformer, MusicTransformerConfig

TINY = {
    "vocab": 12, "start": 10, "end": 11, "max_length": 32, "dim": 16, "hidden": 24, "layers": 2,
    "heads": 2, "block": 4, "melody_layers": 1,
}  # fmt: skip
VARIANTS = [
    {},
    {"distances": 5, "head_dim": 12, "share_heads": True},
    {"distances": 5, "beyond": "clip", "absolute": False},
    {"attention": "local"},
    {"relative": False},
    {"melody_vocab": 7, "distances": 6},
]


def tiny(**changes) -> MusicTransformer:
    torch.manual_seed(0)
    return MusicTransformer(MusicTransformerConfig(**{**TINY, **changes})).eval()


def tokens(length: int = 14, vocab: int = 10) -> Tensor:
    return torch.randint(vocab, (3, length), generator=dice(1))


def melody(model: MusicTransformer) -> dict[str, Tensor]:
    """What an encoder reads, if there is one."""
    if model.encoder is None:
        return {}
    return {"melody": tokens(9, 7), "melody_lengths": torch.tensor([9, 4, 7])}


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
class TestVariants:
    def test_backends_agree(self, backend, changes):
        x, lengths = tokens(), torch.tensor([14, 9, 3])

        def run(model):
            given = melody(model)
            return model(x, **given), model.loss(x, **given, lengths=lengths)

        check_backends_agree(tiny(**changes), run, backend.name)

    def test_causal(self, changes):
        model = tiny(**changes)
        check_causal(lambda x: model(x, **melody(model)), tokens(), 10)

    @pytest.mark.parametrize("primed", [False, True])
    def test_cache_changes_no_token(self, changes, primed):
        model = tiny(**changes)
        generated = [
            model.generate(
                24, prompt=tokens(5) if primed else None, batch=3, **melody(model),
                cached=cached, generator=dice(2),
            )
            for cached in (True, False)
        ]  # fmt: skip
        assert torch.equal(*generated)
        start = tokens(5) if primed else torch.full((3, 1), 10)
        assert torch.equal(generated[0][:, : start.shape[1]], start)


def test_local_attention_reaches_two_blocks():
    """One layer of blocks of 4: position 9 sees 4 to 9."""
    model, x = tiny(attention="local", layers=1, absolute=False), tokens()
    seen = []
    for place in range(10):
        changed = x.clone()
        changed[:, place] = (changed[:, place] + 1) % 10
        seen.append(not torch.equal(model(changed)[:, 9], model(x)[:, 9]))
    assert seen == [False] * 4 + [True] * 6


def test_the_baseline_has_no_tables():
    for relative, count in ((True, 2), (False, 0)):
        names = tiny(relative=relative).state_dict()
        assert sum(name.endswith("rel_k") for name in names) == count


def test_beyond_the_table():
    """Both know the first 5 distances, and only those."""
    zero, clip = (tiny(distances=5, beyond=beyond, layers=1) for beyond in ("zero", "clip"))
    same = torch.isclose(zero(tokens()), clip(tokens()), atol=1e-6).all(-1).all(0)
    assert same.tolist() == [True] * 5 + [False] * 9


def test_what_follows_a_melody_changes_nothing():
    model, x = tiny(melody_vocab=7), tokens()
    given = melody(model)
    behind = torch.arange(9) >= given["melody_lengths"][:, None]
    changed = torch.where(behind, (given["melody"] + 1) % 7, given["melody"])
    assert torch.equal(model(x, **given), model(x, **given | {"melody": changed}))
    changed[:, 0] = (changed[:, 0] + 1) % 7
    assert not torch.equal(model(x, **given), model(x, **given | {"melody": changed}))


def test_only_distance_counts_without_absolute_positions():
    """What follows a run of tokens is the same wherever the run stands, if it fills the window of
    both layers: each sees 4 to 7 tokens back."""
    model, x = tiny(attention="local", absolute=False), tokens(12)
    moved = torch.cat((tokens(8), x), 1)
    torch.testing.assert_close(model(moved)[:, -1], model(torch.cat((x[:, :4], x), 1))[:, -1])


def test_rows_of_the_table():
    """Half the longest sequence, as in Magenta's; two blocks, which are what local attention sees."""
    rows = [
        tiny(**changes).config.table_length()
        for changes in ({"max_length": 32}, {"attention": "local", "block": 6}, {"distances": 5})
    ]
    assert rows == [16, 12, 5]


def test_loss_counts_what_lengths_name():
    model, x = tiny(), tokens()
    losses = [model.loss(x[i : i + 1, :length]) for i, length in enumerate((14, 9, 3))]
    weighted = sum(n * loss for n, loss in zip((13, 8, 2), losses, strict=True)) / 23
    torch.testing.assert_close(model.loss(x, lengths=torch.tensor([14, 9, 3])), weighted)


def test_presets():
    """The table of Magenta's long models: 1024 rows a head; keys of 512 and values of dim."""
    model = None
    with torch.device("meta"):
        model = MusicTransformer(MusicTransformerConfig.preset("magenta-h384-n8"))
    attention = model.decoder.layers[0].attention
    assert attention.rel_k.shape == (8, 1024, 64)
    assert attention.key.weight.shape == (512, 384)
    assert attention.value.weight.shape == (384, 384)
    assert len(model.decoder.layers) == 8
    for name in MusicTransformerConfig.presets:
        config = MusicTransformerConfig.preset(name)
        assert count_parameters(lambda c=config: MusicTransformer(c)) > 1e5


def test_bad_input():
    model, conditioned = tiny(), tiny(melody_vocab=7)
    with pytest.raises(ValueError, match="tokens must end within max_length = 32, got 33"):
        model(tokens(33))
    with pytest.raises(ValueError, match=r"must fit in max_length = 32 tokens, got 5 \+ 30"):
        model.generate(30, prompt=tokens(5))
    with pytest.raises(ValueError, match="tokens must hold at least one token"):
        model.generate(3, prompt=tokens(0))
    with pytest.raises(ValueError, match="melody must be None: the model has no melody_vocab"):
        model(tokens(), tokens())
    with pytest.raises(ValueError, match="melody must be given: the model has a melody_vocab"):
        conditioned(tokens())
    with pytest.raises(ValueError, match=r"melody must lie in \[0, 7\), got 0 to 9"):
        conditioned(tokens(), tokens())
    with pytest.raises(ValueError, match="attention must be one of 'global', 'local', got 'far'"):
        MusicTransformerConfig(attention="far")
    with pytest.raises(ValueError, match="must be below vocab = 100, got 388 and 389"):
        MusicTransformerConfig(vocab=100)
