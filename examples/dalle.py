"""DALL-E in two stages: a discrete VAE turns pictures into codes, a transformer writes codes.

The pictures are handwritten digits with the name of their class, or (--data emoji) emoji with their
Unicode names. Three figures on validation pictures: the squared error of pictures that went through
codes and back, against the mean picture; nats per code given the text, against the frequency of
codes; and, for digits, how many of the drawn ones a nearest-neighbour judge takes for what the text
says, or, for emoji, nats per code once more, against the model itself with another picture's text.
reconstructed.png shows pictures above their reconstructions; samples.png has a row of drawings for
each text, for digits the judge's best first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_kernels.models import Dalle, DalleConfig, DiscreteVae, DiscreteVaeConfig

from . import pictures
from .bpe import PAD
from .data import digits, emoji
from .options import Options, common, parser
from .quality import Quality, main, report
from .training import Training, shuffled
from .words import Words

KINDS = ("digits", "emoji")
SIDE = {"digits": digits.SIDE, "emoji": 32}
PRESET = {"digits": "digits", "emoji": "small"}
DROPOUT = {"digits": 0.1, "emoji": 0.3}
STATED = {  # of the error, and of nats per code
    "digits": (0.045, 1.5),
    "emoji": (0.025, 1.7),
}
JUDGED = 0.7  # of digits
BATCH = 64
COLDEST = 1 / 16  # temperature of the relaxation at the end
CANDIDATES, SHOWN = 32, 12  # drawings for a text, and how many of them are shown


class Captioned(NamedTuple):
    """images: float [n, channels, side, side] in 0..1; captions: one for each."""

    images: Tensor
    captions: list[str]


def load(kind: str, font: Path | None) -> list[Captioned]:
    """Training and validation pictures."""
    if kind == "digits":
        parts = digits.load()
        return [
            Captioned(
                part.images.unsqueeze(1) / (digits.LEVELS - 1),
                [digits.NAMES[i] for i in part.labels.tolist()],
            )
            for part in parts
        ]
    parts = emoji.load(SIDE[kind], font)
    return [Captioned(x.images.permute(0, 3, 1, 2) / 255, x.captions) for x in parts]


def with_mirrored(given: Captioned) -> Captioned:
    """Also every picture mirrored, unless its caption tells left from right."""
    either = [
        i
        for i, caption in enumerate(given.captions)
        if not any(word.startswith(("left", "right")) for word in caption.split())
    ]
    return Captioned(
        torch.cat([given.images, given.images[either].flip(-1)]),
        given.captions + [given.captions[i] for i in either],
    )


def texts_of(words: Words, captions: list[str]) -> Tensor:
    """Ids of the words alone, [n, longest]."""
    rows = [torch.tensor(words.encode(caption)[1:-1]) for caption in captions]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def train_vae(options: Options, kind: str, train: Captioned, validation: Captioned) -> Training:
    """Stage 1."""
    config = DiscreteVaeConfig.preset(PRESET[kind])
    model, device = DiscreteVae(config, options.backend), options.device

    def temperature(step: int) -> float:
        return max(COLDEST, math.exp(math.log(COLDEST) * step / (0.8 * options.steps)))

    def batch(step: int) -> tuple[Tensor, float]:
        chosen = shuffled(len(train.captions), BATCH, options.seed, step)
        return train.images[chosen], temperature(step)

    checked = validation.images.to(device)
    return Training(
        options,
        "vae",
        model,
        batch=batch,
        loss=lambda x: model.loss(x[0].to(device), x[1]),
        validate=lambda: F.mse_loss(model.decode(model.encode(checked)), checked),
        config={"model": config.to_dict(), "data": kind, "batch": BATCH},
        learning_rate=8e-3,
    ).run()


def encoded(vae: DiscreteVae, images: Tensor, device: str) -> Tensor:
    """Codes of all pictures."""
    return torch.cat([vae.encode(part.to(device)).cpu() for part in images.split(BATCH)])


def image_nats(model: Dalle, text: Tensor, codes: Tensor) -> float:
    """Nats per code, given the text."""
    return float(F.cross_entropy(model(text, codes)[1].movedim(-1, 1), codes))


def marginal_nats(train: Tensor, validation: Tensor, codes: int) -> float:
    """Nats per code for who knows how often each occurs at each place (once more than seen)."""
    counts = F.one_hot(train.flatten(1), codes).sum(0) + 1.0  # [places, codes]
    chances = counts / counts.sum(1, keepdim=True)
    found = chances.expand(len(validation), -1, -1).gather(2, validation.flatten(1).unsqueeze(2))
    return float(-found.log().mean())


def train_dalle(
    options: Options, kind: str, words: Words, train: Captioned, validation: Captioned,
    vae: DiscreteVae,
) -> tuple[Training, float, float]:  # fmt: skip
    """Stage 2, nats per code of the frequencies of codes, and of the model with other texts."""
    device = options.device
    if kind == "emoji":
        train = with_mirrored(train)
    codes, checked = (encoded(vae, x.images, device) for x in (train, validation))
    longest = max(len(x.split()) for x in train.captions + validation.captions)
    config = DalleConfig.preset(
        PRESET[kind],
        text_vocab=len(words),
        text_length=longest + 1,
        codes=vae.config.codes,
        dropout=DROPOUT[kind],
    )
    model = Dalle(config, backend=options.backend)
    baseline = marginal_nats(codes, checked, vae.config.codes)
    texts = texts_of(words, validation.captions).to(device)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = shuffled(len(train.captions), BATCH, options.seed, step)
        return texts_of(words, [train.captions[i] for i in chosen.tolist()]), codes[chosen]

    trained = Training(
        options,
        "dalle",
        model,
        batch=batch,
        loss=lambda x: model.loss(x[0].to(device), x[1].to(device)),
        validate=lambda: image_nats(model, texts, checked.to(device)),
        config={"model": config.to_dict(), "data": kind, "batch": BATCH},
        learning_rate=2e-3,
        weight_decay=0.01,
        baseline=("frequencies of codes", baseline),
    ).run()
    with torch.no_grad():
        other = image_nats(model, texts.roll(1, 0), checked.to(device))
    return trained, baseline, other


def make_judge(train: Captioned, words: Words, vae: DiscreteVae) -> Callable[..., Tensor]:
    """Scores of drawings, for re-ranking: how much nearer the nearest training digit of the text is
    than the nearest other one. Positive: the judge takes the drawing for what the text says."""
    known = train.images.flatten(1)
    names = texts_of(words, train.captions)[:, 0]

    def judge(text: Tensor, codes: Tensor) -> Tensor:
        apart = torch.cdist(vae.decode(codes).cpu().flatten(1), known)
        same = text[:, :1].cpu() == names
        nearest = [apart.masked_fill(x, torch.inf).amin(1) for x in (same, ~same)]
        return nearest[0] - nearest[1]

    return judge


def as_bytes(images: Tensor) -> Tensor:
    """Pictures for save_grid: digits dark on white."""
    if images.shape[1] == 1:
        return ((1 - images.squeeze(1)) * 255).round().to(torch.uint8)
    return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


def draw(
    options: Options, model: Dalle, vae: DiscreteVae, text: Tensor, judge: Callable[..., Tensor]
) -> Tensor:
    """Save samples.png, best first; all scores, [texts, CANDIDATES]."""
    dice = torch.Generator(options.device).manual_seed(options.seed)
    codes, scores = model.generate_ranked(
        text.to(options.device), CANDIDATES, judge, temperature=0.9, generator=dice
    )
    images = vae.decode(codes[:, :SHOWN].flatten(0, 1)).cpu()
    pictures.save_grid(options.out / "samples.png", as_bytes(images), SHOWN, 32 // images.shape[-1])
    return scores


def run(arguments: list[str] | None = None) -> None:
    """Train both stages, draw and report."""
    made = parser("dalle", __doc__, steps=800)
    made.add_argument("--data", choices=KINDS, default=KINDS[0])
    made.add_argument("--font", type=Path, help="NotoColorEmoji.ttf")
    given = made.parse_args(arguments)
    options, kind = common(given), given.data
    train, validation = load(kind, given.font)
    words = Words(train.captions)
    first = train_vae(options, kind, train, validation)
    vae = first.model
    second, marginal, other = train_dalle(options, kind, words, train, validation, vae)

    shown = validation.images[:16].to(options.device)
    painted = torch.cat([shown, vae.decode(vae.encode(shown))]).cpu()
    scale = 32 // SIDE[kind]
    pictures.save_grid(options.out / "reconstructed.png", as_bytes(painted), 16, scale)
    mean_error = float((validation.images - train.images.mean(0)).square().mean())
    stated_error, stated_nats = STATED[kind]
    nats = ("nats per code", second.validation_loss)
    qualities = [
        Quality(
            "squared error of a pixel", first.validation_loss, "the mean picture", mean_error,
            stated_error,
        ),
        Quality(*nats, "frequencies of codes", marginal, stated_nats),
    ]  # fmt: skip
    if kind == "digits":
        judge = make_judge(train, words, vae)
        scores = draw(options, second.model, vae, texts_of(words, list(digits.NAMES)), judge)
        right = float((scores > 0).float().mean())
        baseline = ("drawings of another text", 1 / digits.CLASSES)
        qualities.append(
            Quality("drawings judged right", right, *baseline, JUDGED, higher_is_better=True)
        )
    else:
        qualities.append(Quality(*nats, "with another text", other, stated_nats))
        texts = texts_of(words, validation.captions[:16])
        draw(options, second.model, vae, texts, lambda text, codes: torch.zeros(len(text)))
    report(options, qualities, first.seconds + second.seconds, data=kind)


if __name__ == "__main__":
    main(run)
