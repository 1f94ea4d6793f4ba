"""Stopping on SIGTERM or SIGUSR1, as schedulers send them: the work in progress is finished and saved first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "STOPPED_EXIT_CODE",
    "STOP_SIGNALS",
    "Stopped",
    "cancel_interrupt_timer",
    "defer_stop",
    "end_work",
    "on_stop_signal",
    "stop_requested",
]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a process to stop; Slurm sends SIGUSR1 some time before a job's end with ``--signal=USR1@120``."""

STOPPED_EXIT_CODE = 143
"""Exit code of a process that one of `STOP_SIGNALS` stopped."""


class Stopped(BaseException):
    """A signal stopped the work. What was completed is saved."""


_stop_requested = False
_deferring = 0  # trainings, of which each thread may have one


def on_stop_signal(number: int, frame: object) -> None:
    """Handle `STOP_SIGNALS`: raise `Stopped`, or within `defer_stop` only set `stop_requested`."""
    global _stop_requested
    _stop_requested = True
    if not _deferring:
        raise Stopped


def cancel_interrupt_timer() -> None:
    """Stop repeating an interrupt, because it was handled; see `kdcache.cli`."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def end_work() -> None:
    """Let no signal interrupt the report of how the work ended: torchrun sends SIGTERM once a process has failed."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends a process that hangs at its exit
    cancel_interrupt_timer()


def stop_requested() -> bool:
    """Whether one of `STOP_SIGNALS` was received."""
    return _stop_requested


@contextmanager
def defer_stop() -> Iterator[None]:
    """Defer `STOP_SIGNALS`: the code inside checks `stop_requested` where it can stop.

    Raises
    ------
    Stopped
        At the end, if one was received and the code inside did not stop.
    """
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    if _stop_requested:
        raise Stopped
