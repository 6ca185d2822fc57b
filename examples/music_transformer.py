"""Music Transformer on four-voice chorales: relative attention, and the baseline it improves on.

Pieces are written as one token per voice and sixteenth, soprano to bass. Without --data they are
Bach's from music21; --data takes Jsb16thSeparated.json, the paper's set with the paper's split. The
figure is the negative log-likelihood of a note in nats, as in the paper. --compare also trains the
baseline (the same Transformer with sinusoids alone) for as many steps and demands that relative be
better. Samples are MIDI files: one from nothing, one that goes on from a validation piece.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attn_kernels.models import MusicTransformer, MusicTransformerConfig
from attn_kernels.models.midi import Note, write_midi

from .data import chorales
from .data.chorales import REST, VOICES
from .options import Options, common, parser
from .quality import Quality, main, report
from .training import Training, random_numbers, shuffled

LOWEST, HIGHEST = 30, 90  # MIDI pitches that tokens can name
REST_TOKEN = 0
START = HIGHEST - LOWEST + 2
VOCAB = START + 1
LENGTH = 1024  # tokens of a crop: 256 sixteenths, 16 bars
BATCH = 4
SEMITONES = 3  # by how much training pieces are transposed
SIXTEENTH = 0.15  # seconds
PRIME = 128  # tokens of a validation piece that a sample goes on from
KINDS = {
    "relative": {"relative": True},
    "absolute": {"relative": False},
}


def to_tokens(piece: np.ndarray, semitones: int = 0) -> Tensor:
    """A piece [steps, 4] as START and one token per note."""
    pitches = np.where(piece == REST, REST_TOKEN, piece + semitones - LOWEST + 1)
    if pitches.min() < 0 or pitches.max() >= START:
        raise ValueError(f"pitches must be in {LOWEST} to {HIGHEST}, got {piece.max() + semitones}")
    return torch.from_numpy(np.concatenate([[START], pitches.ravel()]))


def to_notes(tokens: list[int]) -> list[Note]:
    """Tokens as notes; equal neighbours in a voice are one note: the grid cannot tell."""
    notes = []
    for voice in range(VOICES):
        row = [*(tokens[voice::VOICES]), REST_TOKEN]
        start = 0
        for step in range(1, len(row)):
            if row[step] == row[start] and step < len(row) - 1:
                continue
            if row[start] not in (REST_TOKEN, START):
                pitch = row[start] + LOWEST - 1
                notes.append(Note(pitch, 80, start * SIXTEENTH, step * SIXTEENTH, voice))
            start = step
    return notes


def crop(piece: np.ndarray, dice: torch.Generator) -> Tensor:
    """LENGTH tokens from somewhere in the piece, transposed by chance."""
    steps = LENGTH // VOICES
    first = int(torch.randint(max(1, len(piece) - steps + 1), (), generator=dice))
    semitones = int(torch.randint(-SEMITONES, SEMITONES + 1, (), generator=dice))
    return to_tokens(piece[first : first + steps], semitones)


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows as one tensor [n, longest], and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def windows(pieces: list[np.ndarray]) -> list[Tensor]:
    """Every note of the pieces once, in pieces of up to LENGTH tokens, each behind a START."""
    steps = LENGTH // VOICES
    found = [
        to_tokens(piece[first : first + steps])
        for piece in pieces
        for first in range(0, len(piece), steps)
    ]
    return sorted(found, key=len)


def note_nll(model: MusicTransformer, rows: list[Tensor], device: str) -> float:
    """Mean negative log-likelihood of a note, in nats."""
    total = count = 0
    for first in range(0, len(rows), 2 * BATCH):
        tokens, lengths = padded(rows[first : first + 2 * BATCH])
        notes = int((lengths - 1).sum())
        total += float(model.loss(tokens.to(device), lengths=lengths.to(device))) * notes
        count += notes
    return total / count


def marginal_nll(train: list[np.ndarray], validation: list[np.ndarray]) -> float:
    """The same for a model that knows how often each voice sings each pitch, and nothing else."""
    total = count = 0
    for voice in range(VOICES):
        seen = Counter(int(x) for piece in train for x in piece[:, voice])
        notes = sum(seen.values()) + START  # every token is counted once more than seen
        for piece in validation:
            total -= sum(math.log((seen[int(x)] + 1) / notes) for x in piece[:, voice])
            count += len(piece)
    return total / count


def persistence_nll(train: list[np.ndarray], validation: list[np.ndarray]) -> float:
    """The same for who expects the note before to sound on, or else any other, with frequencies of
    each voice from the training pieces."""
    total = count = 0
    for voice in range(VOICES):
        rows = [piece[:, voice] for piece in train]
        same = sum(int((x[1:] == x[:-1]).sum()) for x in rows) / sum(len(x) - 1 for x in rows)
        for x in (piece[:, voice] for piece in validation):
            repeats = int((x[1:] == x[:-1]).sum())
            changes = len(x) - 1 - repeats
            total -= repeats * math.log(same) + changes * math.log((1 - same) / (START - 1))
            total += math.log(START)  # the first note: any
            count += len(x)
    return total / count


def train(
    options: Options, kind: str, found: chorales.Chorales, data: str, marginal: float
) -> Training:
    """The trained model of one kind."""
    torch.manual_seed(options.seed)
    config = MusicTransformerConfig(
        vocab=VOCAB, start=START, end=None, max_length=LENGTH + 1, dim=96, hidden=384, layers=3,
        heads=4, dropout=0.1, **KINDS[kind],
    )  # fmt: skip
    model = MusicTransformer(config, backend=options.backend)
    rows, device = windows(found.validation), options.device

    def batch(step: int) -> tuple[Tensor, Tensor]:
        dice = random_numbers(options.seed, step)
        chosen = shuffled(len(found.train), BATCH, options.seed, step).tolist()
        return padded([crop(found.train[i], dice) for i in chosen])

    return Training(
        options,
        kind,
        model,
        batch=batch,
        loss=lambda x: model.loss(x[0].to(device), lengths=x[1].to(device)),
        validate=lambda: note_nll(model, rows, device),
        config={"model": config.to_dict(), "data": data, "batch": BATCH},
        learning_rate=2e-3,
        validations=5,
        baseline=("pitch frequencies of each voice", marginal),
    ).run()


def save_samples(options: Options, model: MusicTransformer, piece: np.ndarray) -> None:
    """Two MIDI files."""
    generator = torch.Generator(options.device).manual_seed(options.seed)
    prime = to_tokens(piece)[: PRIME + 1].unsqueeze(0).to(options.device)
    for name, prompt in (("from_nothing", None), ("primed", prime)):
        steps = LENGTH // 2 - (0 if prompt is None else PRIME)
        tokens = model.generate(steps, prompt=prompt, temperature=0.9, generator=generator)
        write_midi(options.out / f"{name}.mid", to_notes(tokens[0, 1:].tolist()))


def run(arguments: list[str] | None = None) -> None:
    """Train, sample and report."""
    made = parser("music_transformer", __doc__, steps=400)
    made.add_argument("--data", type=Path, help="Jsb16thSeparated.json (default: music21's Bach)")
    made.add_argument("--compare", action="store_true", help="train the absolute baseline too")
    found = made.parse_args(arguments)
    options = common(found)
    pieces = chorales.load(found.data)
    data = "music21" if found.data is None else found.data.name
    marginal = marginal_nll(pieces.train, pieces.validation)
    persistence = persistence_nll(pieces.train, pieces.validation)
    relative = train(options, "relative", pieces, data, marginal)
    figure = ("nats per validation note", relative.validation_loss)
    qualities = [
        Quality(*figure, "pitch frequencies of each voice", marginal, stated=0.9),
        Quality(*figure, "the note before, or any other", persistence, stated=0.9),
    ]
    seconds = relative.seconds
    if found.compare:
        absolute = train(options, "absolute", pieces, data, marginal)
        baseline = ("absolute positions", absolute.validation_loss)
        qualities.append(Quality(*figure, *baseline, stated=absolute.validation_loss))
        seconds += absolute.seconds
    save_samples(options, relative.model, pieces.validation[0])
    report(options, qualities, seconds, data=data)


if __name__ == "__main__":
    main(run)
