"""Performances as the 388 events of Music Transformer, and melodies as one id per 100 ms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from .midi import Note

# NOTE_ON 0-127, NOTE_OFF 128-255, TIME_SHIFT 256-355 (10 ms to 1 s), VELOCITY 356-387 (32 bins)
NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY = 0, 128, 256, 356
EVENTS = 388
START, END = 388, 389  # not events: where a sequence starts, and where a piece is over
VOCABULARY = 390

STEPS_PER_SECOND = 100
LONGEST_SHIFT = 100
VELOCITY_WIDTH = 4  # ceil(127 / 32) velocities a bin
USUAL_VELOCITY = 100  # of notes before the first VELOCITY

MELODY_HOLD, MELODY_OFF = 128, 129  # the other ids are pitches that are struck
MELODY_VOCABULARY = 130
MELODY_STEP = 0.1


def to_step(seconds: float) -> int:
    """The nearest step of 10 ms; half a step goes up."""
    return int(seconds * STEPS_PER_SECOND + 0.5)


def encode_performance(notes: Iterable[Note]) -> list[int]:
    """The events of some notes (Huang et al. 2019, appendix A.2; note_seq's order).

    At each step of 10 ms: TIME_SHIFTs from the last step, then the NOTE_ONs and NOTE_OFFs in the
    order of the notes (by start, then pitch), a note's start before its end; a VELOCITY goes
    before a NOTE_ON whose bin is not the last one. Channels are not told apart. Every note lasts
    at least one step.
    """
    ordered = sorted(notes, key=lambda note: (note.start, note.pitch))
    moments = []
    for index, note in enumerate(ordered):
        start = to_step(note.start)
        moments.append((start, index, False))
        moments.append((max(to_step(note.end), start + 1), index, True))
    events, now, velocity_bin = [], 0, None
    for step, index, is_end in sorted(moments):
        while step > now:
            shift = min(step - now, LONGEST_SHIFT)
            events.append(TIME_SHIFT + shift - 1)
            now += shift
        note = ordered[index]
        if is_end:
            events.append(NOTE_OFF + note.pitch)
            continue
        if velocity_bin != (velocity_bin := (note.velocity - 1) // VELOCITY_WIDTH):
            events.append(VELOCITY + velocity_bin)
        events.append(NOTE_ON + note.pitch)
    return events


def decode_performance(events: Iterable[int]) -> list[Note]:
    """The notes that events mean, by start, then pitch. It accepts whatever a model samples: START
    is skipped, END ends, an end without a start is skipped, and a note without an end lasts to the
    last step. Of several notes of one pitch the oldest ends first.
    """
    notes, now, velocity = [], 0, USUAL_VELOCITY
    sounding: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def finish(pitch: int) -> None:
        velocity, start = sounding[pitch].pop(0)
        if now > start:
            begin, end = start / STEPS_PER_SECOND, now / STEPS_PER_SECOND
            notes.append(Note(pitch, velocity, begin, end))

    for event in events:
        if event == END:
            break
        if not 0 <= event < VOCABULARY:
            raise ValueError(f"events must lie in [0, {VOCABULARY}), got {event}")
        if event == START:
            continue
        if event >= VELOCITY:
            velocity = (event - VELOCITY) * VELOCITY_WIDTH + 1
        elif event >= TIME_SHIFT:
            now += event - TIME_SHIFT + 1
        elif event < NOTE_OFF:
            sounding[event - NOTE_ON].append((velocity, now))
        elif sounding[event - NOTE_OFF]:
            finish(event - NOTE_OFF)
    for pitch, open_notes in sounding.items():
        for _ in range(len(open_notes)):
            finish(pitch)
    return sorted(notes, key=lambda note: (note.start, note.pitch))


def encode_melody(notes: Iterable[Note], step: float = MELODY_STEP) -> list[int]:
    """The highest voice on a grid of `step` seconds: the pitch where a note is struck, MELODY_HOLD
    where nothing changes, MELODY_OFF where it falls silent."""
    ordered = sorted(notes, key=lambda note: (note.start, note.pitch))
    cells: list[Note | None] = []
    for note in ordered:
        first = round(note.start / step)
        stop = max(round(note.end / step), first + 1)
        cells += [None] * (stop - len(cells))
        for cell in range(first, stop):
            top = cells[cell]
            if top is None or note.pitch >= top.pitch:
                cells[cell] = note
    melody, before = [], None
    for note in cells:
        if note is before:
            melody.append(MELODY_HOLD)
        else:
            melody.append(MELODY_OFF if note is None else note.pitch)
        before = note
    return melody


def transformed(notes: Iterable[Note], *, semitones: int = 0, stretch: float = 1.0) -> list[Note]:
    """Transposed and slowed down (stretch > 1) notes; those that leave the pitches are dropped.
    The paper trains on -3 to 3 semitones and stretches 0.95, 0.975, 1, 1.025, 1.05."""
    if stretch <= 0:
        raise ValueError(f"stretch must be above 0, got {stretch}")
    return [
        replace(
            note,
            pitch=note.pitch + semitones,
            start=note.start * stretch,
            end=note.end * stretch,
        )
        for note in notes
        if 0 <= note.pitch + semitones <= 127
    ]
