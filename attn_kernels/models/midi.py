"""Standard MIDI files: notes out of a file, and notes into one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TEMPO = 500_000  # microseconds per quarter note where a file names none
NOTE_OFF, NOTE_ON, CONTROL = 0x80, 0x90, 0xB0
SYSEX, SYSEX_MORE, META = 0xF0, 0xF7, 0xFF
META_END, META_TEMPO = 0x2F, 0x51
SUSTAIN = 64
DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}


class MidiError(ValueError):
    """The bytes are not a standard MIDI file."""


@dataclass(frozen=True)
class Note:
    """One note: pitch 0 to 127, velocity 1 to 127, start and end in seconds, channel 0 to 15."""

    pitch: int
    velocity: int
    start: float
    end: float
    channel: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("pitch", 0, 127), ("velocity", 1, 127), ("channel", 0, 15)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"Note: {name} must be in {least} to {most}, got {value}")
        if not 0 <= self.start <= self.end:
            raise ValueError(f"Note: 0 <= start <= end must hold, got {self.start}, {self.end}")


class Event(NamedTuple):
    """Something at a tick: a channel message, or a tempo (status META, microseconds in first)."""

    tick: int
    track: int
    status: int
    first: int
    second: int


class Cursor:
    """Reads numbers off bytes, and says where they end too early."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.place = data, name, 0

    def __bool__(self) -> bool:
        return self.place < len(self.data)

    def fail(self, problem: str) -> MidiError:
        return MidiError(f"{self.name}, byte {self.place}: {problem}")

    def take(self, count: int) -> bytes:
        if self.place + count > len(self.data):
            left = len(self.data) - self.place
            raise self.fail(f"{count} more bytes must follow, got {left}")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, count: int) -> int:
        """Big-endian, of `count` bytes."""
        return int.from_bytes(self.take(count), "big")

    def variable(self) -> int:
        """A variable-length quantity: 7 bits a byte, at most 4 bytes, all but the last >= 128."""
        value = 0
        for _ in range(4):
            byte = self.number(1)
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value
        raise self.fail("a variable-length quantity must have at most 4 bytes, got more")


def read_midi(source: str | Path | bytes, *, sustain: bool = True) -> list[Note]:
    """The notes of a standard MIDI file of format 0 or 1, by start, then pitch.

    Running status, tempo changes (of any track) and frame-based time are understood. All channels
    are read, drums included. A note ends by a message of its own track and channel, the oldest of
    its pitch first; one that nothing ends lasts to the end of the file.

    Args:
        source: a path, or the bytes of a file.
        sustain: a note released while the pedal (controller 64) is down lasts until the pedal
            comes up or its key is struck again.
    Raises:
        MidiError: with the place and the rule that the file breaks.
    """
    data = bytes(source) if isinstance(source, (bytes, bytearray)) else Path(source).read_bytes()
    division, chunks = read_chunks(data)
    events = [event for track, chunk in enumerate(chunks) for event in read_track(chunk, track)]
    events.sort(key=lambda event: event.tick)
    return sound(events, division, sustain)


def read_chunks(data: bytes) -> tuple[int, list[bytes]]:
    """The header's division of time, and the bytes of each track."""
    cursor = Cursor(data, "MIDI file")
    if data[:4] != b"MThd":
        raise cursor.fail(f"it must begin with MThd, got {data[:4]!r}")
    cursor.take(4)
    header = Cursor(cursor.take(cursor.number(4)), "MIDI header")
    kind, count, division = (header.number(2) for _ in range(3))
    if kind not in (0, 1):
        raise header.fail(f"the format must be 0 or 1, got {kind}")
    if division == 0 or (division >= 0x8000 and division & 0xFF == 0):
        raise header.fail(f"the division of time must not be 0, got {division:#06x}")
    chunks = []
    while cursor and len(chunks) < count:
        name = cursor.take(4)
        body = cursor.take(cursor.number(4))
        if name == b"MTrk":  # other chunks are to be skipped
            chunks.append(body)
    if len(chunks) < count:
        raise cursor.fail(f"there must be {count} tracks, got {len(chunks)}")
    return division, chunks


def read_track(data: bytes, track: int) -> list[Event]:
    """A track's channel messages and tempos; other meta events and system messages are skipped."""
    cursor, events, tick, running = Cursor(data, f"MIDI track {track}"), [], 0, None
    while cursor:
        tick += cursor.variable()
        status = cursor.number(1)
        if status in (META, SYSEX, SYSEX_MORE):
            kind = cursor.number(1) if status == META else None
            body = cursor.take(cursor.variable())
            running = None
            if kind == META_END:
                events.append(Event(tick, track, META, 0, 0))
                break
            if kind == META_TEMPO:
                if len(body) != 3 or not any(body):
                    raise cursor.fail(f"a tempo must be 3 bytes, not all 0, got {body.hex()}")
                events.append(Event(tick, track, META, int.from_bytes(body, "big"), 0))
            continue
        if status >= 0x80:
            if status > 0xEF:
                raise cursor.fail(f"status {status:#x} must not be in a file")
            running = status
            values = [cursor.number(1) for _ in range(DATA_BYTES[status & 0xF0])]
        elif running is None:
            raise cursor.fail(f"a status byte must come first, got {status:#04x}")
        else:
            values = [status] + [cursor.number(1) for _ in range(DATA_BYTES[running & 0xF0] - 1)]
        if max(values) >= 0x80:
            raise cursor.fail(f"data bytes must be below 128, got {values}")
        events.append(Event(tick, track, running, values[0], values[-1]))
    return events


def sound(events: Iterable[Event], division: int, sustain: bool) -> list[Note]:
    """What the events of all tracks, in order of time, sound like."""
    frames = 256 - (division >> 8) if division >= 0x8000 else 0
    frame_rate = 30_000 / 1001 if frames == 29 else frames
    per_tick = 1 / (frame_rate * (division & 0xFF)) if frames else TEMPO / 1e6 / division
    notes: list[Note] = []
    sounding: dict[tuple[int, int, int], list[tuple[int, float]]] = defaultdict(list)
    held: dict[tuple[int, int], set[tuple[int, int, int]]] = defaultdict(set)
    pedal: set[tuple[int, int]] = set()
    now, last_tick = 0.0, 0

    def finish(key: tuple[int, int, int], count: int | None = None) -> None:
        """End the oldest notes of a key."""
        for velocity, start in sounding[key][:count]:
            notes.append(Note(key[2], velocity, start, now, key[1]))
        del sounding[key][:count]

    for tick, track, status, first, second in events:
        now += (tick - last_tick) * per_tick
        last_tick = tick
        if status == META:
            if first and not frames:
                per_tick = first / 1e6 / division
            continue
        kind, voice = status & 0xF0, (track, status & 0x0F)
        key = (*voice, first)
        if kind == NOTE_ON and second > 0:
            if key in held[voice]:
                finish(key)
                held[voice].discard(key)
            sounding[key].append((second, now))
        elif kind in (NOTE_ON, NOTE_OFF):
            if voice in pedal:
                held[voice].add(key)
            else:
                finish(key, 1)
        elif kind == CONTROL and first == SUSTAIN and sustain:
            if second >= 64:
                pedal.add(voice)
            else:
                pedal.discard(voice)
                for released in held.pop(voice, ()):
                    finish(released)
    for key in list(sounding):
        finish(key)
    return sorted(notes, key=lambda note: (note.start, note.pitch, note.end, note.channel))


def write_midi(
    path: str | Path, notes: Iterable[Note], *, ticks_per_beat: int = 480, tempo: int = TEMPO
) -> None:
    """Write a standard MIDI file of format 0; times are rounded to ticks.

    Args:
        ticks_per_beat: of a quarter note.
        tempo: microseconds per quarter note, the same throughout.
    """
    Path(path).write_bytes(midi_bytes(notes, ticks_per_beat=ticks_per_beat, tempo=tempo))


def midi_bytes(notes: Iterable[Note], *, ticks_per_beat: int = 480, tempo: int = TEMPO) -> bytes:
    """The bytes that write_midi writes."""
    if not 1 <= ticks_per_beat < 0x8000:
        raise ValueError(f"ticks_per_beat must be in 1 to 32767, got {ticks_per_beat}")
    if not 1 <= tempo < 1 << 24:
        raise ValueError(f"tempo must be in 1 to 16777215, got {tempo}")
    per_second = ticks_per_beat * 1e6 / tempo
    messages = []
    for note in notes:
        start, end = round(note.start * per_second), round(note.end * per_second)
        # a note must not end before it starts; of one tick's messages, ends come first
        messages.append((start, True, note.channel, note.pitch, note.velocity))
        messages.append((max(end, start + 1), False, note.channel, note.pitch, 0))
    track = bytearray(b"\0\xff\x51\x03" + tempo.to_bytes(3, "big"))
    last_tick, running = 0, None
    for tick, _, channel, pitch, velocity in sorted(messages):
        track += variable_bytes(tick - last_tick)
        last_tick = tick
        if running != NOTE_ON | channel:
            running = NOTE_ON | channel
            track.append(running)
        track += bytes((pitch, velocity))  # velocity 0 ends a note
    track += b"\0\xff\x2f\0"
    header = b"".join(number.to_bytes(2, "big") for number in (0, 1, ticks_per_beat))
    return chunk_bytes(b"MThd", header) + chunk_bytes(b"MTrk", bytes(track))


def chunk_bytes(name: bytes, body: bytes) -> bytes:
    return name + len(body).to_bytes(4, "big") + body


def variable_bytes(value: int) -> bytes:
    """A variable-length quantity."""
    if not 0 <= value < 1 << 28:
        raise ValueError(f"a span of time must be below 2^28 ticks, got {value}")
    found = bytes((value & 0x7F,))
    while value := value >> 7:
        found = bytes((value & 0x7F | 0x80,)) + found
    return found
