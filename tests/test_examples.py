"""Every example runs for two steps and leaves what it promises."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

for _module in ("safetensors", "matplotlib", "PIL"):
    pytest.importorskip(_module, reason="pip install -r requirements/examples.txt")

from examples import quality
from examples.options import common, parser

# The example, what its data comes in (module, package), its options, and what it leaves in --out.
DIGITS, MESSAGES, CHORALES = (
    ("sklearn", "scikit-learn"),
    ("django", "Django"),
    ("music21", "music21"),
)
EXAMPLES = {
    "music_transformer": (CHORALES, "", ["from_nothing.mid", "primed.mid"]),
    "transformer": (MESSAGES, "", ["translations.tsv"]),
    "seq2seq": (MESSAGES, "", ["translations.tsv"]),
    "seq2seq_attention": (MESSAGES, "", ["translations.tsv", "alignment_0.png"]),
    "captioning": (DIGITS, "--data digits", ["captions.tsv", "attention_0.png"]),
    "sagan": (DIGITS, "", ["samples.png", "attention.png"]),
    "gpt": (None, "", ["sample.txt"]),
    "dalle": (DIGITS, "", ["samples.png", "reconstructed.png"]),
    "image_transformer": (DIGITS, "", ["samples.png"]),
    "vit": (DIGITS, "", ["predictions.png"]),
}
VARIANTS = {
    "seq2seq_attention": ["--luong", "--source fr --target es"],
    "image_transformer": [
        "--task unconditional --two-dimensional",
        "--task super-resolution --logistic",
    ],
}


def run(name: str, out: Path, words: str) -> None:
    arguments = [*words.split(), "--steps", "2", "--out", str(out)]
    importlib.import_module(f"examples.{name}").run(arguments)


def need(package: tuple[str, str] | None) -> None:
    if package is not None:
        pytest.importorskip(package[0], reason=f"pip install {package[1]}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    package, words, files = EXAMPLES[name]
    need(package)
    run(name, tmp_path, words)
    for file in files:
        assert (tmp_path / file).stat().st_size > 50, file
    assert list(tmp_path.glob("*.safetensors"))
    assert list(tmp_path.glob("*_loss.png"))
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["example"] == name
    assert found["steps"] == 2
    plain_torch = name in ("seq2seq", "seq2seq_attention", "captioning")
    assert found["backend"] == (quality.NO_BACKEND if plain_torch else "cpu")
    assert all(math.isfinite(x["value"]) for x in found["figures"])
    assert all(x["value"] != x["baseline"] for x in found["figures"] if "nats" in x["name"])


@pytest.mark.parametrize(("name", "words"), [(n, w) for n in VARIANTS for w in VARIANTS[n]])
def test_variant(name, words, tmp_path):
    need(EXAMPLES[name][0])
    run(name, tmp_path, words)
    assert (tmp_path / "figures.json").exists()


def test_dalle_on_emoji(tmp_path, monkeypatch):
    """Pictures of noise stand for the font."""
    from examples import dalle

    def noise(*captions):
        dice = torch.Generator().manual_seed(len(captions))
        size = (len(captions), 32, 32, 3)
        images = torch.randint(256, size, dtype=torch.uint8, generator=dice)
        return dalle.Captioned(images, list(captions))

    parts = noise("red apple", "green apple", "left arrow"), noise("red arrow", "green pear")
    monkeypatch.setattr(dalle.emoji, "load", lambda side, font: parts)
    run("dalle", tmp_path, "--data emoji")
    found = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [x["baseline_name"] for x in found] == [
        "the mean picture", "frequencies of codes", "with another text",
    ]  # fmt: skip
    assert found[1]["baseline"] != found[2]["baseline"] != found[2]["value"]


@pytest.mark.parametrize("name", ["vit", "sagan"])
def test_resumed_after_the_end(name, tmp_path):
    """Nothing is left to train: the figures are the same again."""
    need(EXAMPLES[name][0])
    found = []
    for words in ("", "--resume"):
        run(name, tmp_path, words)
        found.append(json.loads((tmp_path / "figures.json").read_text())["figures"])
    assert found[0] == found[1]


def test_midi_of_a_piece_is_the_piece(tmp_path):
    """Notes written and read again cover the grid that they came from."""
    import numpy as np

    from attn_kernels.models.midi import read_midi, write_midi
    from examples import music_transformer as example

    piece = np.array([[72, 67, 60, -1]] * 3 + [[74, 67, 60, 48]] * 2)
    tokens = example.to_tokens(piece)
    assert tokens[0] == example.START
    write_midi(tmp_path / "a.mid", example.to_notes(tokens[1:].tolist()))
    found = {(x.pitch, round(x.start, 2), round(x.end, 2)) for x in read_midi(tmp_path / "a.mid")}
    assert found == {
        (72, 0, 0.45),
        (74, 0.45, 0.75),
        (67, 0, 0.75),
        (60, 0, 0.75),
        (48, 0.45, 0.75),
    }


def test_module_is_a_program(capsys):
    with pytest.raises(SystemExit) as stopped:
        quality.main(lambda: common(parser("gpt", "", 3).parse_args(["--steps", "0"])))
    assert stopped.value.code == quality.WRONG_INPUT
    assert "--steps: must be at least 1, got 0" in capsys.readouterr().err
