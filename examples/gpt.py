"""A small GPT learns to write Python's language reference, byte by byte.

The text comes with Python itself. The figure is bits per byte on texts that were not trained on;
the baselines know how often each byte occurs, alone and behind the one before it. sample.txt goes
on from a prompt.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attn_kernels.models import GPT, GPTConfig

from .data import manual
from .options import Options, common, parser
from .quality import Quality, main, report
from .training import Training, random_numbers

LENGTH = 128
BATCH = 8
BYTES = 256
SAMPLE = 600
PROMPT = "If the object "


def to_bytes(texts: list[str]) -> Tensor:
    """All texts, one after the other."""
    return torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8).long()


def pair_counts(text: Tensor) -> Tensor:
    """How often byte b follows byte a: [BYTES, BYTES]."""
    pairs = text[:-1] * BYTES + text[1:]
    return torch.bincount(pairs, minlength=BYTES * BYTES).view(BYTES, BYTES).double()


def bits_alone(train: Tensor, validation: Tensor) -> float:
    """Bits per byte for who knows the frequency of bytes (each counted once more than seen)."""
    counts = torch.bincount(train, minlength=BYTES).double() + 1
    return float(-(counts / counts.sum()).log2()[validation[1:]].mean())


def bits_in_pairs(train: Tensor, validation: Tensor) -> float:
    """The same for who knows the frequency of pairs, mixed with that of bytes."""
    alone = torch.bincount(train, minlength=BYTES).double() + 1
    counts = pair_counts(train) + alone / alone.sum()
    chances = counts / counts.sum(1, keepdim=True)
    return float(-chances.log2()[validation[:-1], validation[1:]].mean())


def windows(text: Tensor) -> Tensor:
    """The text in rows of LENGTH + 1 bytes, of which neighbours share one; the last bit is cut."""
    return text.unfold(0, LENGTH + 1, LENGTH)


def bits_per_byte(model: GPT, rows: Tensor, device: str) -> float:
    """The model's figure."""
    losses = [float(model.loss(part.to(device))) * len(part) for part in rows.split(BATCH)]
    return sum(losses) / len(rows) / math.log(2)


def save_sample(options: Options, model: GPT) -> None:
    """A text that goes on from PROMPT, a window at a time."""
    generator = torch.Generator(options.device).manual_seed(options.seed)
    text = to_bytes([PROMPT]).unsqueeze(0).to(options.device)
    while text.shape[1] < SAMPLE:
        seen = text[:, -LENGTH // 2 :]
        steps = min(LENGTH // 2, SAMPLE - text.shape[1])
        new = model.generate(seen, steps, temperature=0.8, generator=generator)
        text = torch.cat([text, new[:, seen.shape[1] :]], 1)
    found = bytes(text[0].tolist()).decode(errors="replace")
    (options.out / "sample.txt").write_text(found, encoding="utf-8")
    print(f"{found[:300]} ...")


def run(arguments: list[str] | None = None) -> None:
    """Train, sample and report."""
    options = common(parser("gpt", __doc__, steps=900).parse_args(arguments))
    train, validation = map(to_bytes, manual.load())
    rows, device = windows(validation), options.device
    config = GPTConfig.preset("small", max_length=LENGTH, dropout=0.0)
    model = GPT(config, backend=options.backend)

    def batch(step: int) -> Tensor:
        dice = random_numbers(options.seed, step)
        first = torch.randint(len(train) - LENGTH, (BATCH,), generator=dice)
        return torch.stack([train[i : i + LENGTH + 1] for i in first.tolist()])

    alone, pairs = bits_alone(train, validation), bits_in_pairs(train, validation)
    trained = Training(
        options,
        "gpt",
        model,
        batch=batch,
        loss=lambda tokens: model.loss(tokens.to(device)),
        validate=lambda: bits_per_byte(model, rows, device) * math.log(2),
        config={"model": config.to_dict(), "batch": BATCH},
        learning_rate=3e-3,
        weight_decay=0.1,
        validations=5,
        baseline=("pairs of bytes", pairs * math.log(2)),
    ).run()
    save_sample(options, model)
    bits = trained.validation_loss / math.log(2)
    figures = (("frequency of bytes", alone), ("frequency of pairs of bytes", pairs))
    report(
        options, [Quality("bits per byte", bits, *figure, stated=2.9) for figure in figures],
        trained.seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
