"""The layers of attn_kernels.nn against their formulas, written out."""

from __future__ import annotations

import io
import math

import pytest
import torch
from common import most_exact_dtype
from host_reads import host_reads
from torch import Tensor, nn
from torch.nn import functional as F

import attn_kernels.nn.attention
from attn_kernels import Causal, Full, Local1d, Local2d
from attn_kernels.models import (
    GPT,
    GPTConfig,
    MusicTransformer,
    MusicTransformerConfig,
    Transformer,
    TransformerConfig,
    ViT,
    ViTConfig,
)
from attn_kernels.nn import (
    Attention,
    FeedForward,
    KeyValueCache,
    LearnedPositions,
    LocalAttention1d,
    LocalAttention2d,
    ModelCache,
    MultiheadAttention,
    RelativeAttention,
    Residual,
    ShawAttention,
    SinusoidalPositions,
    TransformerLayer,
    TransformerStack,
    TransformerXLAttention,
    grid_sinusoids,
    set_backend,
    sinusoids,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomised(layer: nn.Module) -> nn.Module:
    """Every parameter at random (biases and tables start at 0 or small), in float64."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.to(most_exact_dtype())


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=most_exact_dtype())


def heads_of(layer: Attention, x: Tensor, context: Tensor | None = None) -> list[Tensor]:
    """q, k, v [B, H, L, D], key/value heads repeated."""
    source = x if context is None else context
    found = []
    for projection, y in ((layer.query, x), (layer.key, source), (layer.value, source)):
        parts = projection(y).chunk(projection.out_features // head_size(layer, projection), -1)
        heads = torch.stack(parts, 1)
        found.append(heads.repeat_interleave(layer.heads // heads.shape[1], 1))
    return found


def head_size(layer: Attention, projection: nn.Linear) -> int:
    return layer.value_head_dim if projection is layer.value else layer.head_dim


def joined(layer: Attention, out: Tensor) -> Tensor:
    """Heads [B, H, L, D] side by side, and the last projection."""
    return layer.out(torch.cat(out.unbind(1), -1))


def causal_mask(q_len: int, k_len: int) -> Tensor:
    return torch.ones(q_len, k_len, dtype=torch.bool).tril(k_len - q_len)


class TestAttention:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"kv_heads": 2, "head_dim": 5, "value_head_dim": 3},
            {"kv_heads": 1, "bias": False, "scale": 1.0},
            {"bias": False, "out_bias": True},
        ],
        ids=str,
    )
    def test_formula(self, backend, options):
        layer = randomised(Attention(8, 4, geometry=Causal(), backend=backend.name, **options))
        x = inputs(2, 9, 8)
        q, k, v = heads_of(layer, x)
        scale = options.get("scale", layer.head_dim**-0.5)
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        torch.testing.assert_close(layer(x), joined(layer, expected))
        has_bias = [p.bias is not None for p in (layer.query, layer.key, layer.value, layer.out)]
        bias = options.get("bias", True)
        assert has_bias == [bias, bias, bias, options.get("out_bias", bias)]

    def test_cross(self, backend):
        layer = randomised(Attention(8, 4, context_dim=6, backend=backend.name))
        x, context, lengths = inputs(2, 9, 8), inputs(2, 7, 6), torch.tensor([7, 3])
        q, k, v = heads_of(layer, x, context)
        mask = (torch.arange(7) < lengths[:, None])[:, None, None]
        expected = F.scaled_dot_product_attention(q, k, v, mask)
        torch.testing.assert_close(layer(x, context, key_lengths=lengths), joined(layer, expected))

    def test_geometry_and_offset_of_a_call(self):
        layer, x = randomised(Attention(8, 4)), inputs(2, 9, 8)
        q, k, v = heads_of(layer, x)
        mask = torch.ones(9, 9, dtype=torch.bool).tril(-2)
        expected = F.scaled_dot_product_attention(q, k, v, mask)
        expected[:, :, :2] = 0  # they see nothing
        found = layer(x, geometry=Causal(), query_offset=-2)
        torch.testing.assert_close(found, joined(layer, expected))

    def test_heads_are_views(self):
        layer = Attention(8, 4)
        q, k, v = layer.project(torch.randn(2, 9, 8))
        for heads in (q, k, v):
            assert heads.shape == (2, 4, 9, 2)
            assert heads._is_view()
            assert heads.stride() == (72, 2, 8, 1)

    def test_equivariance(self):
        layer, x, order = randomised(Attention(8, 4)), inputs(2, 9, 8), torch.randperm(9)
        torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])

    def test_bad_input(self):
        for options, message in (
            ({"heads": 3}, "dim must be a multiple of heads, got 8 and 3"),
            ({"heads": 4, "kv_heads": 3}, "heads must be a multiple of kv_heads, got 4 and 3"),
            ({"heads": 0}, "heads must be at least 1, got 0"),
        ):
            with pytest.raises(ValueError, match=message):
                Attention(8, **options)
        for options, message in (
            ({"heads": 2.0}, "heads must be an int, got float"),
            ({"context_dim": 2.0}, "context_dim must be an int, got float"),
            ({"geometry": "causal"}, "geometry must be a Geometry such as Full.* got str"),
            ({"geometry": Causal}, "geometry must be a Geometry such as Full.* got type"),
        ):
            with pytest.raises(TypeError, match=message):
                Attention(8, **({"heads": 4} | options))
        layer = Attention(8, 4, context_dim=6)
        with pytest.raises(
            ValueError, match=r"x must have shape \[batch, length, 8\], got \[2, 8\]"
        ):
            layer(torch.randn(2, 8))
        with pytest.raises(ValueError, match=r"context must have shape \[batch, length, 6\], got"):
            layer(torch.randn(2, 3, 8))


class TestCache:
    LAYERS = (
        lambda: Attention(8, 4, geometry=Causal(), kv_heads=2, value_head_dim=3),
        lambda: Attention(8, 4, geometry=Causal(3)),
        lambda: Attention(8, 4, geometry=Local1d(4, 4)),
        lambda: RelativeAttention(8, 4, distances=5),
        lambda: RelativeAttention(8, 4, distances=5, beyond="zero", geometry=Local1d(4, 4)),
        lambda: ShawAttention(8, 4, max_distance=3, geometry=Causal()),
        lambda: TransformerXLAttention(8, 4),
        lambda: LocalAttention1d(8, 4, block=4, look_back=4),
    )  # fmt: skip

    @pytest.mark.parametrize("make", LAYERS)
    @pytest.mark.parametrize("chunks", [[1] * 11, [6, 1, 1, 3], [11]], ids=str)
    @torch.no_grad()
    def test_steps_equal_the_whole(self, make, chunks):
        layer, x, cache = randomised(make()), inputs(2, 11, 8), KeyValueCache()
        steps = [layer(part, cache=cache) for part in x.split(chunks, 1)]
        torch.testing.assert_close(torch.cat(steps, 1), layer(x))
        assert cache.length == 11

    @torch.no_grad()
    def test_a_context_is_projected_once(self):
        layer, x, context = Attention(8, 4), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
        cache, calls = KeyValueCache(), []
        layer.key.register_forward_hook(lambda *_: calls.append(1))
        steps = [layer(x[:, i : i + 1], context, cache=cache) for i in range(3)]
        assert len(calls) == 1
        assert cache.length == 5
        torch.testing.assert_close(torch.cat(steps, 1), layer(x, context))

    @torch.no_grad()
    def test_another_context_is_refused(self):
        """Not what merely lies elsewhere; and a step reads nothing of the same one."""
        layer, x, context = Attention(8, 4), torch.randn(2, 1, 8), torch.randn(2, 5, 8)
        cache = KeyValueCache()
        expected = layer(x, context, cache=cache)
        with host_reads() as reads:
            found = [layer(x, context, cache=cache) for _ in range(3)]
        assert reads == []
        for each in (*found, layer(x, context.clone(), cache=cache)):
            assert torch.equal(each, expected)
        with pytest.raises(
            ValueError, match=r"context must be the one .* got another: start a new"
        ):
            layer(x, context + 1, cache=cache)
        with pytest.raises(
            ValueError, match=r"context must have shape \[2, 5, \*\] as cached, got"
        ):
            layer(x, context[:, :4], cache=cache)
        layer(x, context, cache=cache)
        context.add_(1)
        with pytest.raises(ValueError, match="got it changed in place"):
            layer(x, context, cache=cache)

    @torch.no_grad()
    def test_a_reordered_context(self):
        layer, x, context = Attention(8, 4), torch.randn(2, 1, 8), torch.randn(2, 5, 8)
        order, cache = torch.tensor([1, 0]), KeyValueCache()
        layer(x, context, cache=cache)
        cache.reorder(order)
        found = layer(x, context[order], cache=cache)
        torch.testing.assert_close(found, layer(x, context[order]))
        with pytest.raises(ValueError, match="context must be the one"):
            layer(x, context, cache=cache)

    @torch.no_grad()
    def test_no_context_for_a_cache_of_its_own_keys(self):
        layer, x, cache = Attention(8, 4), torch.randn(2, 3, 8), KeyValueCache()
        layer(x, cache=cache)
        with pytest.raises(ValueError, match="context must be None with a cache of x's own keys"):
            layer(x, x, cache=cache)

    @torch.no_grad()
    def test_buffers_double(self, monkeypatch):
        copies, grown = [], KeyValueCache._grown
        monkeypatch.setattr(
            KeyValueCache, "_grown", lambda *given: copies.append(given[-1]) or grown(*given)
        )
        cache, rows = KeyValueCache(), torch.randn(2, 3, 1000, 4)
        for i in range(1000):
            k, v = cache.append(rows[:, :, i : i + 1], 2 * rows[:, :, i : i + 1])
        assert torch.equal(k, rows)
        assert torch.equal(v, 2 * rows)
        assert len(copies) <= 2 * 5  # keys and values: 64, then 130, 262, 526, 1054
        assert sum(copies) < 2 * 3 * 1000

    @torch.no_grad()
    def test_reorder(self):
        cache, rows = KeyValueCache(), torch.randn(3, 2, 5, 4)
        cache.reorder(torch.tensor([0]))  # nothing is in it
        cache.append(rows, rows)
        cache.reorder(torch.tensor([2, 2, 0, 1]))
        k, v = cache.append(rows[:1].expand(4, -1, -1, -1), rows[:1].expand(4, -1, -1, -1))
        assert torch.equal(k[:, :, :5], rows[[2, 2, 0, 1]])
        assert torch.equal(v[3, :, 5:], rows[0])

    @torch.no_grad()
    def test_reorder_of_a_whole_model(self):
        cache, rows = ModelCache(2), torch.randn(3, 2, 5, 4)
        for layer in cache.layers:
            layer.own.append(rows, rows)
            layer.context.append(rows, rows)
        cache.reorder(torch.tensor([2, 0, 0]))
        for layer in cache.layers:
            for kept in (layer.own, layer.context):
                assert torch.equal(kept.k, rows[[2, 0, 0]])
                assert torch.equal(kept.v, rows[[2, 0, 0]])
        assert cache.length == 5

    def test_bad_input(self):
        cache, layer, x = KeyValueCache(), Attention(8, 4), torch.randn(2, 3, 8)
        with pytest.raises(RuntimeError, match=r"generate under torch\.no_grad\(\)"):
            layer(x, cache=cache)
        with torch.no_grad():
            layer(x, cache=cache)
            for other, given, text in (
                (layer, x[:1], r"k must have shape \[2, 4, \*, 2\] as cached, got \[1, 4, 3, 2\]"),
                (Attention(8, 4, kv_heads=1), x, r"\[2, 4, \*, 2\] as cached, got \[2, 1, 3, 2\]"),
                (
                    Attention(8, 4, value_head_dim=1),
                    x,
                    r"v must have shape \[2, 4, \*, 2\] as cached",
                ),
            ):
                with pytest.raises(ValueError, match=text):
                    other(given, cache=cache)
        assert cache.length == 3


def skewed(q: Tensor, table: Tensor, distances: int) -> Tensor:
    """q E^T by the paper's skew (section 3.4.1): [B, H, L, L], garbage above the diagonal. Rows of
    the table are cut or padded with 0 to one for each distance, as in tensor2tensor."""
    length = q.shape[2]
    table = F.pad(table, (0, 0, max(length - distances, 0), 0))[:, -length:]
    by_row = F.pad(q @ table.mT, (1, 0))
    return by_row.view(*q.shape[:2], length + 1, length)[:, :, 1:]


class TestRelative:
    @pytest.mark.parametrize("distances", [4, 9, 20])
    @pytest.mark.parametrize("share_heads", [False, True])
    def test_music_transformer(self, backend, distances, share_heads):
        layer = randomised(
            RelativeAttention(
                8, 2, distances=distances, beyond="zero", share_heads=share_heads,
                backend=backend.name,
            )
        )  # fmt: skip
        x = inputs(2, 9, 8)
        q, k, v = heads_of(layer, x)
        logits = (q @ k.mT + skewed(q, layer.rel_k, distances)) / 2
        logits = logits.masked_fill(~causal_mask(9, 9), -torch.inf)
        torch.testing.assert_close(layer(x), joined(layer, logits.softmax(-1) @ v))

    def test_both_sides(self, backend):
        """tensor2tensor's unmasked form: 2 M - 1 rows, the centre row is distance 0."""
        layer = RelativeAttention(8, 2, distances=9, geometry=Full(), backend=backend.name)
        layer, x = randomised(layer), inputs(2, 9, 8)
        q, k, v = heads_of(layer, x)
        assert layer.rel_k.shape == (2, 17, 4)
        flat = F.pad(F.pad(q @ layer.rel_k.mT, (0, 1)).flatten(2), (0, 8))
        relative = flat.view(2, 2, 10, 17)[:, :, :9, 8:]
        weights = ((q @ k.mT + relative) / 2).softmax(-1)
        torch.testing.assert_close(layer(x), joined(layer, weights @ v))

    def test_initialisation(self):
        layer = RelativeAttention(256, 4, distances=512)
        assert layer.rel_k.std().item() == pytest.approx(64**-0.5, rel=0.02)
        assert abs(layer.rel_k.mean().item()) < 0.001

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("values", [False, True])
    def test_shaw(self, backend, causal, values):
        geometry = Causal() if causal else Full()
        layer = ShawAttention(
            8, 2, max_distance=3, values=values, geometry=geometry, value_head_dim=5,
            backend=backend.name,
        )  # fmt: skip
        layer, x = randomised(layer), inputs(2, 9, 8)
        q, k, v = heads_of(layer, x)
        places = torch.arange(9)
        row = (places - places[:, None]).clamp(-3, 3) + 3  # clip(j - i)
        if causal:
            row = row.clamp(max=3)
        keys = k[:, :, None] + layer.rel_k[0][row]  # [B, H, i, j, D]
        logits = (q[:, :, :, None] * keys).sum(-1) / 2
        if causal:
            logits = logits.masked_fill(~causal_mask(9, 9), -torch.inf)
        seen = v[:, :, None] + (layer.rel_v[0][row] if values else 0)
        expected = (logits.softmax(-1)[..., None] * seen).sum(3)
        torch.testing.assert_close(layer(x), joined(layer, expected))
        assert layer.rel_k.shape[1] == (4 if causal else 7)

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("form", ["concatenated", "interleaved"])
    def test_transformer_xl(self, backend, causal, form):
        """Equation of section 3.3, entry by entry, with a memory of 5."""
        geometry = Causal() if causal else Full()
        layer = TransformerXLAttention(
            8, 2, positions=form, geometry=geometry, backend=backend.name
        )
        layer, x, memory = randomised(layer), inputs(2, 4, 8), inputs(2, 5, 8)
        q, k, v = heads_of(layer, x, torch.cat((memory, x), 1))
        logits = torch.empty(2, 2, 4, 9, dtype=most_exact_dtype())
        for i in range(4):
            for j in range(9):
                wave = sinusoids(torch.tensor(i + 5 - j), 8, form).to(most_exact_dtype())
                position = layer.position(wave).view(2, 4)
                content = ((q[:, :, i] + layer.content_bias) * k[:, :, j]).sum(-1)
                where = ((q[:, :, i] + layer.position_bias) * position).sum(-1)
                logits[:, :, i, j] = (content + where) / 2
        if causal:
            logits = logits.masked_fill(~causal_mask(4, 9), -torch.inf)
        expected = joined(layer, logits.softmax(-1) @ v)
        torch.testing.assert_close(layer(x, memory=memory), expected)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="beyond must be one of 'clip', 'zero', got 'wrap'"):
            RelativeAttention(8, 2, distances=4, beyond="wrap")
        with pytest.raises(
            ValueError, match=r"positions must be one of 'interleaved'.* got 'other'"
        ):
            TransformerXLAttention(8, 2, positions="other")
        for kind, options in ((RelativeAttention, {"distances": 4}), (ShawAttention, {})):
            with pytest.raises(TypeError, match=r"geometry must be a Geometry .* got str"):
                kind(8, 2, geometry="causal", **options)

    @torch.no_grad()
    def test_memory_and_cache_exclude_each_other(self):
        layer, x = TransformerXLAttention(8, 2), torch.randn(2, 4, 8)
        with pytest.raises(ValueError, match="memory must be None with a cache"):
            layer(x, memory=x, cache=KeyValueCache())


class TestLocal:
    @pytest.mark.parametrize("shape", [(12,), (3, 4), (5, 7)], ids=str)
    def test_one_dimension(self, backend, shape):
        layer = LocalAttention1d(
            8, 2, block=5, look_back=3, look_ahead=2, causal=False, backend=backend.name
        )
        layer, x = randomised(layer), inputs(2, *shape, 8)
        q, k, v = heads_of(layer, x.flatten(1, -2))
        places = torch.arange(math.prod(shape))
        mask = Local1d(5, 3, 2, causal=False).visible(places[:, None], places)
        expected = F.scaled_dot_product_attention(q, k, v, mask)
        torch.testing.assert_close(layer(x), joined(layer, expected).view(x.shape))

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("shape", [(4, 6), (5, 7)], ids=str)
    def test_two_dimensions(self, backend, shape, causal):
        layer = LocalAttention2d(
            8, 2, block=(2, 3), halo=(1, 4), causal=causal, backend=backend.name
        )
        layer, x = randomised(layer), inputs(2, *shape, 8)
        q, k, v = heads_of(layer, x.flatten(1, 2))
        places = torch.arange(math.prod(shape))
        mask = Local2d(shape, (2, 3), (1, 4), causal).visible(places[:, None], places)
        expected = F.scaled_dot_product_attention(q, k, v, mask)
        torch.testing.assert_close(layer(x), joined(layer, expected).view(x.shape))

    def test_bad_input_in_one_dimension(self):
        layer = LocalAttention1d(8, 2, block=2, look_back=1)
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
            layer([1.0])
        with pytest.raises(
            ValueError, match=r"x must have shape \[batch, length, 8\], got \[4, 8\]"
        ):
            layer(torch.randn(4, 8))

    def test_bad_input(self):
        layer = LocalAttention2d(8, 2, block=(2, 2), halo=(1, 1))
        with pytest.raises(ValueError, match=r"x must have shape \[batch, rows, cols, 8\], got"):
            layer(torch.randn(2, 4, 8))
        with pytest.raises(NotImplementedError, match="cache must be None"):
            layer(torch.randn(2, 2, 2, 8), cache=KeyValueCache())


class TestPositions:
    def test_interleaved_is_the_papers(self):
        """PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) = cos of the same."""
        waves = sinusoids(torch.arange(50), 6)
        for pos in (0, 1, 49):
            for i in range(3):
                angle = pos / 10000 ** (2 * i / 6)
                assert waves[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
                assert waves[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)

    def test_other_forms(self):
        """Both put all sines first; tensor2tensor's last timescale is exactly 10000."""
        positions = torch.arange(50)
        concatenated, paper = sinusoids(positions, 8, "concatenated"), sinusoids(positions, 8)
        assert torch.equal(concatenated, torch.cat((paper[:, ::2], paper[:, 1::2]), 1))
        waves = sinusoids(positions, 8, "tensor2tensor")
        for i, timescale in enumerate((1, 10000 ** (1 / 3), 10000 ** (2 / 3), 10000)):
            angle = positions.double() / timescale
            torch.testing.assert_close(waves[:, i], angle.sin().float())
            torch.testing.assert_close(waves[:, 4 + i], angle.cos().float())

    def test_grid(self):
        """Each axis has its own channels; with 11 of them 4 + 4 are used."""
        waves = grid_sinusoids((3, 5), 11)
        rows, cols = (sinusoids(torch.arange(n), 4, "tensor2tensor") for n in (3, 5))
        for row in range(3):
            for col in range(5):
                expected = torch.cat((rows[row], cols[col], torch.zeros(3)))
                assert torch.equal(waves[row, col], expected)
        along = sinusoids(torch.arange(4), 6, "interleaved")
        assert torch.equal(grid_sinusoids((4,), 6, "interleaved"), along)

    def test_far_positions_are_exact(self):
        """float32 angles would be off by 1e-3 here."""
        angle = 100_003 / 10000 ** (2 / 8)
        found = sinusoids(torch.tensor(100_003), 8)[2:4]
        torch.testing.assert_close(found, torch.tensor([math.sin(angle), math.cos(angle)]))

    def test_modules(self):
        x = torch.randn(2, 7, 6)
        positions = SinusoidalPositions(6)
        torch.testing.assert_close(positions(x) - x, sinusoids(torch.arange(7), 6).expand(2, 7, 6))
        torch.testing.assert_close(positions(x, 3)[:, 0], positions(torch.cat((x, x), 1))[:, 3]
                                   - x[:, 3] + x[:, 0])  # fmt: skip
        canvas = torch.zeros(2, 3, 5, 8)
        found = SinusoidalPositions(8, "tensor2tensor")(canvas)
        assert torch.equal(found, grid_sinusoids((3, 5), 8).expand(2, -1, -1, -1))
        learned = LearnedPositions(9, 6)
        torch.testing.assert_close(learned(x, 2), x + learned.weight[2:9])

    def test_bad_input(self):
        with pytest.raises(ValueError, match="dim must be even, got 5"):
            sinusoids(torch.arange(3), 5)
        with pytest.raises(ValueError, match=r"form must be one of 'interleaved', .* got 'other'"):
            SinusoidalPositions(6, "other")
        with pytest.raises(ValueError, match="dim must be at least 4 for 2 axes, got 3"):
            grid_sinusoids((2, 2), 3)
        with pytest.raises(ValueError, match="within the 9 positions of the model, got 10"):
            LearnedPositions(9, 6)(torch.randn(2, 7, 6), 3)
        with pytest.raises(ValueError, match="offset must be at least 0, got -1"):
            LearnedPositions(9, 6)(torch.randn(2, 7, 6), -1)
        with pytest.raises(
            ValueError, match=r"x must have shape \[batch, length, 6\], got \[7, 6\]"
        ):
            LearnedPositions(9, 6)(torch.randn(7, 6))
        with pytest.raises(ValueError, match="offset must be 0 on a grid, got 1"):
            SinusoidalPositions(8)(torch.zeros(1, 2, 2, 8), 1)


class TestBlocks:
    @pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh"])
    def test_feed_forward(self, name):
        layer, x = FeedForward(4, 6, name), torch.randn(3, 4)
        hidden = layer.inner(x)
        functions = {
            "relu": hidden.clamp(min=0),
            "gelu": hidden * (1 + torch.erf(hidden / 2**0.5)) / 2,
            "gelu_tanh": hidden
            * (1 + torch.tanh((2 / math.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
            / 2,
        }
        torch.testing.assert_close(layer(x), layer.outer(functions[name]))

    def test_residual(self):
        x = torch.randn(3, 4) * 5
        pre, post = Residual(4, "pre"), Residual(4, "post")
        torch.testing.assert_close(pre(x, torch.sin), x + F.layer_norm(x, (4,)).sin())
        torch.testing.assert_close(post(x, torch.sin), F.layer_norm(x + x.sin(), (4,)))
        dropping = Residual(4, "pre", dropout=0.5)
        kept = (dropping(x, torch.ones_like) - x).flatten()
        assert set(kept.round(decimals=4).tolist()) == {0.0, 2.0}

    def test_bad_input(self):
        layer = TransformerLayer(Attention(8, 2), FeedForward(8, 8), Attention(8, 2))
        with pytest.raises(
            ValueError, match="context must be given: the layer has cross-attention"
        ):
            layer(torch.randn(1, 2, 8))
        layer = TransformerLayer(Attention(8, 2), FeedForward(8, 8))
        with pytest.raises(ValueError, match="context must be None: the layer has no cross"):
            layer(torch.randn(1, 2, 8), torch.randn(1, 2, 8))
        with pytest.raises(ValueError, match="norm must be one of 'pre', 'post', got 'both'"):
            Residual(8, "both")
        with pytest.raises(ValueError, match=r"activation must be one of 'relu', .* got 'tanh'"):
            FeedForward(8, 8, "tanh")
        with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got 1"):
            FeedForward(8, 8, dropout=1)
        with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
            FeedForward(8, 0)
        with pytest.raises(ValueError, match="layers must hold at least one layer, got none"):
            TransformerStack([])


SMALL = {"dim": 16, "layers": 2, "heads": 2}
TOKENS = torch.arange(1, 9).view(2, 4)
MODELS = {
    "gpt": (lambda b: GPT(GPTConfig(vocab=9, max_length=8, **SMALL), b), (TOKENS,), 2),
    "transformer": (
        lambda b: Transformer(TransformerConfig(vocab=9, hidden=16, **SMALL), b),
        (TOKENS, TOKENS),
        2 + 4,
    ),
    "music": (
        lambda b: MusicTransformer(
            MusicTransformerConfig(melody_vocab=9, melody_layers=2, max_length=8, **SMALL), b
        ),
        (TOKENS, TOKENS),
        2 + 4,
    ),
    "vit": (lambda b: ViT(ViTConfig.preset("digits"), b), (torch.randn(2, 1, 8, 8),), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_backend_reaches_every_attention(monkeypatch, name):
    make, given, calls = MODELS[name]
    used, operation = [], attn_kernels.attention

    def recorded(*args, backend, **options):
        used.append(backend)
        return operation(*args, backend=backend, **options)

    monkeypatch.setattr(attn_kernels.nn.attention, "attention", recorded)
    model = make("reference")
    model(*given)
    assert used == ["reference"] * calls
    used.clear()
    set_backend(model, "cpu" if attn_kernels.backends()["cpu"].available else None)(*given)
    assert len(used) == calls
    assert "reference" not in used
    with pytest.raises(ValueError, match="backend must be one of cpu"):
        make("fast")(*given)


SEQUENCE, CANVAS = (2, 10, 16), (2, 4, 5, 16)
TRACED = {
    "full": (Attention, {}, SEQUENCE),
    "window": (Attention, {"geometry": Causal(3)}, SEQUENCE),
    "torch": (MultiheadAttention, {}, SEQUENCE),
    "relative": (RelativeAttention, {"distances": 8}, SEQUENCE),
    "shaw": (ShawAttention, {"max_distance": 3}, SEQUENCE),
    "transformer-xl": (TransformerXLAttention, {}, SEQUENCE),
    "local_1d": (LocalAttention1d, {"block": 4, "look_back": 4}, SEQUENCE),
    "local_2d": (LocalAttention2d, {"block": (2, 2), "halo": (1, 1)}, CANVAS),
}


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", TRACED)
def test_traced(name, backend):
    """torch.jit.trace, whose sizes are tensors, gives the layer's bits, saved and loaded too."""
    make, options, shape = TRACED[name]
    layer, x = make(16, 4, **options, backend=backend), torch.randn(shape)
    given = (x, x, x) if name == "torch" else (x,)
    expected = layer(*given)
    traced = torch.jit.trace(layer, given)
    assert name != "full" or ("attn_kernels::fwd" in str(traced.inlined_graph)) == (backend is None)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for program in (traced, torch.jit.load(file)):
        torch.testing.assert_close(program(*given), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
def test_traced_with_a_mask():
    """The geometry that a mask means is a constant of the trace."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x, mask):
            return self.layer(x, x, x, attn_mask=mask)

    model, x = Model(), torch.randn(SEQUENCE)
    for mask in (~causal_mask(10, 10), torch.ones(10, 10).tril().fliplr() == 0):
        traced = torch.jit.trace(model, (x, mask))
        torch.testing.assert_close(traced(x, mask), model(x, mask), rtol=0, atol=0)
