"""Jobs computed by a launcher, those that fail a second time."""

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

__all__ = ["Outcome", "launch", "launcher"]

TRIES = 2


@dataclass(frozen=True)
class Outcome:
    """How a try at a job ended.

    Attributes
    ----------
    job : Job
    code : int
        Exit code, or minus the signal that ended it; 0 is well.
    said : str
        Last line of its log.
    last : bool
        Whether it is not tried again.
    """

    job: Job
    code: int
    said: str
    last: bool


def launcher(name: str, jobs: int, logs: Path, options: dict[str, str]) -> Launcher:
    """Make a launcher.

    Parameters
    ----------
    name : str
        ``local``, ``slurm`` or ``ray``.
    jobs : int
        Jobs at once.
    logs : Path
        Folder for what the launcher writes.
    options : dict of str to str
        Of its own.

    Raises
    ------
    UsageError
        Where it is not installed, not there, or has no such option.
    """
    if name == "local":
        if options:
            allowed = "none with --launcher local"
            raise UsageError(problem("--launcher-option", expected=allowed, got=next(iter(options))))
        return Local(jobs)
    clusters: dict[str, Callable[[int, Path, dict[str, str]], Launcher]] = {"slurm": Slurm, "ray": Ray}
    return clusters[name](jobs, logs, options)


def launch(jobs: Sequence[Job], on: Launcher, tell: Callable[[Outcome], None]) -> None:
    """Compute jobs, and those that fail a second time.

    Whatever cuts in, as an interrupt does, the jobs under way are stopped, and their end is waited for.

    Parameters
    ----------
    jobs : sequence of Job
    on : Launcher
    tell : callable
        Hears of each try, as it ends.
    """
    pool = ThreadPoolExecutor(on.width, "kdcache-job")
    try:
        pending = {pool.submit(_tried, on, job): (job, 1) for job in jobs}
        while pending:
            for done in wait(pending, return_when=FIRST_COMPLETED).done:
                job, tries = pending.pop(done)
                again = done.result() != 0 and tries < TRIES
                tell(Outcome(job, done.result(), _last_line(job.log), last=not again))
                if again:
                    pending[pool.submit(_tried, on, job)] = (job, tries + 1)
    except BaseException:
        cancel_interrupt_timer()  # or it would cut into what follows
        pool.shutdown(wait=False, cancel_futures=True)
        on.stop()
        raise
    finally:
        pool.shutdown()


def _tried(on: Launcher, job: Job) -> int:
    """Compute a job; where the launcher itself fails, as with a node that died, the log says so."""
    try:
        return on.run(job)
    except Exception as error:  # each cluster has errors of its own
        with suppress(OSError), job.log.open("a", encoding="utf-8") as log:
            log.write(f"{type(error).__name__}: {first_line(error)}\n")
        return 1


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("kdcache: ") if lines else "nothing"
    return "nothing"
