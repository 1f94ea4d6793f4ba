"""Jobs in processes of this machine."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import torch

from kdcache.machine import cores, free_memory
from kdcache.study.jobs import Job, execute

__all__ = ["Local"]

VISIBLE, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


class Local:
    """Processes of this machine, between which its threads, its memory and its GPUs are divided.

    Parameters
    ----------
    jobs : int
        Processes at once; a single one may have all of the machine.
    """

    def __init__(self, jobs: int) -> None:
        self.width = jobs
        self._memory = free_memory() // jobs
        self._places: SimpleQueue[int] = SimpleQueue()
        for place in range(jobs):
            self._places.put(place)
        self._stopped = threading.Event()

    def run(self, job: Job) -> int:
        """Compute a job in a process of its own."""
        with self._place() as place:
            if self.width == 1:
                return execute(job, self._stopped.is_set)
            # CUDA sets addresses aside by the terabyte, which is no memory taken, but counts as such.
            memory = None if gpus() else self._memory
            return execute(job, self._stopped.is_set, {**os.environ, **share(place, self.width)}, memory)

    def stop(self) -> None:
        """Let the processes write their checkpoints and end."""
        self._stopped.set()

    @contextmanager
    def _place(self) -> Iterator[int]:
        place = self._places.get()
        try:
            yield place
        finally:
            self._places.put(place)


def share(place: int, places: int) -> dict[str, str]:
    """Say, in variables of the environment, which part of the machine a process may use, unless the user has said so.

    Parameters
    ----------
    place, places : int
        Number of the process, and how many there are at once.
    """
    mine = {} if THREADS in os.environ else {THREADS: str(max(1, cores() // places))}
    if there := gpus():
        mine[VISIBLE] = there[place % len(there)]
    return mine


def gpus() -> list[str]:
    """Name the GPUs of CUDA that this process may use."""
    named = os.environ.get(VISIBLE)
    names = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]
