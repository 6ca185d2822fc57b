"""What is being measured, on one line of stderr; a line per shape where that is no terminal."""

from __future__ import annotations

import os
import sys
import time


class Progress:
    """How far a run is, in shapes and seconds, and what it does right now."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.title, self.start = total, 0, "", time.monotonic()
        self.live = sys.stderr.isatty()

    def next(self, title: str) -> None:
        """Start on the next shape."""
        self.done, self.title = self.done + 1, title
        if not self.live:
            print(self.line(), file=sys.stderr, flush=True)

    def step(self, what: str) -> None:
        """Say what is being done with it."""
        if self.live:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            print(
                f"\r\x1b[K{self.line()}: {what}"[: width + 4], end="", file=sys.stderr, flush=True
            )

    def clear(self) -> None:
        """Make room for a table."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def line(self) -> str:
        """Shapes done, seconds gone, and seconds left at this rate."""
        seconds, finished = time.monotonic() - self.start, self.done - 1
        left = f", {seconds / finished * (self.total - finished):.0f} s left" if finished else ""
        return f"[{self.done}/{self.total} {seconds:.0f} s{left}] {self.title}"
