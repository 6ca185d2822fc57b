"""Functions in processes of their own: one that hangs or breaks its GPU context costs one call."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from queue import SimpleQueue
from typing import Any

Job = tuple[Any, ...]  # a function that can be imported, and its arguments


class JobError(RuntimeError):
    """What a job raised, or how its process ended."""


def serve(pipe: Any) -> None:
    """The process: a result for every job, until one raises. Its context may be broken then."""
    while True:
        try:
            function, *arguments = pipe.recv()
        except EOFError:  # the other side is gone
            return
        try:
            result = function(*arguments)
        except Exception as error:
            traceback.print_exc()
            pipe.send((False, f"{type(error).__name__}: {error}"[:500]))
            return
        pipe.send((True, result))


def start_uninterrupted(process: Any) -> None:
    """Start a process that Ctrl-C does not reach: a terminal interrupts everything that runs in it,
    but who started the process ends it. A mask is inherited, and holds before any import."""
    resource_tracker.ensure_running()  # or process.start() starts it, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """A process that runs jobs, replaced after one that fails."""

    def __init__(self) -> None:
        self.process: Any = None
        self.pipe: Any = None

    def run(self, job: Job, seconds: float) -> Any:
        """The job's result; JobError if it raises, dies or takes longer."""
        if seconds <= 0:
            raise JobError("out of time")
        if self.process is None:
            context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other,))
            start_uninterrupted(self.process)
            other.close()
        try:
            self.pipe.send(job)
            if not self.pipe.poll(seconds):
                raise JobError(f"no result after {seconds:.0f} s")
            passed, result = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            passed, result = False, f"the process ended with {self.process.exitcode}"
        except BaseException:
            self.stop()
            raise
        if not passed:
            self.stop()
            raise JobError(result)
        return result

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.join(5)  # a driver that hangs may not let go of it
            self.pipe.close()
        self.process = self.pipe = None


def run_all(
    jobs: list[Job],
    workers: list[Worker],
    seconds: Callable[[], float],
    done: Callable[[int, Any], None] = lambda place, result: None,
) -> list[Any]:
    """The jobs' results in order, as many at a time as there are workers; a JobError stands where
    one failed.

    seconds() is asked when a job starts; done(place, result) is called when one ends, by its
    thread.
    """
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(place: int) -> Any:
        worker = idle.get()
        try:
            result = worker.run(jobs[place], seconds())
        except JobError as error:
            result = error
        finally:
            idle.put(worker)
        done(place, result)
        return result

    with ThreadPoolExecutor(max(1, len(workers))) as pool:
        return list(pool.map(run, range(len(jobs))))
