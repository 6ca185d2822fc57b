"""How far a run is, on stderr: a bar on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

SECONDS_BETWEEN_LINES = 30.0
NARROWEST = 40  # columns that a bar needs
BAR = "{n_fmt}/{total_fmt} |{bar:8}| {elapsed}<{remaining} {desc}{postfix}"


def columns() -> int:
    """The width of the terminal; 0 where stderr is none, or one that does not know its width."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # ValueError: stderr has no file descriptor
        return 0


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


class Progress:
    """Counts shapes: each is begun, goes through steps, and is ended with what was found."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.title, self.shape = total, 0, "", ""
        self.start, self.next_line = time.monotonic(), 0.0
        self.bar = None
        if columns() >= NARROWEST:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, bar_format=BAR, dynamic_ncols=True, leave=False)

    def begin(self, title: str, shape: str) -> None:
        """Start on the next shape, of the table with this title."""
        self.title, self.shape = title, shape

    def step(self, what: str) -> None:
        """Say what is being done with it."""
        if self.bar is not None:
            self.bar.set_description_str(f"{self.shape} {what}, {self.title}")  # cut at the edge

    def end(self, found: str) -> None:
        """The shape is done; the bar keeps in view what was found."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()
            self.bar.set_postfix_str(f"last {found}")
        elif time.monotonic() >= self.next_line or self.done == self.total:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            line = f"{self.counted()} {self.title}, {self.shape}: {found}"
            print(line, file=sys.stderr, flush=True)

    def counted(self) -> str:
        """Shapes done, time gone, and time left at this rate."""
        seconds = time.monotonic() - self.start
        left = seconds / self.done * (self.total - self.done)
        return f"[{self.done}/{self.total} {clock(seconds)} elapsed, {clock(left)} left]"

    def clear(self) -> None:
        """Make room for a table."""
        if self.bar is not None:
            self.bar.clear()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
