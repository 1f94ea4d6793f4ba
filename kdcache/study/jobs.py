"""Jobs: kdcache command lines that resume where they stopped, so a failed one is simply started again."""

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
from kdcache.signals import STOP_SIGNALS, STOPPED_EXIT_CODE

__all__ = ["Job", "Launcher", "run_job"]

POLL_SECONDS = 0.5
"""Seconds between two checks whether a waiting or running job should stop."""


@dataclass(frozen=True)
class Job:
    """A kdcache command line.

    All paths are absolute, since a job may run on another machine.

    Attributes
    ----------
    name : str
        Name in messages.
    arguments : tuple of str
    log : Path
        File to which the output is appended.
    folder : Path
        The run folder that the job writes. If another process is writing it, the job waits.
    cwd : Path
        Working directory.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    folder: Path
    cwd: Path

    @property
    def command(self) -> list[str]:
        """The command, for any machine with the same Python installation."""
        return [sys.executable, "-m", "kdcache", *self.arguments]


class Launcher(Protocol):
    """Runs jobs, up to `max_jobs` at once."""

    max_jobs: int

    def run(self, job: Job) -> int:
        """Run a job to its end and return its exit code; called from up to `max_jobs` threads at once."""
        ...

    def stop(self) -> None:
        """Stop the running jobs so that they can be resumed."""
        ...


def run_job(
    job: Job,
    should_stop: Callable[[], bool] | None = None,
    environment: Mapping[str, str] | None = None,
    memory_bytes: int | None = None,
) -> int:
    """Run a job in a process of its own on this machine, and return its exit code.

    If a run is still being trained by a process that outlived an earlier study, this waits for it. When the job has to
    stop, because `should_stop` returns true, one of `STOP_SIGNALS` arrives in the main thread or an exception is
    raised, the process gets SIGTERM, upon which a training writes a checkpoint and exits.

    Parameters
    ----------
    job : Job
    should_stop : callable, optional
    environment : mapping of str to str, optional
        Environment variables of the process; by default those of this one.
    memory_bytes : int, optional
        Memory limit of the process. Beyond it an allocation fails with an error, before the system kills a process.
    """
    with _stop_signals_received() as received:

        def stopping() -> bool:
            return bool(received) or (should_stop is not None and should_stop())

        folder = RunFolder(job.folder)
        while not stopping() and folder.in_use():
            time.sleep(POLL_SECONDS)
        if stopping():
            return STOPPED_EXIT_CODE
        if folder.is_finished:  # finished by the other process; teacher-load would load it again
            return 0
        with job.log.open("ab") as log:
            # A process group of its own keeps Ctrl-C at the terminal from it; it gets SIGTERM instead.
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
            if memory_bytes is not None:
                _limit_memory(process, memory_bytes)
            while not stopping():
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(POLL_SECONDS)
            process.terminate()
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


@contextmanager
def _stop_signals_received() -> Iterator[list[int]]:
    """Collect `STOP_SIGNALS` instead of exiting; only the main thread can install a handler."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _limit_memory(process: "subprocess.Popen[bytes]", limit: int) -> None:
    """Limit the memory of a process, where the system supports it."""
    if hasattr(resource, "prlimit"):
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
