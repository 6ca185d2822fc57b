"""A progress bar on stderr; a line now and then where that is no terminal."""

from __future__ import annotations

import os
import sys
import time

WIDTH = 24  # of the bar
LINES = 10  # in all, where stderr is no terminal
REDRAW = 0.1  # seconds


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def announce(work: str) -> None:
    """Say what goes on, before it is silent for a while."""
    print(f"{work} ...", file=sys.stderr, flush=True)


class Progress:
    """How far a training or other work is, what it measured last, and how long it will take."""

    def __init__(self, name: str, start: int, total: int) -> None:
        self.name, self.start, self.total = name, start, total
        self.began, self.drawn = time.monotonic(), 0.0
        self.live = sys.stderr.isatty()

    def line(self, step: int, figures: dict[str, float]) -> str:
        """The bar as text."""
        filled = WIDTH * step // self.total
        seconds = time.monotonic() - self.began
        left = seconds / max(step - self.start, 1) * (self.total - step)
        values = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        bar = "#" * filled + "." * (WIDTH - filled)
        return f"{self.name} [{bar}] {step}/{self.total}  {values}  {clock(left)} left"

    def show(self, step: int, figures: dict[str, float] | None = None) -> None:
        """Redraw after a step."""
        figures = figures or {}
        last = step == self.total
        if not self.live:
            if last or step % max(1, self.total // LINES) == 0:
                print(self.line(step, figures), file=sys.stderr, flush=True)
            return
        if last or time.monotonic() - self.drawn > REDRAW:
            self.drawn = time.monotonic()
            columns = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            text = self.line(step, figures)[:columns]
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
