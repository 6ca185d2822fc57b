"""What the examples share: training that resumes exactly, checkpoints, data, BLEU, pictures."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import signal
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

for _module in ("safetensors", "matplotlib", "PIL"):
    pytest.importorskip(_module, reason="pip install -r requirements/examples.txt")

from examples import (
    bleu,
    bpe,
    checkpoint,
    dalle,
    gpt,
    music_transformer,
    options,
    pictures,
    quality,
    relative_memory,
    training,
    translation,
    words,
)
from examples.data import captions, catalogues, chorales, digit_pairs, digits, emoji, manual
from examples.data.source import MissingData, package, split_by_content

# --- Training and checkpoints ---


class Tiny(nn.Module):
    """Dropout, so that random numbers count, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.drop(self.embed(x)))


def run_options(out: Path, *words: str) -> options.Options:
    found = options.parser("tiny", "", 10).parse_args(["--out", str(out), *words])
    return options.common(found)


def tiny_training(chosen: options.Options, interrupt_at: int | None = None, **config: int):
    def batch(step):
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        return training.shuffled(11, 4, chosen.seed, step)

    model = Tiny()
    config = {"width": 8, **config}
    return training.Training(
        chosen,
        "tiny",
        model,
        batch=batch,
        loss=lambda x: nn.functional.cross_entropy(model(x), (x + 1) % 11),
        validate=lambda: torch.rand(()) + model(torch.arange(11)).square().mean(),
        config=config,
    )


def assert_same(a: Path, b: Path) -> None:
    a, b = checkpoint.load(a), checkpoint.load(b)
    assert (a.step, a.history, a.config) == (b.step, b.history, b.config)
    assert a.tensors.keys() == b.tensors.keys()
    for name, value in a.tensors.items():
        assert torch.equal(value, b.tensors[name]), name


def test_interrupted_and_resumed_is_bitwise_the_same(tmp_path):
    tiny_training(run_options(tmp_path / "whole")).run()
    with pytest.raises(SystemExit) as stopped:
        tiny_training(run_options(tmp_path / "parts"), interrupt_at=4).run()
    assert stopped.value.code == training.INTERRUPTED
    path = tmp_path / "parts" / "tiny.safetensors"
    before = checkpoint.load(path)
    assert before.step == 5
    torch.manual_seed(99)  # another process starts with other random numbers
    resumed = tiny_training(run_options(tmp_path / "parts", "--resume")).run()
    assert resumed.step == 10
    assert resumed.seconds > before.seconds > 0
    assert len(resumed.history["train"]) == 10
    assert_same(tmp_path / "whole" / "tiny.safetensors", path)


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    tiny_training(run_options(tmp_path)).run()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_stops_at_once():
    """By the handler that was there: a program in the background may have none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with training.stop_signals() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_validation_leaves_training_undisturbed(tmp_path):
    trained = tiny_training(run_options(tmp_path))
    state = torch.get_rng_state()
    trained.measure()
    assert torch.equal(state, torch.get_rng_state())
    assert trained.model.training
    with training.evaluating(trained.model):
        assert not trained.model.training
        assert not torch.is_grad_enabled()


def test_checkpoint_of_another_config(tmp_path):
    tiny_training(run_options(tmp_path)).run()
    other = tiny_training(run_options(tmp_path, "--resume", "--seed", "1"), width=9, depth=2)
    differing = "depth None there, 2 here; seed 0 there, 1 here; width 8 there, 9 here"
    with pytest.raises(ValueError, match=f"another configuration: {differing}"):
        other.run()
    shorter = tiny_training(run_options(tmp_path, "--resume", "--steps", "9"))
    with pytest.raises(ValueError, match=r"is at step 10: --steps must be at least that, got 9"):
        shorter.run()


def test_a_checkpoint_is_never_overwritten_unasked(tmp_path):
    tiny_training(run_options(tmp_path)).run()
    with pytest.raises(ValueError, match=r"tiny.safetensors is there: --resume goes on from it"):
        run_options(tmp_path)
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(1)}, other)
    run_options(tmp_path, "--restart")
    assert list(tmp_path.glob("*.safetensors")) == [other]
    with pytest.raises(ValueError, match="--resume: there is no checkpoint of tiny in"):
        run_options(tmp_path, "--resume")
    tiny_training(run_options(tmp_path)).run()
    parsed = options.parser("other", "", 10).parse_args(["--resume", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--resume: there is no checkpoint of other in"):
        options.common(parsed)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def half(part: Path) -> None:
        part.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(path, half)
    assert path.read_text() == "old"
    checkpoint.write_atomically(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"nonsense" * 9])
def test_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint of these examples"):
        checkpoint.load(path)


def test_every_epoch_holds_every_item_once():
    batches = [training.shuffled(10, 4, 0, step) for step in range(5)]
    assert all(len(batch) == 4 for batch in batches)
    first, second = torch.cat(batches).split(10)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert training.shuffled(3, 8, 0, 1).tolist()  # a batch larger than the data


def test_learning_rates(tmp_path):
    """Up in a line, down in half a cosine to a twentieth, and no further; training follows them."""
    rates = [training.warmup_cosine(step, 250) for step in range(300)]
    assert rates[:51] == pytest.approx([(step + 1) / 50 for step in range(50)] + [1.0])
    assert rates[150] == pytest.approx(0.05 + 0.95 / 2)
    assert rates[250:] == pytest.approx([0.05] * 50)
    trained = tiny_training(run_options(tmp_path)).run()
    (group,) = trained.optimizers["adam"].param_groups
    assert group["lr"] == pytest.approx(1e-3 * 10 / 50)


def test_gradients_are_clipped(tmp_path):
    trained = tiny_training(run_options(tmp_path))
    loss = trained.loss
    trained.loss = lambda x: 1e6 * loss(x)
    trained.update(trained.batch(0))
    gradients = [x.grad.flatten() for x in trained.model.parameters()]
    assert torch.cat(gradients).norm() == pytest.approx(1.0)


# --- Quality ---


def test_quality():
    better = quality.Quality("loss", 1.0, "marginal", 2.0, stated=1.5)
    assert better.reached
    assert not quality.Quality("loss", 1.6, "marginal", 2.0, stated=1.5).reached
    assert not quality.Quality("accuracy", 0.5, "majority", 0.5, 0.4, higher_is_better=True).reached
    assert quality.Quality("accuracy", 0.6, "majority", 0.5, 0.6, higher_is_better=True).reached


def test_check_fails_and_the_figures_are_written(tmp_path):
    missed = quality.Quality("loss", 1.6, "marginal", 2.0, stated=1.5)
    reached = quality.Quality("loss", 1.4, "marginal", 2.0, stated=1.5)
    quality.report(run_options(tmp_path), [missed, reached], 1.0)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["figures"][0]["reached"] is False
    with pytest.raises(SystemExit) as stopped:
        quality.report(run_options(tmp_path, "--check"), [missed, reached], 1.0)
    assert stopped.value.code == quality.FAILED


def test_wrong_input_is_one_line(capsys):
    def run() -> None:
        raise MissingData("x is not installed: pip install x")

    with pytest.raises(SystemExit) as stopped:
        quality.main(run)
    assert stopped.value.code == quality.WRONG_INPUT
    assert capsys.readouterr().err == "error: x is not installed: pip install x\n"


# --- BLEU ---


def test_bleu_by_hand():
    hypothesis, reference = "the cat sat on the mat", "the cat lay on the mat"
    assert bleu.bleu([hypothesis], [reference]) == 0.0  # no 4-gram in common
    more = "a b c d e"
    precisions = (10 / 11) * (7 / 9) * (4 / 7) * (2 / 5)
    assert bleu.bleu([hypothesis, more], [reference, more]) == pytest.approx(100 * precisions**0.25)


def test_bleu_clips_counts_and_punishes_short_sentences():
    assert bleu.bleu(["a b c d"], ["a b c d"]) == pytest.approx(100)
    assert bleu.bleu(["a b c d"], ["a b c d e f"]) == pytest.approx(100 * math.exp(1 - 6 / 4))
    repeated = (4 / 8) * (3 / 7) * (2 / 6) * (1 / 5)
    assert bleu.bleu(["a b c d a b c d"], ["a b c d"]) == pytest.approx(100 * repeated**0.25)
    with pytest.raises(ValueError, match="hypotheses must be as many as references, got 1 and 2"):
        bleu.bleu(["a"], ["a", "b"])


def test_placeholders_and_signs_are_tokens():
    assert bleu.tokens("Ensure %(max)d items, or “x”.") == [
        "Ensure", "%(max)d", "items", ",", "or", "“", "x", "”", ".",
    ]  # fmt: skip


# --- Data ---


def test_split_goes_by_content():
    items = [str(i).encode() for i in range(1000)]
    split = split_by_content(items)
    assert sorted(split.train + split.validation) == list(range(1000))
    assert 60 < len(split.validation) < 140
    chosen = {items[i] for i in split.validation}
    assert {items[999 - i] for i in split_by_content(items[::-1]).validation} == chosen


def test_missing_package():
    with pytest.raises(MissingData, match="no_such_module is not installed: pip install such"):
        package("no_such_module", "such")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--device", "nothing"], "--device nothing: Expected one of cpu, cuda, "),
        (["--backend", "triton"], "--backend triton: there is no CUDA device"),
        (["--out", __file__], f"--out {__file__}: File exists"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
def test_what_this_machine_does_not_have(tmp_path, words, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        run_options(tmp_path, *words)


def test_missing_packages_are_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(options.USED, "no_such_module", "such")
    with pytest.raises(MissingData, match=r"not installed: pip install such$"):
        run_options(tmp_path)


def test_digits():
    pytest.importorskip("sklearn", reason="pip install scikit-learn")
    train, validation = digits.load()
    assert len(train.labels) + len(validation.labels) == 1797
    assert train.images.shape[1:] == (8, 8)
    assert train.images.max() == digits.LEVELS - 1
    assert set(validation.labels.tolist()) == set(range(10))


def test_digit_pairs():
    pytest.importorskip("sklearn", reason="pip install scikit-learn")
    train, _ = digit_pairs.load(32, train=50, validation=5)
    assert train.images.shape == (50, 32, 32, 3)
    assert train.images.dtype == torch.uint8
    above = next(i for i, words in enumerate(train.captions) if "above" in words)
    beside = next(i for i, words in enumerate(train.captions) if "left of" in words)
    assert (train.images[above, :, :8] == 255).all()  # nothing at the left edge
    assert (train.images[beside, :8] == 255).all()
    with pytest.raises(ValueError, match="side must be a multiple of 16, got 20"):
        digit_pairs.load(20)


PO = """\
#, fuzzy
msgid ""
msgstr "Content-Type: text/plain\\n"

msgid "Yes"
msgstr "Ja"

#, python-format
msgid "%(n)s item"
msgid_plural "%(n)s items"
msgstr[0] "%(n)s Eintrag"
msgstr[1] "%(n)s Einträge"

#, fuzzy
msgid "unsure"
msgstr "unsicher"

msgid ""
"two "
"\\"lines\\""
msgstr ""
"zwei "
"\\"Zeilen\\""

msgid "missing"
msgstr ""

#~ msgid "old"
#~ msgstr "alt"
"""


def test_catalogue_file(tmp_path):
    path = tmp_path / "django.po"
    path.write_text(PO, encoding="utf-8")
    assert list(catalogues.sentences(path)) == [
        ("Yes", "Ja"),
        ("%(n)s item", "%(n)s Eintrag"),
        ('two "lines"', 'zwei "Zeilen"'),
    ]


def test_catalogues():
    pytest.importorskip("django", reason="pip install Django")
    train, validation = catalogues.load("en", "de")
    assert len(train.source) == len(train.target) > 600
    assert not set(train.source) & set(validation.source)
    assert dict(zip(train.source, train.target, strict=True))["Yes"] == "Ja"
    other, _ = catalogues.load("en", "fr")
    assert not set(validation.source) & set(other.source)
    with pytest.raises(ValueError, match=r"target must be one of .*, got 'xx'"):
        catalogues.load("en", "xx")
    with pytest.raises(ValueError, match="source and target must differ"):
        catalogues.load("de", "de")


def score(*notes: str, parts: int = 4) -> str:
    measure = (
        f"<measure><attributes><divisions>2</divisions></attributes>{''.join(notes)}</measure>"
    )
    return f"<score-partwise>{f'<part>{measure}</part>' * parts}</score-partwise>"


def note(step: str, octave: int, duration: int, alter: str = "") -> str:
    height = f"<step>{step}</step>{alter}<octave>{octave}</octave>"
    return f"<note><pitch>{height}</pitch><duration>{duration}</duration></note>"


def write_mxl(path: Path, text: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        inner = "<container><rootfiles><rootfile full-path='a.xml'/></rootfiles></container>"
        archive.writestr("META-INF/container.xml", inner)
        archive.writestr("a.xml", text)
    return path


def test_musicxml(tmp_path):
    notes = (
        note("C", 4, 1),
        note("F", 3, 2, "<alter>1</alter>"),
        "<note><grace/><pitch><step>A</step><octave>4</octave></pitch></note>",
        "<note><rest/><duration>1</duration></note>",
        note("B", 4, 1, "<alter>-1</alter>"),
    )
    piece = chorales.read_musicxml(write_mxl(tmp_path / "a.mxl", score(*notes)))
    assert piece.shape == (10, 4)
    assert piece[:, 2].tolist() == [60, 60, 54, 54, 54, 54, -1, -1, 70, 70]
    assert chorales.read_musicxml(write_mxl(tmp_path / "b.mxl", score(*notes, parts=3))) is None


def test_music21_chorales():
    pytest.importorskip("music21", reason="pip install music21")
    found = chorales.load()
    assert len(found.train) + len(found.validation) == 364
    assert 30 < len(found.validation) < 80
    pitches = np.concatenate([piece.ravel() for piece in found.train])
    assert pitches[pitches >= 0].min() >= 30
    assert pitches.max() <= 90


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_jsb_file(tmp_path, compress):
    path = tmp_path / "jsb"
    pieces = {"train": [[[60, 55, 50, -1]] * 3], "valid": [[[1, 2, 3, 4]]], "test": [[[9] * 4]]}
    path.write_bytes(compress(json.dumps(pieces).encode()))
    found = chorales.load(path)
    assert [x.tolist() for x in found.train] == pieces["train"]
    assert [x.tolist() for x in found.validation] == pieces["valid"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"train": [[1]], "valid": []}', b"\x1f\x8bxxx"])
def test_wrong_jsb_file(tmp_path, content):
    path = tmp_path / "jsb"
    path.write_bytes(content)
    with pytest.raises((ValueError, MissingData), match="jsb"):
        chorales.load(path)
    with pytest.raises(MissingData, match="cannot read the chorales"):
        chorales.load(tmp_path / "none")


def test_manual():
    train, validation = manual.load()
    assert sum(map(len, train)) > 200_000
    assert not set(train) & set(validation)


def test_wrong_font(tmp_path):
    pytest.importorskip("fontTools", reason="pip install fonttools")
    path = tmp_path / "font.ttf"
    with pytest.raises(MissingData, match="apt-get install fonts-noto-color-emoji"):
        captions.load("emoji", 32, path)
    path.write_bytes(b"no font")
    with pytest.raises(MissingData, match="apt-get install fonts-noto-color-emoji"):
        captions.load("emoji", 32, path)
    with pytest.raises(ValueError, match="kind must be one of emoji, digits, got 'x'"):
        captions.load("x")


def test_without_the_font_digits_take_its_place(monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="pip install scikit-learn")
    monkeypatch.setattr(emoji, "find_font", lambda: None)
    kind, train, _ = captions.load()
    assert kind == "digits"
    assert train.captions[0].startswith("a ")
    assert "fonts-noto-color-emoji" in capsys.readouterr().err


def test_emoji_names():
    assert emoji.caption("\N{LEMON}") == "lemon"
    assert emoji.caption("\N{LEFT-POINTING MAGNIFYING GLASS}") == "left pointing magnifying glass"
    assert emoji.caption("7") is None


def test_mirrored_pictures():
    images = torch.arange(24.0).view(3, 1, 2, 4)
    given = dalle.Captioned(images, ["red apple", "rightwards arrow", "sun"])
    found = dalle.with_mirrored(given)
    assert found.captions == [*given.captions, "red apple", "sun"]
    assert torch.equal(found.images, torch.cat([images, images[[0, 2]].flip(3)]))


# --- Pictures ---


def test_grid(tmp_path):
    from PIL import Image

    pictures.save_grid(tmp_path / "a.png", torch.zeros(5, 4, 6, dtype=torch.uint8), 3, scale=2)
    image = Image.open(tmp_path / "a.png")
    assert image.size == (3 * (12 + 4), 2 * (8 + 4))
    assert image.getpixel((3, 3)) == (0, 0, 0)
    assert image.getpixel((47, 23)) == (255, 255, 255)


def test_attention_pictures(tmp_path):
    image = torch.zeros(8, 8, 3, dtype=torch.uint8)
    pictures.save_attention(tmp_path / "a.png", image, ["a", "b"], torch.rand(2, 4, 4))
    pictures.save_matrix(tmp_path / "b.png", torch.rand(2, 3), ["a", "b"], ["c", "d", "e"])
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png"))


# --- The memory table ---


def test_sizes_are_numbers(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["relative_memory", "--lengths", "650,x"])
    with pytest.raises(SystemExit):
        relative_memory.run()
    assert "--lengths: must be an int, got 'x'" in capsys.readouterr().err


def test_ways_to_relative_attention_agree():
    torch.manual_seed(0)
    inputs = relative_memory.make_inputs(17, 2)
    expected = relative_memory.ATTENTIONS["fused"](*inputs)
    for way in ("gathered", "skewed"):
        torch.testing.assert_close(relative_memory.ATTENTIONS[way](*inputs), expected)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory")
def test_memory_of_gathered_rows_is_what_the_paper_counts():
    found = relative_memory.measure("gathered", "term", 256, 1)
    assert found == pytest.approx(relative_memory.formula("gathered", 256, 1), rel=0.05)
    assert found > 256 * 256 * relative_memory.HEAD_DIM * relative_memory.FLOAT


def test_what_cannot_fit_is_not_tried():
    assert relative_memory.measure("gathered", "forward", 1 << 20, 8) is None


# --- Words and pieces ---


def test_pieces_joined_are_the_sentence():
    sentences = ["Ensure this value has %(limit)d characters.", "Enter a value, this value!"]
    vocabulary = bpe.Vocabulary(sentences * 3, 60)
    assert " value" in vocabulary.pieces
    for sentence in sentences:
        ids = vocabulary.encode(sentence)
        assert vocabulary.decode([*ids, bpe.END, 9]) == sentence
        assert len(ids) < len(sentence)
    split = vocabulary.encode(sentences[1], dropout=1.0, dice=random.Random(0))
    assert len(split) == len(sentences[1])
    assert vocabulary.decode(split) == sentences[1]
    assert bpe.UNKNOWN in vocabulary.encode("Zyx")
    with pytest.raises(ValueError, match="sentences must hold at least one word"):
        bpe.Vocabulary([" "], 60)


def test_the_most_frequent_pair_is_merged_first():
    assert bpe.learn(Counter({"aab": 3, "ab": 1, "cb": 3}), 2) == [("a", "b"), ("a", "ab")]


def test_placeholders_are_numbered_and_named():
    names: list[str] = []
    source = translation.numbered("%(a)s of %(b)s", names)
    target = translation.numbered("%(b)s: %(a)s %(a)s", names)
    assert target == f"{source[-1]}: {source[0]} {source[0]}"
    assert translation.named(target, names) == "%(b)s: %(a)s %(a)s"
    assert translation.named(target, []) == ":  "


def test_batches_of_sentences():
    """Batches of a pool hold each of its pairs once; targets begin with START and finish with END."""
    pytest.importorskip("django", reason="pip install Django")
    corpus = translation.Corpus("en", "de", 100)
    size, pool = 16, translation.POOL
    found = []
    for step in range(pool):
        batch = corpus.batch(size, 0, step)
        assert (batch.target[:, 0] == bpe.START).all()
        ends = (batch.target == bpe.END).int().argmax(1)
        assert (batch.target.gather(1, ends.unsqueeze(1)) == bpe.END).all()
        found += [corpus.vocabulary.decode(row[1:]) for row in batch.target.tolist()]
    chosen = training.shuffled(len(corpus.targets), size * pool, 0, 0).tolist()
    assert sorted(found) == sorted(corpus.targets[i] for i in chosen)


# --- Baselines and judges ---


def test_frequencies_of_codes():
    train, validation = torch.tensor([[[0, 1]], [[0, 2]]]), torch.tensor([[[0, 0]]])
    expected = -(math.log(3 / 5) + math.log(1 / 5)) / 2  # once more than seen, by place
    assert dalle.marginal_nats(train, validation, 3) == pytest.approx(expected)


def test_nearest_neighbour_judge():
    """The distance to the nearest other text's picture less that to the nearest of the text's."""
    train = dalle.Captioned(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), ["zero", "one"])
    known = words.Words(train.captions)
    judge = dalle.make_judge(train, known, SimpleNamespace(decode=lambda codes: codes))
    text = dalle.texts_of(known, ["zero", "one"])
    drawn = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    assert judge(text, drawn).tolist() == pytest.approx([0.8, -0.4])


def test_bytes_and_their_pairs():
    length = gpt.LENGTH
    rows = gpt.windows(torch.arange(2 * length + 9))
    assert rows[:, 0].tolist() == [0, length]
    assert rows[:, -1].tolist() == [length, 2 * length]
    train, forwards, backwards = (gpt.to_bytes([x]) for x in ("abc" * 99, "abcabc", "cbacba"))
    assert gpt.bits_in_pairs(train, forwards) < 0.1
    assert gpt.bits_in_pairs(train, backwards) > 5
    assert gpt.bits_alone(train, forwards) == pytest.approx(-math.log2(100 / (99 * 3 + 256)))


def test_notes_that_sound_on():
    """Two of three notes are the one before; the first and the changed one are any."""
    train, validation = (np.array([[x] * 4 for x in row]) for row in ([6, 6, 6, 7], [6, 6, 8]))
    start = music_transformer.START
    chances = 2 / 3, 1 / 3 / (start - 1), 1 / start
    expected = -sum(map(math.log, chances)) / 3
    assert music_transformer.persistence_nll([train], [validation]) == pytest.approx(expected)


def test_words():
    known = words.Words(["red apple", "red heart", "apple pie", "red pie"])
    assert known.words[4:] == ["apple", "heart", "pie", "red"]
    assert known.encode("Red fox") == [bpe.START, 7, bpe.UNKNOWN, bpe.END]
    assert known.decode([bpe.START, 7, 6, bpe.END, 4]) == "red pie"
    assert known.batch(["red", "red apple pie"])[0].tolist() == [
        bpe.START,
        7,
        bpe.END,
        bpe.PAD,
        bpe.PAD,
    ]
    with pytest.raises(ValueError, match="a caption must hold at least one word"):
        known.encode(" ")
    uniform = words.Words(["a b", "b a"])
    chance = uniform.marginal_nll(["a b", "b a"], ["a x"])  # (2 + 1) of (6 + 6)
    assert chance == pytest.approx(math.log(4))
