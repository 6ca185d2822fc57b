"""Show, Attend and Tell names emoji, or says which two digits are where.

The pictures are emoji with their Unicode names where the font is found (--font), else pairs of
handwritten digits with captions like "a three above a seven" (--data chooses). The figure is the
negative log-likelihood of a validation word in nats, the end of a caption counted, words that were
not trained on left out. The baselines know how often each word occurs, or are the model itself with
another picture than the caption's.
attention_*.png show where the model looked for each word, captions.tsv has all captions.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_kernels.models import CaptionConfig, CaptionModel

from . import pictures
from .bpe import PAD, START, UNKNOWN
from .data import captions
from .data.emoji import Captioned
from .options import Options, common, parser
from .quality import NO_BACKEND, Quality, main, report
from .training import Training, evaluating, shuffled
from .words import Words

SIDE = 32
BATCH = 32
COVERAGE = 0.01  # 1, as in the paper, is too much for captions shorter than the grid has cells
SHOWN = 6
STATED = {"emoji": 3.35, "digits": 0.1}  # nats per word


def scaled(images: Tensor) -> Tensor:
    """uint8 [n, side, side, 3] as [n, 3, side, side] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def word_nll(model: CaptionModel, images: Tensor, words: Tensor) -> float:
    """Nats per known word."""
    logits = model(images, words[:, :-1])
    targets = words[:, 1:].masked_fill(words[:, 1:] == UNKNOWN, PAD)
    return float(F.cross_entropy(logits.mT, targets, ignore_index=PAD))


def loss_per_word(model: CaptionModel, images: Tensor, words: Tensor) -> Tensor:
    """The model's loss, which is per caption, in the unit of word_nll."""
    return model.loss(images, words) * len(words) / (words[:, 1:] != PAD).sum()


def save_samples(options: Options, model: CaptionModel, shown: Captioned, words: Words) -> float:
    """Captions of the validation pictures, some with attention maps; the share that is exact."""
    images = scaled(shown.images).to(options.device)
    ids = model.caption(images, beams=4)
    found = [words.decode(row) for row in ids.tolist()]
    for index in range(SHOWN):
        said = found[index].split() or ["(nothing)"]
        read = torch.cat([ids.new_full((1, 1), START), ids[index : index + 1, :-1]], 1)
        maps = model.attention_maps(images[index : index + 1], read)[0, : len(said)].cpu()
        path = options.out / f"attention_{index}.png"
        pictures.save_attention(path, shown.images[index], said, maps)
        print(f"  {shown.captions[index]!r}: the model says {found[index]!r}")
    rows = [f"{a}\t{b}" for a, b in zip(shown.captions, found, strict=True)]
    text = "\n".join(["caption\tmodel", *rows]) + "\n"
    (options.out / "captions.tsv").write_text(text, encoding="utf-8")
    return sum(a == b for a, b in zip(found, shown.captions, strict=True)) / len(found)


def run(arguments: list[str] | None = None) -> None:
    """Train, caption and report."""
    made = parser("captioning", __doc__, steps=1000)
    made.add_argument("--data", choices=captions.KINDS, help="default: emoji where there are some")
    made.add_argument("--font", type=Path, help="NotoColorEmoji.ttf")
    given = made.parse_args(arguments)
    options = common(given)
    kind, train, validation = captions.load(given.data, SIDE, given.font)
    words, device = Words(train.captions), options.device
    config = CaptionConfig.preset(
        "small", vocab=len(words), image=(SIDE, SIDE), dropout=0.3, coverage=COVERAGE
    )
    model = CaptionModel(config, backend=options.backend)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = shuffled(len(train.captions), BATCH, options.seed, step)
        texts = [train.captions[i] for i in chosen.tolist()]
        return scaled(train.images[chosen]), words.batch(texts)

    checked = scaled(validation.images).to(device), words.batch(validation.captions).to(device)
    marginal = words.marginal_nll(train.captions, validation.captions)
    trained = Training(
        options,
        "captioning",
        model,
        batch=batch,
        loss=lambda x: loss_per_word(model, x[0].to(device), x[1].to(device)),
        validate=lambda: word_nll(model, *checked),
        config={"model": config.to_dict(), "data": kind, "batch": BATCH},
        learning_rate=2e-3,
        weight_decay=0.01,
    ).run()
    with evaluating(model):
        other = word_nll(model, checked[0].roll(1, 0), checked[1])
    model.eval()
    exact = save_samples(options, model, validation, words)
    name, value = "nats per validation word", trained.validation_loss
    report(
        options,
        [
            Quality(name, value, "frequencies of words", marginal, STATED[kind]),
            Quality(name, value, "with another picture", other, STATED[kind]),
        ],
        trained.seconds,
        data=kind,
        exact_captions=exact,
        backend=NO_BACKEND,
    )


if __name__ == "__main__":
    main(run)
