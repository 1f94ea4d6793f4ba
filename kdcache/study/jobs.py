"""A job is a command line of kdcache. It goes on where it was stopped, so that a failed one is simply started again."""

import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kdcache.run.folder import RunFolder
from kdcache.signals import SIGTERM_EXIT_CODE

__all__ = ["Job", "Launcher", "execute"]

LOOKS = 0.5
"""Seconds after which a job that waits looks whether it is to stop."""


@dataclass(frozen=True)
class Job:
    """A command line of kdcache.

    Attributes
    ----------
    name : str
        For people.
    arguments : tuple of str
    log : Path
        File to which its output is appended.
    folder : Path
        That it writes; whoever else is writing it is waited for.
    cwd : Path
        Where its relative paths begin. Like the other two, it is absolute: jobs may be computed elsewhere.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    folder: Path
    cwd: Path

    @property
    def command(self) -> list[str]:
        """What to execute, wherever the same Python is installed."""
        return [sys.executable, "-m", "kdcache", *self.arguments]


class Launcher(Protocol):
    """Computes jobs, as many at once as `width`."""

    width: int

    def run(self, job: Job) -> int:
        """Compute one job to its end and return its exit code; called by `width` threads at once."""
        ...

    def stop(self) -> None:
        """Stop the jobs that are under way, so that they can be gone on with."""
        ...


def execute(
    job: Job,
    stopped: Callable[[], bool] | None = None,
    environment: Mapping[str, str] | None = None,
    memory: int | None = None,
) -> int:
    """Run a job in a process of its own, on whichever machine this is, and return its exit code.

    A run that outlived the study that began it is waited for. What stops the caller, be it `stopped`, SIGTERM to the
    main thread or an exception, is passed on as SIGTERM, upon which a training writes a checkpoint and ends.

    Parameters
    ----------
    job : Job
    stopped : callable, optional
        Tells whether the job is to stop.
    environment : mapping of str to str, optional
        Variables of the process, by default this one's.
    memory : int, optional
        Bytes that it may take: beyond them it is told so, where the system would kill it, or another one.
    """
    folder = RunFolder(job.folder)
    with _terminations() as asked:

        def to_stop() -> bool:
            return bool(asked) or (stopped is not None and stopped())

        while not to_stop() and folder.in_use():
            time.sleep(LOOKS)
        if to_stop():
            return SIGTERM_EXIT_CODE
        if folder.is_finished:  # by whoever was waited for; a teacher would be loaded anew
            return 0
        with job.log.open("ab") as log:
            # In a group of its own, which an interrupt at the terminal does not reach: it is asked to stop instead.
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=job.cwd,
                env=environment,
                process_group=0,
            )
        try:
            if memory is not None:
                _limit(process, memory)
            while not to_stop():
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(LOOKS)
            process.terminate()
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


@contextmanager
def _terminations() -> Iterator[list[int]]:
    """Collect the signals to end, where this is the main thread, instead of ending."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, before)


def _limit(process: "subprocess.Popen[bytes]", memory: int) -> None:
    """Keep a process from more memory than this, where the system can."""
    if hasattr(resource, "prlimit"):
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (memory, memory))
