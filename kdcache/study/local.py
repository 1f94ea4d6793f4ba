"""Launcher for processes on this machine."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import torch

from kdcache.machine import cores, free_memory
from kdcache.study.jobs import Job, run_job

__all__ = ["Local"]

VISIBLE_GPUS, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


class Local:
    """Runs jobs as processes of this machine and divides its threads, memory and GPUs among them.

    Parameters
    ----------
    max_jobs : int
        Number of processes at once. A single one may use the whole machine.
    """

    def __init__(self, max_jobs: int) -> None:
        self.max_jobs = max_jobs
        self._memory_per_job = free_memory() // max_jobs
        self._free_slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(max_jobs):
            self._free_slots.put(slot)
        self._stopping = threading.Event()

    def run(self, job: Job) -> int:
        """Run a job in a process of its own and return its exit code."""
        with self._slot() as slot:
            if self.max_jobs == 1:
                return run_job(job, self._stopping.is_set)
            # CUDA reserves terabytes of address space, which a memory limit would count.
            limit = None if visible_gpus() else self._memory_per_job
            environment = {**os.environ, **resource_variables(slot, self.max_jobs)}
            return run_job(job, self._stopping.is_set, environment, limit)

    def stop(self) -> None:
        """Let the processes write a checkpoint and exit."""
        self._stopping.set()

    @contextmanager
    def _slot(self) -> Iterator[int]:
        slot = self._free_slots.get()
        try:
            yield slot
        finally:
            self._free_slots.put(slot)


def resource_variables(slot: int, slots: int) -> dict[str, str]:
    """Environment variables that give one of several processes its share of threads and a GPU.

    A number of threads that the user has set is kept.
    """
    variables = {} if THREADS in os.environ else {THREADS: str(max(1, cores() // slots))}
    if gpus := visible_gpus():
        variables[VISIBLE_GPUS] = gpus[slot % len(gpus)]
    return variables


def visible_gpus() -> list[str]:
    """Names of the CUDA devices that this process may use."""
    named = os.environ.get(VISIBLE_GPUS)
    names = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]
