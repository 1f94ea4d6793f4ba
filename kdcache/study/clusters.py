"""Jobs on clusters, by engines that are extras: Slurm's through submitit, and Ray's.

The machines of a cluster must see the same folders, under the same names, and have the same Python.
"""

import ast
import logging
import signal
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from kdcache.errors import UsageError, first_line, problem
from kdcache.machine import cores
from kdcache.signals import SIGTERM_EXIT_CODE
from kdcache.study.jobs import Job, execute

__all__ = ["Ray", "Slurm"]

MINUTES = 24 * 60
"""After which Slurm ends a job, unless ``timeout_min`` says otherwise; the study starts it again, once."""


class _Cluster(ABC):
    """Runs jobs by handles of an engine's own, and begins none any more once it is to stop.

    Parameters
    ----------
    jobs : int
        Jobs at once.
    """

    def __init__(self, jobs: int) -> None:
        self.width = jobs
        self._under_way: set[Any] = set()
        self._stopped, self._lock = False, threading.Lock()

    @abstractmethod
    def _begin(self, job: Job) -> Any:
        """Hand a job over, and return its handle."""

    @abstractmethod
    def _end(self, handle: Any) -> int:
        """Wait for the end of a job: its exit code."""

    @abstractmethod
    def _cancel(self, handle: Any) -> None:
        """Let a job stop, be it queued or running."""

    def run(self, job: Job) -> int:
        """Hand a job to the cluster and wait for its end."""
        with self._lock:
            if self._stopped:
                return SIGTERM_EXIT_CODE
            self._under_way.add(handle := self._begin(job))
        try:
            return self._end(handle)
        finally:
            self._under_way.discard(handle)

    def stop(self) -> None:
        """Cancel what is queued or running."""
        with self._lock:  # behind which nothing is begun any more
            self._stopped = True
        for handle in tuple(self._under_way):
            self._cancel(handle)


class Slurm(_Cluster):
    """A cluster of Slurm's, through submitit (``pip install 'kdcache[slurm]'``).

    Parameters
    ----------
    jobs : int
        Jobs in the queue at once.
    logs : Path
        Folder for what submitit writes.
    options : dict of str to str
        Of submitit's executor, as ``slurm_partition``; ``cluster=local`` runs the jobs on this machine.

    Raises
    ------
    UsageError
        Where there is no Slurm, or an option is none of submitit's.
    """

    def __init__(self, jobs: int, logs: Path, options: dict[str, str]) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError(problem("--launcher slurm", expected="after pip install 'kdcache[slurm]'")) from None
        super().__init__(jobs)
        settings: dict[str, Any] = {"timeout_min": MINUTES, **{name: _value(text) for name, text in options.items()}}
        try:
            self._executor = submitit.AutoExecutor(folder=logs, cluster=settings.pop("cluster", "slurm"))
            self._executor.update_parameters(**settings)
        except Exception as error:  # it has many ways to say that something is missing or unknown
            raise UsageError(problem("--launcher slurm", got=first_line(error))) from None

    def _begin(self, job: Job) -> Any:
        return self._executor.submit(execute, job)

    def _end(self, handle: Any) -> int:
        return int(handle.result())

    def _cancel(self, handle: Any) -> None:
        handle.cancel(check=False)


class Ray(_Cluster):
    """A cluster of Ray's (``pip install 'kdcache[ray]'``).

    Parameters
    ----------
    jobs : int
        Tasks at once.
    logs : Path
        Not needed: Ray keeps what it writes.
    options : dict of str to str
        ``address`` of a cluster, by default one on this machine; others are the resources of a task, as ``num_gpus``.

    Raises
    ------
    UsageError
        Where there is no such cluster, or an option is none of Ray's.
    """

    def __init__(self, jobs: int, logs: Path, options: dict[str, str]) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(problem("--launcher ray", expected="after pip install 'kdcache[ray]'")) from None
        super().__init__(jobs)
        self._ray = ray
        own = {name: _value(text) for name, text in options.items()}
        settings: dict[str, Any] = {"num_cpus": max(1, cores() // jobs), **own}
        terminated = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=settings.pop("address", None),
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            if ray.cluster_resources().get("GPU"):
                settings.setdefault("num_gpus", 1)  # or each task would take the first one
            self._task = ray.remote(max_retries=0, **settings)(execute)
        except Exception as error:  # it has many ways to say that something is missing or unknown
            raise UsageError(problem("--launcher ray", got=first_line(error))) from None
        signal.signal(signal.SIGTERM, terminated)  # in the place of which Ray put a handler of its own

    def _begin(self, job: Job) -> Any:
        return self._task.remote(job)

    def _end(self, handle: Any) -> int:
        return int(self._ray.get(handle))

    def _cancel(self, handle: Any) -> None:
        self._ray.cancel(handle)


def _value(text: str) -> Any:
    """Read the value of an option as Python writes it, ``4``, ``True`` or ``{'gres': 'gpu'}``, or as a text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
