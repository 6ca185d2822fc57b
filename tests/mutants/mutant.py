"""A mutant: one small break of the code, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """In `file`, the text `old`, which stands there exactly once, becomes `new`.

    Args:
        name: what the break does, in a few words.
        file: path from the top of the repository.
        tests: what pytest is given to notice it: files, node ids, -k expressions.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    def apply(self, root: Path) -> str:
        """Break the file below `root`; return its text from before."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(
                f"mutant {self.name!r}: its old text must stand once in {self.file},"
                f" got {text.count(self.old)} times: update the mutant to the code as it is now"
            )
        path.write_text(text.replace(self.old, self.new))
        return text
