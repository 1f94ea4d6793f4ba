"""Work that is done ahead, in processes of a DataLoader, and handed over in order."""

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

__all__ = ["default_workers", "in_worker", "prefetch_map"]

Request = TypeVar("Request")
Result = TypeVar("Result")


def default_workers() -> int:
    """How many processors this process may use, of which the processes that torchrun started have an equal part."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_worker() -> bool:
    """Whether this process is a worker, which does its work alone."""
    return get_worker_info() is not None


def prefetch_map(
    work: Callable[[Request], Result], requests: Iterable[Request], workers: int, pin: bool = False
) -> Iterator[Result]:
    """Do some work for each request, up to two requests ahead in each of some processes.

    Parameters
    ----------
    work : callable
        Is called in the workers.
    requests : iterable
        Is read as it is needed, however long it is.
    workers : int
        Processes; with 0, this one does the work when it is asked for.
    pin : bool
        Whether tensors are put into memory from which a GPU copies faster.

    Yields
    ------
    object
        What `work` made of each request, in their order.

    Raises
    ------
    KdcacheError
        What `work` raised, as if it had been raised here; or where a worker died, as the system kills what takes too
        much memory.
    """
    if workers == 0 or in_worker() or (isinstance(requests, Sized) and len(requests) < 2):
        yield from map(work, requests)
        return
    loader: DataLoader[Any] = DataLoader(
        _Work(work),
        batch_size=None,
        sampler=requests,
        num_workers=min(workers, len(requests)) if isinstance(requests, Sized) else workers,
        generator=torch.Generator(),  # or it would draw from the one that everybody draws from
        collate_fn=_as_it_is,
        worker_init_fn=_compute_alone,
        pin_memory=pin,
    )
    with _death_explained():
        for result in _begun(loader):  # which no variable holds: the workers end with the loop, whatever ends that
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
        remedy = "fewer --workers, if there is too little memory for so many"
        raise KdcacheError(problem("a worker process died", expected=remedy, got=first_line(error))) from None


class _Work(Dataset[Any]):
    """What a DataLoader takes for its data: the request is the index."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.work(request)
        except KdcacheError as error:  # a DataLoader would wrap it into a page of text
            return error


def _as_it_is(result: Any) -> Any:
    return result


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """Begin the workers, and leave Ctrl-C and SIGTERM to this process: it ends them when it has no use for them.

    They never hear of either, from their first moment on; this process hears of it as soon as they are begun. That a
    worker died it learns where it waits for a result: torch would raise that wherever it is, as in a step.
    """
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    of_children = signal.getsignal(signal.SIGCHLD)
    try:
        begun = iter(loader)
        # Where nobody closes them, Python asks them to end by SIGTERM as it ends, and would wait for ever.
        Finalize(begun, _kill, [set(multiprocessing.active_children()) - others], exitpriority=1)
        return begun
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, of_children)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _compute_alone(worker: int) -> None:
    torch.set_num_threads(1)
