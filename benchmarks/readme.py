"""What README and docs/ say in figures, generated from benchmarks/results/ and from the code.

python -m benchmarks.readme            write it
python -m benchmarks.readme --check    name what is out of date, and fail if anything is
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import plots, summary, support
from .drawings import DRAWINGS, Drawing
from .machine import kernels_error
from .results import Recording, Result, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
README, DOCS, RESULTS = ROOT / "README.md", ROOT / "docs", ROOT / "benchmarks" / "results"
FULL_TABLES, SUPPORT, PICTURES = DOCS / "results.md", DOCS / "support.md", DOCS / "pictures"


def recordings(folder: Path = RESULTS) -> list[Recording]:
    """One for each device: of everything in the folder the newest result of each kind."""
    loaded = sorted(map(load, folder.glob("*.json")), key=lambda r: r.environment["date"])
    devices: dict[str, list[Recording]] = {}
    for one in loaded:
        devices.setdefault(one.environment["device"], []).append(one)
    return [summary.merged(same) for _, same in sorted(devices.items())]


def texts(found: list[Recording]) -> dict[Path, str]:
    """Every generated text file as it should be."""
    parts = {README: ("results", summary.section(found)), SUPPORT: ("support", support.table())}
    pages = {page: replaced(page.read_text(), *part) for page, part in parts.items()}
    return {**pages, FULL_TABLES: summary.full_tables(found)}


def replaced(page: str, name: str, text: str) -> str:
    """The page with what is between a section's two markers replaced."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must have {begin.strip()} and {end.strip()} once each")
    before, rest = page.split(begin)
    return before + begin + text + end + rest.split(end)[1]


@dataclass(frozen=True)
class Plot:
    """A picture of results: what kind, and of what. As Drawing, a picture of a geometry."""

    kind: str
    shown: list[list[Result]]

    def fingerprint(self) -> str:
        """What it is drawn from, in a few digits: the file carries them."""
        data = json.dumps([asdict(result) for results in self.shown for result in results])
        return "data " + hashlib.sha256(data.encode()).hexdigest()[:16]

    def draw(self) -> Figure:
        """The picture."""
        return plots.overview(self.shown) if self.kind == "speed" else plots.scaling(self.shown[0])


def pictures(found: list[Recording]) -> dict[Path, Plot | Drawing]:
    """Every generated picture."""
    wanted: dict[Path, Plot | Drawing] = {PICTURES / k: v for k, v in DRAWINGS.items()}
    for recording in found:
        for kind, shown in summary.pictures(recording).items():
            wanted[PICTURES / summary.picture_name(kind, recording)] = Plot(kind, shown)
    return wanted


def is_current(path: Path, picture: Plot | Drawing) -> bool:
    """Whether the file shows this. Its bytes may be those of another version of matplotlib."""
    return path.exists() and picture.fingerprint() in path.read_text()


def draw(path: Path, picture: Plot | Drawing) -> None:
    """Write one picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{plots.as_svg(picture.draw())}<!-- {picture.fingerprint()} -->\n")


def stray(wanted: Iterable[Path]) -> list[Path]:
    """Pictures of what is no longer there."""
    kept = set(wanted)
    return [path for path in PICTURES.glob("*.svg") if path not in kept]


def out_of_date() -> list[Path]:
    """Generated files that are not what they should be."""
    found = recordings()
    shown = pictures(found)
    wrong = [p for p, text in texts(found).items() if not p.exists() or p.read_text() != text]
    wrong += [path for path, picture in shown.items() if not is_current(path, picture)]
    return wrong + stray(shown)


def write() -> None:
    """Bring every generated file up to date."""
    found = recordings()
    for path, text in texts(found).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shown = pictures(found)
    for path, picture in shown.items():
        if not is_current(path, picture):
            draw(path, picture)
    for path in stray(shown):
        path.unlink()


def main(arguments: list[str]) -> int:
    """Write, or check."""
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    if error := kernels_error():  # the table of what is supported tries them
        sys.exit(error)
    if not arguments:
        write()
        return 0
    wrong = out_of_date()
    for path in wrong:
        print(f"{path.relative_to(ROOT)} is out of date: run python -m benchmarks.readme")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
