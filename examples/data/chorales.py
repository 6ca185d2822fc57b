"""Four-voice chorales on a grid of sixteenths: Bach's from music21, or the JSB file by its path.

A piece is an int64 array [steps, 4], soprano to bass: MIDI pitch, or REST.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from ..progress import Progress, announce
from .source import MissingData, package_folder, split_by_content

REST = -1
VOICES = 4
STEPS_PER_QUARTER = 4
SEMITONES = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))


class Chorales(NamedTuple):
    """Pieces to train on and to validate with."""

    train: list[np.ndarray]
    validation: list[np.ndarray]


def pitch(note: ElementTree.Element) -> int:
    """MIDI pitch of a MusicXML note, or REST."""
    found = note.find("pitch")
    if found is None:
        return REST
    semitone = SEMITONES[found.findtext("step")] + int(float(found.findtext("alter", "0")))
    return 12 * (int(found.findtext("octave")) + 1) + semitone


def voice(part: ElementTree.Element) -> list[int]:
    """One part of a MusicXML score on the grid; a note sounds at the steps that it covers."""
    grid: list[int] = []
    divisions, time = 1, Fraction(0)  # parts of a quarter; in quarters
    for element in part.iter():
        if element.tag == "divisions":
            divisions = int(element.text)
        elif element.tag in ("note", "forward") and element.find("grace") is None:
            time += Fraction(int(element.findtext("duration")), divisions)
            sounding = pitch(element) if element.tag == "note" else REST
            grid += [sounding] * (int(time * STEPS_PER_QUARTER) - len(grid))
    return grid


def read_musicxml(path: Path) -> np.ndarray | None:
    """The piece in a compressed MusicXML file, or None if it has not four parts of one length."""
    with zipfile.ZipFile(path) as archive:
        container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        name = next(e.get("full-path") for e in container.iter() if e.tag.endswith("rootfile"))
        score = ElementTree.fromstring(archive.read(name))
    parts = score.findall("part")
    if len(parts) != VOICES:
        return None
    voices = [voice(part) for part in parts]
    if len({len(x) for x in voices}) > 1:
        return None
    return np.array(voices, np.int64).T


def load_music21() -> Chorales:
    """Every chorale of music21's corpus that has exactly four parts."""
    folder = package_folder("music21", "music21") / "corpus" / "bach"
    paths = sorted(folder.glob("*.mxl"))
    progress, pieces = Progress("reading music21's chorales", 0, len(paths)), []
    for number, path in enumerate(paths, 1):
        piece = read_musicxml(path)
        pieces += [] if piece is None else [piece]
        progress.show(number)
    split = split_by_content((piece.tobytes() for piece in pieces), 0.15)
    return Chorales(*([pieces[i] for i in part] for part in split))


def load_jsb(path: str | Path) -> Chorales:
    """Jsb16thSeparated.json, gzipped or not, with its own split; its test pieces are left alone."""
    path = Path(path)
    announce(f"reading the chorales of {path}")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        found = json.loads(content)
        pieces = [[np.array(x, np.int64) for x in found[part]] for part in ("train", "valid")]
    except OSError as error:
        raise MissingData(f"cannot read the chorales: {error}") from error
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise ValueError(
            f"{path} must be Jsb16thSeparated.json of JSB-Chorales-dataset (or gzipped): {error!r}"
        ) from error
    for piece in pieces[0] + pieces[1]:
        if piece.ndim != 2 or piece.shape[1] != VOICES:
            raise ValueError(f"{path}: a piece must be [steps, {VOICES}], got {list(piece.shape)}")
    return Chorales(*pieces)


def load(path: str | Path | None = None) -> Chorales:
    """The JSB file where a path is given, else music21's corpus."""
    return load_music21() if path is None else load_jsb(path)
