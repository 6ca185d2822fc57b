"""DALL-E: the discrete VAE, the patterns and the transformer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from common import dice, most_exact_dtype
from model_checks import check_backends_agree, check_causal, count_parameters, randomise
from torch.nn import functional as F

from attn_kernels import Causal, Full, Local1d, attention, merge
from attn_kernels.models import Dalle, DalleConfig, DiscreteVae, DiscreteVaeConfig
from attn_kernels.models.dalle import sees, stream_pattern
from attn_kernels.models.dvae import into_margin, logit_laplace

CONFIG = DalleConfig(
    text_vocab=7, text_length=5, codes=6, grid=4, dim=16, heads=2, layers=4, kernel=3,
    patterns=("row", "column", "conv", "full"),
)  # fmt: skip
TEXT = torch.tensor([[3, 1, 4, 5], [2, 6, 0, 0], [1, 1, 5, 0]])
SIDE, WORDS = 4, 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def codes(count=3):
    return torch.randint(6, (count, SIDE, SIDE), generator=dice(0))


@pytest.fixture
def model():
    return randomise(Dalle(CONFIG).to(most_exact_dtype()).eval())


class TestPatterns:
    """A 4 x 4 image: which cells each cell sees, counted by hand or cell by cell."""

    def seen(self, pattern, query, **changes):
        config, key = replace(CONFIG, **changes), torch.arange(16)
        seen = sees(config, pattern, torch.tensor([[query]]), key.unsqueeze(0))
        return key[seen[0]].tolist()

    def test_row_is_the_five_last_tokens(self):
        assert self.seen("row", 0) == [0]
        assert self.seen("row", 9) == [5, 6, 7, 8, 9]  # 5 is above 9
        assert self.seen("row", 12) == [8, 9, 10, 11, 12]

    def test_column(self):
        assert self.seen("column", 9) == [1, 5, 9]
        assert self.seen("column", 12) == [0, 4, 8, 12]

    def test_conv_along_the_raster(self):
        assert self.seen("conv", 9) == [4, 5, 6, 8, 9]  # the cells around it
        assert self.seen("conv", 8) == [3, 4, 5, 7, 8]  # left of the edge is the row above's end
        assert self.seen("conv", 11) == [6, 7, 8, 10, 11]  # right of the edge is this row's start
        assert self.seen("conv", 0) == [0]
        # A kernel of 5 on a side of 4: every token down to two rows and two columns before.
        assert self.seen("conv", 15, kernel=5) == list(range(5, 16))

    def test_conv_on_the_torus(self):
        for query in range(16):
            row, col = divmod(query, 4)
            near = {
                (row + r) % 4 * 4 + (col + c) % 4
                for r, c in itertools.product((-1, 0, 1), repeat=2)
            }
            assert self.seen("conv", query, wrap="torus") == sorted(k for k in near if k <= query)

    def test_schedule_of_the_paper(self):
        patterns = DalleConfig.preset("dalle").layer_patterns
        assert patterns[:7] == ("row", "column", "row", "row", "row", "column", "row")
        assert patterns[-2:] == ("row", "conv")
        assert len(patterns) == 64
        assert patterns.count("column") == 16

    @pytest.mark.parametrize("pattern", ["row", "column", "conv", "full"])
    def test_stream_sees_text_and_image(self, pattern):
        positions = torch.arange(WORDS + 16)
        mask = stream_pattern(CONFIG, pattern).visible(positions.unsqueeze(1), positions)
        assert torch.equal(mask[:WORDS, :WORDS], torch.ones(WORDS, WORDS).tril().bool())
        assert not mask[:WORDS, WORDS:].any()
        assert mask[WORDS:, :WORDS].all()
        for query in range(16):
            seen = mask[WORDS + query, WORDS:].nonzero().flatten().tolist()
            assert seen == self.seen(pattern, query)

    @pytest.mark.parametrize("pattern", ["row", "column"])
    def test_is_one_softmax_over_both_kinds(self, pattern, fused):
        """The pattern over the stream is text keys and image keys apart, merged. Columns are blocks
        of the transposed image."""
        generator = dice(0)
        q, k, v = (
            torch.randn(1, 2, WORDS + 16, 8, generator=generator).to(most_exact_dtype())
            for _ in range(3)
        )
        whole = attention(q, k, v, stream_pattern(CONFIG, pattern), backend=fused.name)

        def image(x):
            x = x[:, :, WORDS:]
            return (
                x.unflatten(2, (4, 4)).transpose(2, 3).flatten(2, 3) if pattern == "column" else x
            )

        geometry = Local1d(4, 0) if pattern == "column" else Causal(5)
        options = {"return_lse": True, "backend": fused.name}
        parts = [
            attention(image(q), k[:, :, :WORDS], v[:, :, :WORDS], Full(), **options),
            attention(image(q), image(k), image(v), geometry, **options),
        ]
        merged, _ = merge(*zip(*parts, strict=True))
        torch.testing.assert_close(image(whole), merged)


class TestDalle:
    def test_backends_agree(self, model, backend):
        def run(model):
            of_text, of_image = model(TEXT, codes())
            return torch.cat([of_text.flatten(), of_image.flatten()]), model.loss(TEXT, codes())

        check_backends_agree(model, run, backend.name)

    @torch.no_grad()
    def test_image_does_not_look_ahead(self, model):
        last = codes()[:, -1, -1:]

        def outputs(written):
            grid = torch.cat([written, last], 1).view(3, 4, 4)
            return model(TEXT, grid)[1].flatten(1, 2)[:, 1:]

        check_causal(outputs, codes().flatten(1)[:, :-1], 6)

    @torch.no_grad()
    def test_text_does_not_look_ahead(self, model):
        text = torch.tensor([[3, 1, 4, 5]])
        before = model(text, codes(1))
        assert before[0].shape == (1, 4, 7)
        assert before[1].shape == (1, 4, 4, 6)
        assert torch.equal(model(text, codes(1).flip(1))[0], before[0])
        for place in range(4):
            changed = text.clone()
            changed[0, place] = 2
            after = model(changed, codes(1))
            assert torch.equal(after[0][:, : place + 1], before[0][:, : place + 1])
            assert (
                not torch.equal(after[0][:, place + 1 :], before[0][:, place + 1 :]) or place == 3
            )
            assert not (after[1] == before[1]).any()  # every image token sees the text

    @torch.no_grad()
    def test_stream_is_embeddings_and_positions(self, model):
        seen = []
        model.layers.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(TEXT, codes())
        words, positions = model.text_embedding.weight, model.text_positions
        torch.testing.assert_close(seen[0][1, 0], words[7 + 5] + positions[0])  # start
        torch.testing.assert_close(seen[0][1, 2], words[6] + positions[2])
        torch.testing.assert_close(seen[0][1, 3], words[7 + 3] + positions[3])  # its own padding
        torch.testing.assert_close(seen[0][1, 4], words[7 + 4] + positions[4])
        expected = (
            model.image_embedding.weight[codes()[1, 2, 3]]
            + model.row_positions[2, 0]
            + model.col_positions[0, 3]
        )
        torch.testing.assert_close(seen[0][1, 5 + 2 * 4 + 3], expected)

    @torch.no_grad()
    def test_loss_weighs_text_and_image(self, model):
        """Each is a mean over its own tokens; padding is not predicted."""
        of_text, of_image = model(TEXT, codes())
        real = TEXT != 0
        text = F.cross_entropy(of_text[real], TEXT[real])
        image = F.cross_entropy(of_image.flatten(0, 2), codes().flatten())
        torch.testing.assert_close(model.loss(TEXT, codes()), text / 8 + image * 7 / 8)
        torch.testing.assert_close(
            model.loss(TEXT[1:2, :2], codes(1)), model.loss(TEXT[1:2], codes(1))
        )

    @pytest.mark.parametrize("wrap", ["raster", "torus"])
    def test_cache_changes_no_image(self, wrap, fused):
        model = randomise(
            Dalle(replace(CONFIG, wrap=wrap), backend=fused.name).to(most_exact_dtype()).eval()
        )
        prime = codes().flatten(1)[:, :6]
        for options in ({}, {"prime": prime}, {"temperature": 0.5, "top_k": 3}):
            found = [
                model.generate(TEXT, cached=cached, generator=dice(1), **options)
                for cached in (True, False)
            ]
            assert torch.equal(*found)
            assert len(found[0].unique()) > 2
            if "prime" in options:
                assert torch.equal(found[0].flatten(1)[:, :6], prime)

    def test_ranking_sorts_candidates(self, model):
        def rank(text, codes):
            assert torch.equal(text, TEXT.repeat_interleave(4, 0))
            return codes.flatten(1).sum(1)

        options = {"prime": codes().flatten(1)[:, :1]}
        found, scores = model.generate_ranked(TEXT, 4, rank, generator=dice(0), **options)
        drawn = model.generate(
            TEXT.repeat_interleave(4, 0),
            prime=codes().flatten(1)[:, :1].repeat_interleave(4, 0),
            generator=dice(0),
        ).view(3, 4, 4, 4)
        assert torch.equal(scores, found.flatten(2).sum(2))
        assert torch.equal(scores, drawn.flatten(2).sum(2).sort(1, descending=True).values)
        for entry in range(3):
            assert {tuple(x.flatten().tolist()) for x in found[entry]} == {
                tuple(x.flatten().tolist()) for x in drawn[entry]
            }

    def test_learns_to_draw_what_the_text_says(self):
        torch.manual_seed(0)
        model = Dalle(replace(CONFIG, layers=2, patterns=("row", "conv"), dropout=0.0))
        text, images = torch.tensor([[1], [2]]), codes(2)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(80):
            optimizer.zero_grad()
            model.loss(text, images).backward()
            optimizer.step()
        assert torch.equal(model.eval().generate(text, temperature=0), images)

    def test_published_size(self):
        size = count_parameters(lambda: Dalle(DalleConfig.preset("dalle")))
        assert round(size / 1e9) == 12

    def test_bad_input(self, model):
        with pytest.raises(
            ValueError, match=r"^text must have at least one token, got none in entry 1$"
        ):
            model(torch.tensor([[1, 2], [0, 0]]), codes(2))
        with pytest.raises(
            ValueError, match=r"^text must have at least one token, got none in entry 0$"
        ):
            model.generate(torch.empty(1, 0, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"^text must have at most 4 tokens, got 5$"):
            model(torch.ones(3, 5, dtype=torch.int64), codes())
        with pytest.raises(ValueError, match=r"^text must lie in \[0, 7\), got 7 to 7$"):
            model(torch.tensor([[7]]), codes(1))
        with pytest.raises(ValueError, match=r"^codes must lie in \[0, 6\), got 6 to 6$"):
            model(TEXT[:1], torch.full((1, 4, 4), 6))
        with pytest.raises(
            ValueError, match=r"^codes must have shape \[3, 4, 4\], got \[3, 3, 4\]$"
        ):
            model(TEXT, codes()[:, :3])
        with pytest.raises(
            ValueError, match=r"^prime must have shape \[3, at most 16\], got \[3, 17\]$"
        ):
            model.generate(TEXT, prime=torch.zeros(3, 17, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"^rank must return scores \[6\], got \[1\]$"):
            model.generate_ranked(TEXT, 2, lambda text, codes: torch.zeros(1))
        with pytest.raises(ValueError, match=r"^DalleConfig: kernel must be odd, got 4$"):
            replace(CONFIG, kernel=4)
        with pytest.raises(
            ValueError,
            match=r"^DalleConfig: patterns must have one entry for each of 5 layers, got 4$",
        ):
            replace(CONFIG, layers=5)
        with pytest.raises(
            ValueError,
            match=r"^DalleConfig: patterns must be one of 'row', 'column', 'conv', 'full', got 'axial'$",
        ):
            replace(CONFIG, patterns=("row", "row", "row", "axial"))


class TestDiscreteVae:
    CONFIG = DiscreteVaeConfig(
        image=(4, 8), channels=2, codes=5, hidden=8, code_dim=3, groups=2, blocks=1
    )

    def images(self, count=2):
        return torch.rand(count, 2, 4, 8, generator=dice(0))

    def test_published_sizes(self):
        """Those of the published encoder and decoder."""
        config = DiscreteVaeConfig.preset("dalle")
        assert config.grid == (32, 32)
        assert count_parameters(lambda: DiscreteVae(config).encoder) == 53_786_240
        decoder = count_parameters(lambda: DiscreteVae(config).decoder)
        assert decoder + count_parameters(lambda: DiscreteVae(config).codebook) == 43_829_766

    def test_codes_and_back(self):
        model = DiscreteVae(self.CONFIG)
        found = model.encode(self.images())
        assert found.shape == (2, 2, 4)
        assert torch.equal(found, model.logits(self.images()).argmax(1))
        painted = model.decode(found)
        assert painted.shape == (2, 2, 4, 8)
        assert painted.min() >= 0
        assert painted.max() <= 1

    def test_decoding_is_the_limit_of_the_relaxation(self):
        """At a low temperature and without doubt, training paints what decode gives."""
        model = DiscreteVae(self.CONFIG).eval()
        model.encoder[-1].weight.data.mul_(1000)
        location, _, _ = model(self.images(), temperature=0.01)
        painted = ((torch.sigmoid(location) - 0.1) / 0.8).clamp(0, 1)
        torch.testing.assert_close(
            painted, model.decode(model.encode(self.images())), atol=1e-4, rtol=0
        )

    def test_logit_laplace_is_a_density(self):
        x = torch.linspace(0, 1, 200_001)[1:-1].double()
        for location, log_scale in ((0.0, 0.0), (1.0, -1.0), (-0.5, 0.3)):
            density = logit_laplace(x, torch.tensor(location), torch.tensor(log_scale)).exp()
            assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-3)

    def test_loss_is_the_bound(self):
        model, images = DiscreteVae(self.CONFIG), self.images()
        torch.manual_seed(3)
        loss = model.loss(images, temperature=0.7)
        torch.manual_seed(3)
        location, log_scale, logits = model(images, temperature=0.7)
        q = logits.softmax(1)
        divergence = (q * (q / (1 / 5)).log()).sum() / 2  # per image
        painted = logit_laplace(0.1 + 0.8 * images, location, log_scale).sum() / 2
        torch.testing.assert_close(loss, (6.6 * divergence - painted) / (2 * 4 * 8))

    def test_relaxation_follows_the_codes(self):
        """Frequencies of the largest entry are the softmax, whatever the temperature."""
        logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
        torch.manual_seed(0)
        model = DiscreteVae(self.CONFIG)
        seen = []
        model.encoder.register_forward_hook(
            lambda *args: logits.view(1, 5, 1, 1).expand(64, 5, 2, 4)
        )
        model.codebook.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for temperature in (0.5, 2.0):
            seen.clear()
            for _ in range(40):
                model(torch.zeros(64, 2, 4, 8), temperature)
            relaxed = torch.cat(seen)
            torch.testing.assert_close(relaxed.sum(1), torch.ones_like(relaxed[:, 0]))
            frequency = relaxed.argmax(1).flatten().bincount(minlength=5) / relaxed[:, 0].numel()
            assert (frequency - logits.softmax(0)).abs().max() < 0.015

    def test_learns_to_reconstruct(self):
        """Two images: better than painting their mean, through discrete codes."""
        torch.manual_seed(0)
        model = DiscreteVae(replace(self.CONFIG, hidden=16, kl_weight=0.0))
        images = torch.stack([torch.zeros(2, 4, 8), torch.ones(2, 4, 8)])
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(60):
            optimizer.zero_grad()
            model.loss(images, temperature=max(1 / 16, 0.95**step)).backward()
            optimizer.step()
        assert (model.decode(model.encode(images)) - images).abs().mean() < 0.1

    def test_bad_input(self):
        model = DiscreteVae(self.CONFIG)
        with pytest.raises(
            ValueError, match=r"^images must have shape \[batch, 2, 4, 8\], got \[2, 2, 8, 4\]$"
        ):
            model.encode(self.images().mT)
        with pytest.raises(ValueError, match=r"^images must lie in \[0, 1\], got 0.0 to 255.0$"):
            model.loss(torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 2, 4, 8))
        with pytest.raises(ValueError, match=r"^codes must lie in \[0, 5\), got 5 to 5$"):
            model.decode(torch.full((1, 2, 4), 5))
        with pytest.raises(
            ValueError, match=r"^codes must have shape \[batch, 2, 4\], got \[1, 4, 2\]$"
        ):
            model.decode(torch.zeros(1, 4, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0$"):
            model.loss(self.images(), 0)
        with pytest.raises(
            ValueError,
            match=r"^DiscreteVaeConfig: image must have sides that are multiples of 2, got \(3, 8\)$",
        ):
            replace(self.CONFIG, image=(3, 8))

    def test_bits_of_a_uniform_code(self):
        """A KL of 0: codes that say nothing."""
        model = DiscreteVae(replace(self.CONFIG, kl_weight=1e6))
        torch.nn.init.zeros_(model.encoder[-1].weight)
        location, log_scale, _ = model(self.images(), 1e9)
        painted = logit_laplace(into_margin(self.images()), location, log_scale)
        assert model.loss(self.images(), 1e9).item() == pytest.approx(
            -painted.mean().item(), rel=1e-3
        )
