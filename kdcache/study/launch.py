"""Where the runs of a study are computed: in processes of this machine, on a cluster of Slurm's, or on one of Ray's.

A job is a command line of kdcache. It goes on where it was stopped, so that a failed one is simply started again.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from kdcache.errors import UsageError, fault
from kdcache.store.place import Place

__all__ = ["LAUNCHERS", "Job", "Launcher", "Local", "Outcome", "Ray", "Slurm", "launch"]

TRIES = 2

TERMINATED = 143


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
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    folder: Path

    @property
    def command(self) -> list[str]:
        """What to execute, wherever the same Python is installed."""
        return [sys.executable, "-m", "kdcache", *self.arguments]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    job : Job
    code : int
        Exit code of the last try; 0 is well.
    said : str
        Last line that it said.
    last : bool
        Whether it is not tried again.
    """

    job: Job
    code: int
    said: str
    last: bool


class Launcher(Protocol):
    """Computes jobs, as many at once as `width`."""

    width: int

    def run(self, job: Job) -> int:
        """Compute one job to its end and return its exit code; called by `width` threads at once."""
        ...

    def stop(self) -> None:
        """Stop the jobs that are under way, so that they can be gone on with."""
        ...


def launch(jobs: Sequence[Job], launcher: Launcher) -> Iterator[Outcome]:
    """Compute jobs, and those that fail a second time.

    Yields
    ------
    Outcome
        Of each try, as it ends. Where the reader goes away, as by an interrupt, the jobs under way are stopped.
    """
    pool = ThreadPoolExecutor(launcher.width)
    try:
        pending = {pool.submit(launcher.run, job): (job, 1) for job in jobs}
        while pending:
            done = next(as_completed(pending))
            job, tries = pending.pop(done)
            code = done.result()
            again = code != 0 and tries < TRIES
            yield Outcome(job, code, _last_line(job.log), last=not again)
            if again:
                pending[pool.submit(launcher.run, job)] = (job, tries + 1)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        launcher.stop()
        pool.shutdown()


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("kdcache: ") if lines else "nothing"
    return "nothing"


class Local:
    """Processes of this machine, between which its threads, its memory and its GPUs are divided.

    Parameters
    ----------
    jobs : int
        Processes at once.
    devices : int
        GPUs of the machine.
    """

    def __init__(self, jobs: int, devices: int = 0) -> None:
        self.width, self._devices = jobs, devices
        self._places: SimpleQueue[int] = SimpleQueue()
        for place in range(jobs):
            self._places.put(place)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()

    def run(self, job: Job) -> int:
        """Compute a job in a process of its own."""
        with self._place() as place:
            environment = {**os.environ, **self._share(place)}
            wait_for(job.folder)
            with job.log.open("ab") as log:
                if self._stopped.is_set():
                    return TERMINATED
                process = subprocess.Popen(
                    job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
                )
                self._running.add(process)
                if self._stopped.is_set():
                    process.terminate()
                self._limit(process)
                try:
                    return process.wait()
                finally:
                    self._running.discard(process)

    def stop(self) -> None:
        """Let the processes write their checkpoints and end."""
        self._stopped.set()
        for process in tuple(self._running):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    @contextmanager
    def _place(self) -> Iterator[int]:
        place = self._places.get()
        try:
            yield place
        finally:
            self._places.put(place)

    def _share(self, place: int) -> dict[str, str]:
        """Say which part of the machine is whose; a single process may have all of it."""
        if self.width == 1:
            return {}
        share = {"OMP_NUM_THREADS": str(max(1, _cores() // self.width))}
        if self._devices:
            share["CUDA_VISIBLE_DEVICES"] = str(place % self._devices)
        return share

    def _limit(self, process: "subprocess.Popen[bytes]") -> None:
        """Keep a process from memory that is another one's share: it is told so, instead of being killed."""
        if self.width == 1 or self._devices or not hasattr(resource, "prlimit"):
            return
        share = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self.width
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (share, share))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_for(folder: Path) -> None:
    """Wait until nobody writes a run folder, as a run does that outlived the study that began it."""
    if folder.is_dir():
        with Place(folder / "run").lock(None):
            pass


class Slurm:
    """A cluster of Slurm's, through submitit (``pip install 'kdcache[slurm]'``).

    Parameters
    ----------
    jobs : int
        Jobs in the queue at once.
    logs : Path
        Folder for what submitit writes.
    options : dict of str to str
        Of submitit's executor, as ``slurm_partition``; ``cluster=local`` runs the jobs on this machine.
    """

    def __init__(self, jobs: int, logs: Path, options: dict[str, str]) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError(fault("--launcher slurm", allowed="after pip install 'kdcache[slurm]'")) from None
        options = dict(options)
        self.width = jobs
        self._executor = submitit.AutoExecutor(folder=logs, cluster=options.pop("cluster", "slurm"))
        self._executor.update_parameters(**{name: _number(value) for name, value in options.items()})
        self._submitted: set[Any] = set()
        self._lock = threading.Lock()

    def run(self, job: Job) -> int:
        """Submit a job and wait for its end."""
        with self._lock:
            submitted = self._executor.submit(execute, job.command, str(job.log))
            self._submitted.add(submitted)
        try:
            return int(submitted.result())
        except Exception as error:  # the cluster's own failures: a node that died, a time limit
            with job.log.open("a") as log:
                log.write(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n")
            return 1
        finally:
            self._submitted.discard(submitted)

    def stop(self) -> None:
        """Cancel what is queued or running."""
        for submitted in tuple(self._submitted):
            submitted.cancel(check=False)


class Ray:
    """A cluster of Ray's (``pip install 'kdcache[ray]'``).

    Parameters
    ----------
    jobs : int
        Tasks at once.
    options : dict of str to str
        ``address`` of a cluster, by default one on this machine; others are the resources of a task, as ``num_gpus``.
    """

    def __init__(self, jobs: int, options: dict[str, str]) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(fault("--launcher ray", allowed="after pip install 'kdcache[ray]'")) from None
        options = dict(options)
        self.width, self._ray = jobs, ray
        ray.init(address=options.pop("address", None), ignore_reinit_error=True, log_to_driver=False)
        resources = {"num_cpus": max(1, _cores() // jobs), **{name: _number(text) for name, text in options.items()}}
        self._task = ray.remote(max_retries=0, **resources)(execute)
        self._tasks: set[Any] = set()

    def run(self, job: Job) -> int:
        """Hand a job to the cluster and wait for its end."""
        task = self._task.remote(job.command, str(job.log))
        self._tasks.add(task)
        try:
            return int(self._ray.get(task))
        except Exception as error:  # a node that died, a task that was cancelled
            with job.log.open("a") as log:
                log.write(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n")
            return 1
        finally:
            self._tasks.discard(task)

    def stop(self) -> None:
        """Cancel what is under way."""
        for task in tuple(self._tasks):
            self._ray.cancel(task)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def execute(command: list[str], log: str) -> int:
    """Run a command on whichever machine this is; told to stop, it is told so too, and waited for."""
    with Path(log).open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


LAUNCHERS: dict[str, Callable[[int, Path, dict[str, str]], Launcher]] = {
    "local": lambda jobs, logs, options: Local(jobs, **{name: int(value) for name, value in options.items()}),
    "slurm": Slurm,
    "ray": lambda jobs, logs, options: Ray(jobs, options),
}
"""What makes a launcher: of so many jobs at once, a folder for logs, and its own options."""
