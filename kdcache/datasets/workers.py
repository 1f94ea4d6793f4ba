"""Prefetching: work done ahead in the worker processes of a DataLoader, with results in order."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kdcache.errors import KdcacheError, first_line, problem
from kdcache.machine import cores
from kdcache.signals import STOP_SIGNALS

__all__ = ["default_workers", "in_worker", "prefetch_map"]

Request = TypeVar("Request")
Result = TypeVar("Result")


def default_workers() -> int:
    """Number of cores per process: those of the machine, divided among the processes of torchrun."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_worker() -> bool:
    """Whether this process is a worker."""
    return get_worker_info() is not None


def prefetch_map(
    work: Callable[[Request], Result], requests: Iterable[Request], workers: int, pin: bool = False
) -> Iterator[Result]:
    """Apply a function to each request in worker processes, up to two requests ahead in each.

    Parameters
    ----------
    work : callable
        Called in the workers.
    requests : iterable
        Consumed lazily; it may be infinite.
    workers : int
        Number of processes. With 0, this process does the work when a result is needed.
    pin : bool
        Whether tensors are copied to pinned memory, from which a GPU copies faster.

    Yields
    ------
    object
        The results, in the order of the requests.

    Raises
    ------
    KdcacheError
        As `work` raised it, or because a worker died, for example killed by the system for lack of memory.
    """
    if workers == 0 or in_worker() or (isinstance(requests, Sized) and len(requests) < 2):
        yield from map(work, requests)
        return
    loader: DataLoader[Any] = DataLoader(
        _Work(work),
        batch_size=None,
        sampler=requests,
        num_workers=min(workers, len(requests)) if isinstance(requests, Sized) else workers,
        generator=torch.Generator(),  # by default it would draw from torch's global generator
        collate_fn=_identity,
        worker_init_fn=_use_one_thread,
        pin_memory=pin,
    )
    with _death_explained():
        for result in _start(loader):  # no variable refers to it, so that the workers end with the loop
            if isinstance(result, KdcacheError):
                raise result
            yield result


@contextmanager
def _death_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        remedy = "If memory ran out, use fewer --workers."
        raise KdcacheError(problem("a worker process died", got=first_line(error), remedy=remedy)) from None


class _Work(Dataset[Any]):
    """The dataset of the DataLoader: the index is the request, the item is the result."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.work(request)
        except KdcacheError as error:  # a DataLoader would wrap it into a page of traceback
            return error


def _identity(result: Any) -> Any:
    return result


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers, with Ctrl-C and `STOP_SIGNALS` blocked in them: this process handles these, and ends them.

    The signals are blocked while the workers start, which inherit that, and delivered to this process afterwards.
    torch's SIGCHLD handler is removed: when a worker dies, it raises anywhere in the main process, such as in a step.
    Waiting for a result raises too.
    """
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *STOP_SIGNALS})
    sigchld_handler = signal.getsignal(signal.SIGCHLD)
    try:
        started = iter(loader)
        # Workers that are left at exit get SIGTERM from Python, which they block, and Python would wait forever.
        Finalize(started, _kill, [set(multiprocessing.active_children()) - others], exitpriority=1)
        return started
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, sigchld_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _use_one_thread(worker: int) -> None:
    torch.set_num_threads(1)
