"""How far a long run of the tests is, and for how long it will go on, instead of a dot for each."""

from __future__ import annotations

import time

import pytest

MANY = 500  # tests: fewer keep pytest's dots
EVERY = 10.0  # seconds


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


class Progress:
    """Counts tests as they end, in whatever process, and prints a line now and then."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal
        self.session: pytest.Session | None = None
        self.done = 0
        self.began = self.printed = time.monotonic()

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_collection_finish(self) -> None:
        if self.total > MANY:
            self.terminal.showfspath = False  # no line for each file

    @property
    def total(self) -> int:
        """How many tests there are: pytest-xdist tells the session, too."""
        return self.session.testscollected if self.session else 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No dot for what passed."""
        if self.total > MANY and report.passed and report.when == "call":
            return "passed", "", ""
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        now = time.monotonic()
        if not self.done:
            self.began = self.printed = now  # collecting is over
        self.done += report.when == "teardown"
        if self.done and self.total > MANY and now - self.printed > EVERY:
            self.printed = now
            self.terminal.write_line(self.line(now - self.began))

    def line(self, seconds: float) -> str:
        """For a reader. The slowest tests come first, so the first estimates are too long."""
        failed = len(self.terminal.stats.get("failed", []))
        left = seconds / self.done * (self.total - self.done)
        return (
            f"{self.done} of {self.total} tests, {failed} failed, {clock(seconds)},"
            f" about {clock(left)} left"
        )


def register(config: pytest.Config) -> None:
    """Have the progress of this run told, by the process that prints, unless -v tells each test."""
    terminal = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None and config.get_verbosity() <= 0:
        config.pluginmanager.register(Progress(terminal))
