"""Running jobs on a launcher, with a second attempt for those that fail."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import UsageError, first_line, problem
from kdcache.signals import cancel_interrupt_timer
from kdcache.study.clusters import Ray, Slurm
from kdcache.study.jobs import Job, Launcher
from kdcache.study.local import Local

__all__ = ["Attempt", "launch", "make_launcher"]

MAX_ATTEMPTS = 2


@dataclass(frozen=True)
class Attempt:
    """A finished attempt at a job.

    Attributes
    ----------
    job : Job
    exit_code : int
        0 for success; minus the signal number if a signal ended the process.
    last_line : str
        Last line of the job's log.
    is_last : bool
        Whether no other attempt follows.
    """

    job: Job
    exit_code: int
    last_line: str
    is_last: bool


def make_launcher(name: str, max_jobs: int, logs: Path, options: dict[str, str]) -> Launcher:
    """Make a launcher.

    Parameters
    ----------
    name : str
        ``local``, ``slurm`` or ``ray``.
    max_jobs : int
        Number of jobs that run at once.
    logs : Path
        Folder for the launcher's own files.
    options : dict of str to str
        The launcher's own options.

    Raises
    ------
    UsageError
        If the launcher is not installed or not available, or does not know an option.
    """
    if name == "local":
        if options:
            raise UsageError(
                problem("--launcher-option", expected="none with --launcher local", got=next(iter(options)))
            )
        return Local(max_jobs)
    clusters: dict[str, Callable[[int, Path, dict[str, str]], Launcher]] = {"slurm": Slurm, "ray": Ray}
    return clusters[name](max_jobs, logs, options)


def launch(jobs: Sequence[Job], launcher: Launcher, on_attempt: Callable[[Attempt], None]) -> None:
    """Run jobs, and once more those that fail.

    On any exception, including KeyboardInterrupt, the running jobs are stopped and waited for.

    Parameters
    ----------
    jobs : sequence of Job
    launcher : Launcher
    on_attempt : callable
        Called with each attempt when it ends.
    """
    pool = ThreadPoolExecutor(launcher.max_jobs, "kdcache-job")
    try:
        pending = {pool.submit(_attempt, launcher, job): (job, 1) for job in jobs}
        while pending:
            for done in wait(pending, return_when=FIRST_COMPLETED).done:
                job, number = pending.pop(done)
                retry = done.result() != 0 and number < MAX_ATTEMPTS
                on_attempt(Attempt(job, done.result(), _last_line(job.log), is_last=not retry))
                if retry:
                    pending[pool.submit(_attempt, launcher, job)] = (job, number + 1)
    except BaseException:
        cancel_interrupt_timer()  # a repeated interrupt would break off the shutdown below
        pool.shutdown(wait=False, cancel_futures=True)
        launcher.stop()
        raise
    finally:
        pool.shutdown()


def _attempt(launcher: Launcher, job: Job) -> int:
    """Run a job; an error of the launcher itself, such as a node failure, is written to the job's log."""
    try:
        return launcher.run(job)
    except Exception as error:  # each cluster has its own exceptions
        with suppress(OSError), job.log.open("a", encoding="utf-8") as log:
            log.write(f"{type(error).__name__}: {first_line(error)}\n")
        return 1


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("kdcache: ") if lines else "no output"
    return "no output"
