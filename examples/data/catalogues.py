"""Sentence pairs from Django's message catalogues (.po files): English with up to 98 languages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..progress import announce
from .source import MissingData, package_folder, split_by_content


class Pairs(NamedTuple):
    """Sentences of two languages, index by index."""

    source: list[str]
    target: list[str]

    def take(self, indices: list[int]) -> Pairs:
        return Pairs([self.source[i] for i in indices], [self.target[i] for i in indices])


def entries(text: str) -> Iterator[dict[str, str]]:
    """The entries of a .po file: keyword (msgid, msgstr, msgstr[0], ...) to string.

    A string may go on over several lines. Fuzzy entries, which a translator has not confirmed, are
    left out, obsolete ones (#~) too.
    """
    for block in text.replace("\r\n", "\n").split("\n\n"):
        entry: dict[str, str] = {}
        keyword, fuzzy = "", False
        for line in block.splitlines():
            if line.startswith("#"):
                fuzzy = fuzzy or (line.startswith("#,") and "fuzzy" in line)
                continue
            if not line.startswith('"'):
                keyword, _, line = line.partition(" ")
            if line.strip():
                entry[keyword] = entry.get(keyword, "") + ast.literal_eval(line.strip())
        if entry and not fuzzy:
            yield entry


def sentences(path: Path) -> Iterator[tuple[str, str]]:
    """(English, translation) of a catalogue's translated entries, on one line each."""
    for entry in entries(path.read_text(encoding="utf-8")):
        english = " ".join(entry.get("msgid", "").split())
        translated = " ".join(entry.get("msgstr", entry.get("msgstr[0]", "")).split())
        if english and translated:
            yield english, translated


def catalogue(folder: Path, language: str) -> dict[str, str]:
    """Every English sentence of Django and its translation; the first of several counts."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"**/locale/{language}/LC_MESSAGES/*.po")):
        for english, translated in sentences(path):
            found.setdefault(english, translated)
    return found


def languages(folder: Path) -> list[str]:
    """The languages that Django itself is translated to."""
    return sorted(path.parent.name for path in (folder / "conf" / "locale").glob("*/LC_MESSAGES"))


def load(source: str = "en", target: str = "de") -> tuple[Pairs, Pairs]:
    """Training and validation sentences; the split goes by the English sentence.

    So no validation sentence is trained on in any language, whatever pair is asked for.
    """
    folder = package_folder("django", "Django")
    known = languages(folder)
    for name, language in (("source", source), ("target", target)):
        if language not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {language!r}")
    if source == target:
        raise ValueError(f"source and target must differ, got {source!r} twice")
    announce(f"reading Django's messages, {source} and {target}")
    tables = [catalogue(folder, x) if x != "en" else None for x in (source, target)]
    english = sorted(set.intersection(*(set(x) for x in tables if x is not None)))
    if not english:
        raise MissingData("Django has no .po files here: pip install --force-reinstall Django")
    columns = ([x if table is None else table[x] for x in english] for table in tables)
    pairs = Pairs(*columns)
    split = split_by_content(x.encode() for x in english)
    return pairs.take(split.train), pairs.take(split.validation)
