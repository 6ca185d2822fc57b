"""Standard MIDI files, and performances as events."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_kernels.models.midi import MidiError, Note, midi_bytes, read_midi, write_midi
from attn_kernels.models.performance import (
    END,
    MELODY_HOLD,
    MELODY_OFF,
    START,
    decode_performance,
    encode_melody,
    encode_performance,
    transformed,
)


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def file_of(*tracks: str, kind: int = 1, division: int = 100) -> bytes:
    """A MIDI file of tracks in hexadecimal."""
    data = b"MThd" + number(6, 4) + number(kind, 2) + number(len(tracks), 2) + number(division, 2)
    for track in tracks:
        body = bytes.fromhex(track)
        data += b"MTrk" + number(len(body), 4) + body
    return data


END_OF_TRACK = "00 ff2f00"


def notes_of(*tracks: str, **options) -> list[tuple]:
    sustain = options.pop("sustain", True)
    notes = read_midi(file_of(*tracks, **options), sustain=sustain)
    return [(n.pitch, n.velocity, round(n.start, 6), round(n.end, 6), n.channel) for n in notes]


class TestReading:
    def test_running_status(self):
        """100 ticks a beat of half a second: 5 ms a tick."""
        track = "00 903c40  64 3c00  00 3e50  8148 803e00" + END_OF_TRACK
        assert notes_of(track) == [(60, 64, 0, 0.5, 0), (62, 80, 0.5, 1.5, 0)]

    def test_a_meta_event_ends_running_status(self):
        with pytest.raises(MidiError, match=r"track 0, byte 10: a status byte must come first"):
            notes_of("00 903c40  00 ff0100  05 3c00" + END_OF_TRACK)

    def test_tempo_changes_of_another_track_in_the_middle_of_a_note(self):
        tempo = "00 ff5103 0f4240  64 ff5103 07a120  32 ff5103 03d090" + END_OF_TRACK
        track = "32 934540  8148 834500" + END_OF_TRACK  # ticks 50 to 250
        # one second a beat to tick 100, half a second to tick 150, a quarter from there
        assert notes_of(tempo, track) == [(69, 64, 0.5, 0.5 + 0.5 + 0.25 + 0.25, 3)]

    def test_other_messages_are_skipped(self):
        track = (
            "00 ff0304 6e616d65  00 f003 010203  00 c005  00 e00040  00 a03c01  00 d010"
            "00 b00740  00 903c40  0a 803c40  00 f702 aabb" + END_OF_TRACK
        )
        assert notes_of(track) == [(60, 64, 0, 0.05, 0)]
        # so are chunks of other kinds, bytes behind the last track, and a longer header
        data = file_of(track)
        longer = data[:4] + number(8, 4) + data[8:14] + b"ab" + b"XYZW" + number(3, 4) + b"abc"
        assert len(read_midi(longer + data[14:] + b"more")) == 1

    def test_frames_as_time(self):
        """25 frames of 40 ticks a second: 1 ms a tick, whatever the tempo."""
        track = "00 ff5103 0f4240 00 903c40 8148 803c00" + END_OF_TRACK
        assert notes_of(track, division=(256 - 25) << 8 | 40) == [(60, 64, 0, 0.2, 0)]

    def test_sustain(self):
        """The pedal goes down at tick 10 and up at 100; one key is struck again meanwhile."""
        track = (
            "00 903c40  00 4040  0a b0407f  0a 803c00  00 804000  14 903c50  0a 803c00"
            "32 b04000  0a 904340  0a 804300" + END_OF_TRACK
        )
        assert notes_of(track) == [
            (60, 64, 0, 0.2, 0),
            (64, 64, 0, 0.5, 0),
            (60, 80, 0.2, 0.5, 0),
            (67, 64, 0.55, 0.6, 0),
        ]
        dry = notes_of(track, sustain=False)
        assert [note[3] for note in dry] == [0.1, 0.1, 0.25, 0.6]

    def test_what_is_not_ended_lasts_to_the_end(self):
        assert notes_of("00 903c40 64 ff2f00") == [(60, 64, 0, 0.5, 0)]

    def test_two_notes_of_one_key_end_in_order(self):
        track = "00 903c40 0a 3c50 0a 3c00 0a 3c00" + END_OF_TRACK
        assert notes_of(track) == [(60, 64, 0, 0.1, 0), (60, 80, 0.05, 0.15, 0)]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "byte 0: it must begin with MThd, got b''"),
            (b"RIFF1234", "byte 0: it must begin with MThd, got b'RIFF'"),
            (file_of()[:10], "byte 8: 6 more bytes must follow, got 2"),
            (file_of(END_OF_TRACK, kind=2), "header, byte 6: the format must be 0 or 1, got 2"),
            (file_of(END_OF_TRACK, division=0), "the division of time must not be 0"),
            (file_of("00 903c40")[:-1], "byte 22: 4 more bytes must follow, got 3"),
            (file_of("00 903c"), "track 0, byte 3: 1 more bytes must follow, got 0"),
            (file_of("00 90 3c 80"), r"data bytes must be below 128, got \[60, 128\]"),
            (file_of("00 3c40"), "a status byte must come first, got 0x3c"),
            (file_of("00 f1 00"), "status 0xf1 must not be in a file"),
            (file_of("8080808000"), "must have at most 4 bytes, got more"),
            (file_of("00 ff5102 0000"), "a tempo must be 3 bytes, not all 0, got 0000"),
            (file_of("00 ff5103 000000"), "a tempo must be 3 bytes, not all 0, got 000000"),
        ],
    )  # fmt: skip
    def test_malformed_files(self, data, message):
        with pytest.raises(MidiError, match=message):
            read_midi(data)

    def test_a_missing_track(self):
        data = bytearray(file_of(END_OF_TRACK))
        data[11] = 2
        with pytest.raises(MidiError, match="there must be 2 tracks, got 1"):
            read_midi(bytes(data))

    @given(st.data())
    @settings(max_examples=200)
    def test_damaged_files_raise_nothing_else(self, data):
        """Any byte may be another, and the file may end anywhere."""
        good = bytearray(midi_bytes([Note(60, 64, 0, 1), Note(64, 1, 0.5, 400), Note(1, 9, 2, 3)]))
        for _ in range(data.draw(st.integers(1, 3))):
            good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(MidiError):
            read_midi(bytes(good[: data.draw(st.integers(0, len(good)))]))


@st.composite
def performances(draw, gap: int = 1) -> list[Note]:
    """Notes on steps of 10 ms, those of one pitch not overlapping, at velocities that bins keep."""
    notes = []
    for pitch in draw(st.sets(st.integers(0, 127), max_size=4)):
        step = draw(st.integers(0, 250))
        for _ in range(draw(st.integers(1, 4))):
            stop = step + draw(st.integers(1, 250))
            velocity = draw(st.integers(0, 31)) * 4 + 1
            notes.append(Note(pitch, velocity, step / 100, stop / 100))
            step = stop + draw(st.integers(gap, 250))
    return sorted(notes, key=lambda note: (note.start, note.pitch))


@given(performances())
@settings(max_examples=50)
def test_files_keep_notes(notes):
    found = read_midi(midi_bytes(notes, ticks_per_beat=500))  # 1 ms a tick
    assert [(n.pitch, n.velocity) for n in found] == [(n.pitch, n.velocity) for n in notes]
    for ours, theirs in zip(found, notes, strict=True):
        assert (ours.start, ours.end) == pytest.approx((theirs.start, theirs.end), abs=1e-9)


def test_writing(tmp_path):
    notes = [Note(60, 64, 0, 0.5), Note(60, 64, 0.5, 1.0), Note(72, 100, 0, 1.0, channel=5)]
    write_midi(tmp_path / "song.mid", notes, tempo=1_000_000)
    assert read_midi(tmp_path / "song.mid") == [notes[0], notes[2], notes[1]]
    short = [Note(60, 64, 0.5, 0.5), Note(62, 64, 1, 2)]  # one tick long, not to the end
    assert read_midi(midi_bytes(short, ticks_per_beat=500))[0] == Note(60, 64, 0.5, 0.501)
    with pytest.raises(ValueError, match="ticks_per_beat must be in 1 to 32767, got 0"):
        midi_bytes(notes, ticks_per_beat=0)
    with pytest.raises(ValueError, match="Note: pitch must be in 0 to 127, got 128"):
        Note(128, 64, 0, 1)
    with pytest.raises(ValueError, match="Note: 0 <= start <= end must hold, got 2, 1"):
        Note(60, 64, 2, 1)


class TestPerformance:
    def test_the_order_of_events(self):
        """A chord of two velocities; of one step's events, the older note's come first."""
        notes = [
            Note(64, 64, 0.0, 1.5),
            Note(60, 64, 0.0, 0.5),
            Note(62, 100, 0.5, 0.504),  # 0 steps long: it gets one
        ]
        assert encode_performance(notes) == [
            356 + 15, 60, 64,  # velocity 64 is bin 15, and stays it
            256 + 49, 128 + 60, 356 + 24, 62,  # 0.5 s
            256 + 0, 128 + 62,  # 10 ms
            256 + 98, 128 + 64,  # 0.99 s
        ]  # fmt: skip

    def test_long_silence(self):
        assert encode_performance([Note(1, 1, 2.35, 4.35)]) == [
            355, 355, 256 + 34, 356, 1, 355, 355, 129,
        ]  # fmt: skip

    @given(performances())
    @settings(max_examples=100)
    def test_events_keep_performances(self, notes):
        events = encode_performance(notes)
        assert decode_performance(events) == notes
        assert all(0 <= event < 388 for event in events)

    def test_whatever_is_sampled_is_decoded(self):
        on, off, shift, soft = 0, 128, 256, 356
        events = [START, off + 5, on + 60, soft, on + 60, shift + 44, off + 60, off + 7, on + 61]
        events += [on + 63, off + 63, shift, END, on + 62, shift]
        assert decode_performance(events) == [
            Note(60, 100, 0, 0.45),  # the older one
            Note(60, 1, 0, 0.46),
            Note(61, 1, 0.45, 0.46),
        ]
        with pytest.raises(ValueError, match=r"events must lie in \[0, 390\), got 390"):
            decode_performance([390])

    def test_melody(self):
        """The highest voice: a held note under a higher one comes back when that ends."""
        notes = [Note(60, 64, 0.0, 0.6), Note(72, 64, 0.2, 0.4), Note(50, 64, 0.8, 1.0)]
        melody = [60, MELODY_HOLD, 72, MELODY_HOLD, 60, MELODY_HOLD, MELODY_OFF, MELODY_HOLD, 50]
        assert encode_melody(notes) == [*melody, MELODY_HOLD]
        assert encode_melody([]) == []

    def test_transformed(self):
        notes = [Note(126, 64, 1, 2), Note(60, 64, 0, 1)]
        assert transformed(notes, semitones=2, stretch=0.5) == [Note(62, 64, 0, 0.5)]
        with pytest.raises(ValueError, match="stretch must be above 0, got 0"):
            transformed(notes, stretch=0)
