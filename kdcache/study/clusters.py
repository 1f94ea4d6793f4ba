"""Launchers for clusters: Slurm through submitit, and Ray. Both are optional dependencies.

All machines of a cluster need the same folders under the same paths, and the same Python installation.
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
from kdcache.signals import STOPPED_EXIT_CODE
from kdcache.study.jobs import Job, run_job

__all__ = ["Ray", "Slurm"]

SLURM_TIMEOUT_MINUTES = 24 * 60
"""Time limit of a Slurm job unless ``timeout_min`` is given. A study starts a job that runs out of time once more."""


class _Cluster(ABC):
    """Runs jobs through the handles of a cluster's library; submits none after `stop`."""

    def __init__(self, max_jobs: int) -> None:
        self.max_jobs = max_jobs
        self._handles: set[Any] = set()
        self._stopped, self._lock = False, threading.Lock()

    @abstractmethod
    def _submit(self, job: Job) -> Any:
        """Submit a job and return its handle."""

    @abstractmethod
    def _wait(self, handle: Any) -> int:
        """Wait for a job to end and return its exit code."""

    @abstractmethod
    def _cancel(self, handle: Any) -> None:
        """Stop a queued or running job."""

    def run(self, job: Job) -> int:
        """Submit a job, wait for it to end and return its exit code."""
        with self._lock:
            if self._stopped:
                return STOPPED_EXIT_CODE
            self._handles.add(handle := self._submit(job))
        try:
            return self._wait(handle)
        finally:
            self._handles.discard(handle)

    def stop(self) -> None:
        """Cancel the queued and running jobs."""
        with self._lock:  # from here on `run` submits nothing
            self._stopped = True
        for handle in tuple(self._handles):
            self._cancel(handle)


class Slurm(_Cluster):
    """Slurm, through submitit (``pip install 'kdcache[slurm]'``).

    Parameters
    ----------
    max_jobs : int
        Number of jobs in the queue at once.
    logs : Path
        Folder for submitit's files.
    options : dict of str to str
        Options of submitit's executor, such as ``slurm_partition``; ``cluster=local`` runs the jobs on this machine.

    Raises
    ------
    UsageError
        If Slurm is not available or submitit does not know an option.
    """

    def __init__(self, max_jobs: int, logs: Path, options: dict[str, str]) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError(_not_installed("slurm", "submitit")) from None
        super().__init__(max_jobs)
        parameters = {"timeout_min": SLURM_TIMEOUT_MINUTES, **_parse(options)}
        try:
            self._executor = submitit.AutoExecutor(folder=logs, cluster=parameters.pop("cluster", "slurm"))
            self._executor.update_parameters(**parameters)
        except Exception as error:  # submitit raises many kinds for a missing Slurm or an unknown option
            raise UsageError(problem("--launcher slurm", got=first_line(error))) from None

    def _submit(self, job: Job) -> Any:
        return self._executor.submit(run_job, job)

    def _wait(self, handle: Any) -> int:
        return int(handle.result())

    def _cancel(self, handle: Any) -> None:
        handle.cancel(check=False)


class Ray(_Cluster):
    """Ray (``pip install 'kdcache[ray]'``).

    Parameters
    ----------
    max_jobs : int
        Number of tasks at once.
    logs : Path
        Unused; Ray has its own log folder.
    options : dict of str to str
        ``address`` of the cluster, by default a new one on this machine; other options are the resources of a task,
        such as ``num_gpus``.

    Raises
    ------
    UsageError
        If the cluster is not available or Ray does not know an option.
    """

    def __init__(self, max_jobs: int, logs: Path, options: dict[str, str]) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(_not_installed("ray", "ray")) from None
        super().__init__(max_jobs)
        self._ray = ray
        resources = {"num_cpus": max(1, cores() // max_jobs), **_parse(options)}
        sigterm_handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=resources.pop("address", None),
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            if ray.cluster_resources().get("GPU"):
                resources.setdefault("num_gpus", 1)  # otherwise all tasks would use the first GPU
            self._task = ray.remote(max_retries=0, **resources)(run_job)
        except Exception as error:  # Ray raises many kinds for a missing cluster or an unknown option
            raise UsageError(problem("--launcher ray", got=first_line(error))) from None
        signal.signal(signal.SIGTERM, sigterm_handler)  # ray.init replaced it

    def _submit(self, job: Job) -> Any:
        return self._task.remote(job)

    def _wait(self, handle: Any) -> int:
        return int(self._ray.get(handle))

    def _cancel(self, handle: Any) -> None:
        self._ray.cancel(handle)


def _not_installed(launcher: str, package: str) -> str:
    return problem(
        f"--launcher {launcher}: {package} is not installed", remedy=f"Run pip install 'kdcache[{launcher}]'."
    )


def _parse(options: dict[str, str]) -> dict[str, Any]:
    """Parse values as Python literals, such as ``4``, ``True`` or ``{'gres': 'gpu'}``; other values stay strings."""
    parsed: dict[str, Any] = {}
    for name, text in options.items():
        try:
            parsed[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[name] = text
    return parsed
