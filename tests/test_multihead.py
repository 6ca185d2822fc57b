"""MultiheadAttention against the layer of that name in torch.nn."""

from __future__ import annotations

import pytest
import torch
from host_reads import host_reads
from torch import Tensor, nn

from attn_kernels import Pattern
from attn_kernels.nn import MultiheadAttention, checks

KINDS = [{}, {"kdim": 8, "vdim": 12}, {"bias": False}, {"kdim": 8, "bias": False}]


def pair(backend: str | None = None, **options) -> tuple[nn.Module, MultiheadAttention]:
    """torch's layer with random weights and ours with the same."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, dtype=torch.float64, **options).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = MultiheadAttention(16, 4, dtype=torch.float64, backend=backend, **options).eval()
    assert ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def inputs(layer: nn.Module, q_len: int = 7, k_len: int = 9) -> list[Tensor]:
    """query, key, value in the layer's own layout."""
    sizes = ((q_len, 16), (k_len, layer.kdim), (k_len, layer.vdim))
    found = [torch.randn(3, length, dim, dtype=torch.float64) for length, dim in sizes]
    return found if layer.batch_first else [x.transpose(0, 1) for x in found]


def padding(*lengths: int, most: int = 9) -> Tensor:
    return torch.arange(most) >= torch.tensor(lengths)[:, None]


def causal(q_len: int = 7, k_len: int = 9) -> Tensor:
    return torch.ones(q_len, k_len, dtype=torch.bool).triu(1)


def as_float(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf)


def scattered() -> Tensor:
    """A mask of no particular shape that leaves every query a key."""
    hidden = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) < 0.5
    hidden[:, 0] = False
    return hidden


CALLS = {
    "plain": {},
    "padding": {"key_padding_mask": padding(9, 4, 1)},
    "float padding": {"key_padding_mask": as_float(padding(9, 4, 1))},
    "causal mask": {"attn_mask": causal()},
    "causal of all heads": {"attn_mask": causal().expand(12, 7, 9), "average_attn_weights": False},
    "any mask": {"attn_mask": scattered()},
    "any mask of all heads": {
        "attn_mask": as_float(scattered()).expand(12, 7, 9),
        "key_padding_mask": as_float(padding(9, 4, 1)),
        "average_attn_weights": False,
    },
    "causal hint": {
        "attn_mask": as_float(causal()),
        "key_padding_mask": as_float(padding(5, 9, 9)),
        "is_causal": True,
        "need_weights": False,
    },
}


def assert_same(found: tuple, expected: tuple) -> None:
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_same_results(backend, kind, batch_first, call):
    theirs, ours = pair(backend.name, batch_first=batch_first, **kind)
    given = inputs(theirs)
    expected, found = theirs(*given, **CALLS[call]), ours(*given, **CALLS[call])
    assert_same(found, expected)
    weight = torch.randn_like(expected[0])
    (expected[0] * weight).sum().backward()
    (found[0] * weight).sum().backward()
    for (name, p), (other, q) in zip(
        theirs.named_parameters(), ours.named_parameters(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(q.grad, p.grad)


def test_self_attention_and_single_sequences():
    theirs, ours = pair()
    x = torch.randn(9, 3, 16, dtype=torch.float64)
    assert_same(ours(x, x, x), theirs(x, x, x))
    assert_same(ours(x[:, 0], x[:, 0], x[:, 0]), theirs(x[:, 0], x[:, 0], x[:, 0]))
    mask = padding(4)[0]
    given = (x[:, 0], x[:, 1], x[:, 1])
    assert_same(ours(*given, key_padding_mask=mask), theirs(*given, key_padding_mask=mask))


def test_is_causal_needs_no_mask():
    theirs, ours = pair(batch_first=True)
    given = inputs(theirs)
    expected = theirs(*given, attn_mask=causal(), is_causal=True)
    assert_same(ours(*given, is_causal=True), expected)


def test_a_mask_is_compiled_when_it_changes(monkeypatch):
    theirs, ours = pair(batch_first=True)
    given, calls, from_mask = inputs(theirs), [], Pattern.from_mask
    monkeypatch.setattr(Pattern, "from_mask", lambda mask: calls.append(1) or from_mask(mask))
    for mask in (scattered(), scattered(), scattered().roll(1, 0), scattered()):
        assert_same(ours(*given, attn_mask=mask), theirs(*given, attn_mask=mask))
    assert len(calls) == 3


@torch.no_grad()
def test_a_mask_is_read_once(monkeypatch):
    """The same tensor is recognised, and padding is asserted by the device, as on a GPU."""
    monkeypatch.setattr(checks, "is_asserted_by_device", lambda holds: True)
    theirs, ours = pair(batch_first=True)
    given, mask, lengths = inputs(theirs), scattered(), padding(9, 4, 1)
    ours(*given, attn_mask=mask)
    with host_reads() as reads:
        found = ours(*given, lengths, attn_mask=mask)
    assert reads == []
    assert_same(found, theirs(*given, lengths, attn_mask=mask))
    mask.copy_(mask.roll(1, 0))
    assert_same(ours(*given, attn_mask=mask), theirs(*given, attn_mask=mask))
    with pytest.raises(RuntimeError, match="key_padding_mask must be true only behind the last"):
        ours(*given, lengths.flip(1))


@pytest.mark.parametrize("mask", [causal(), scattered()], ids=["causal", "scattered"])
def test_compiled_with_a_mask(mask):
    """The geometry is found between two graphs; with fullgraph=True that is an error that says
    what to do."""
    torch._dynamo.reset()
    _, layer = pair(batch_first=True)
    given = inputs(layer)
    compiled = torch.compile(layer, backend="aot_eager")
    for _ in range(2):
        assert_same(compiled(*given, attn_mask=mask), layer(*given, attn_mask=mask))
    torch._dynamo.reset()
    whole = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="is_causal=True needs no mask"):
        whole(*given, attn_mask=mask)
    assert_same(whole(*given, is_causal=True), layer(*given, is_causal=True))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "plain"])
def test_inside_torchs_encoder(train, masked, monkeypatch):
    """In the place of its self-attention, which torch computes without the layer where it can."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(train)
    x, lengths = torch.randn(3, 9, 16), padding(9, 4, 1)
    masks = {"mask": causal(9), "src_key_padding_mask": lengths}
    options = {name: as_float(mask).float() for name, mask in masks.items()}
    options = options if masked else {}
    with torch.no_grad():
        expected = model(x, **options)
    for each in model.layers:
        ours = MultiheadAttention(16, 4, batch_first=True)
        ours.load_state_dict(each.self_attn.state_dict())
        each.self_attn = ours
    model.train(train)
    used, forward = [], MultiheadAttention.forward
    monkeypatch.setattr(
        MultiheadAttention, "forward", lambda *a, **k: used.append(1) or forward(*a, **k)
    )
    with torch.no_grad():
        torch.testing.assert_close(model(x, **options), expected)
    assert len(used) == 2


def test_same_parameters():
    """Names, shapes and order, and weights initialised alike."""
    for kind in KINDS:
        theirs, ours = pair(**kind)
        shapes = [(name, p.shape) for name, p in ours.named_parameters()]
        assert shapes == [(name, p.shape) for name, p in theirs.named_parameters()]
    ours, theirs = (layer(512, 8) for layer in (MultiheadAttention, nn.MultiheadAttention))
    for name in ("in_proj_weight", "in_proj_bias"):
        found, expected = getattr(ours, name).std(), getattr(theirs, name).std()
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_a_padded_query_of_no_keys_gives_the_bias():
    _, ours = pair(batch_first=True)
    given = inputs(ours)
    out, weights = ours(*given, key_padding_mask=padding(0, 9, 9))
    torch.testing.assert_close(out[0], ours.out_proj.bias.expand(7, 16))
    assert not weights[0].any()


def test_bad_input():
    _, ours = pair(batch_first=True)
    given = inputs(ours)
    for options, error, message in (
        ({"key_padding_mask": ~padding(4, 4, 4)}, NotImplementedError, "padding on the right"),
        (
            {"key_padding_mask": padding(4, 4)},
            ValueError,
            r"must have shape \[3, 9\], got \[2, 9\]",
        ),
        ({"key_padding_mask": padding(4, 4, 4) * 0.5}, NotImplementedError, "only 0 and -inf"),
        ({"attn_mask": causal().T}, ValueError, r"attn_mask must have shape \[7, 9\]"),
        ({"attn_mask": causal() * 0.5}, NotImplementedError, "bool or hold only 0 and -inf"),
        (
            {"attn_mask": torch.stack([causal(), scattered()] * 6)},
            NotImplementedError,
            "the same for all entries and heads",
        ),
    ):
        with pytest.raises(error, match=message):
            ours(*given, **options)
    with pytest.raises(ValueError, match=r"key must have shape \[\*, \*, 16\]"):
        ours(given[0], given[1][..., :8], given[2])
    with pytest.raises(ValueError, match="embed_dim must be a multiple of num_heads, got 16 and 3"):
        MultiheadAttention(16, 3)
    for name in ("add_bias_kv", "add_zero_attn"):
        with pytest.raises(NotImplementedError, match=f"{name} must be False, got True"):
            MultiheadAttention(16, 4, **{name: True})
    dropping = MultiheadAttention(16, 4, dropout=0.1)
    with pytest.raises(NotImplementedError, match=r"dropout must be 0 in training, got 0\.1"):
        dropping(*[torch.randn(5, 3, 16)] * 3)
    dropping.eval()(*[torch.randn(5, 3, 16)] * 3)
