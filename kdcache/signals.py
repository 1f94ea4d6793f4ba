"""Stopping on SIGTERM, as schedulers send it: the work in progress is finished and saved first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "SIGTERM_EXIT_CODE",
    "Stopped",
    "cancel_interrupt_timer",
    "defer_stop",
    "end_work",
    "on_sigterm",
    "stop_requested",
]

SIGTERM_EXIT_CODE = 143
"""Exit code of a process that SIGTERM stopped."""


class Stopped(BaseException):
    """SIGTERM stopped the work. What was completed is saved."""


_stop_requested = False
_deferring = 0  # trainings, of which each thread may have one


def on_sigterm(number: int, frame: object) -> None:
    """Handle SIGTERM: raise `Stopped`, or within `defer_stop` only set `stop_requested`."""
    global _stop_requested
    _stop_requested = True
    if not _deferring:
        raise Stopped


def cancel_interrupt_timer() -> None:
    """Stop repeating an interrupt, because it was handled; see `kdcache.cli`."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def end_work() -> None:
    """Let no signal interrupt the report of how the work ended: torchrun sends SIGTERM once a process has failed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends a process that hangs at its exit
    cancel_interrupt_timer()


def stop_requested() -> bool:
    """Whether SIGTERM was received."""
    return _stop_requested


@contextmanager
def defer_stop() -> Iterator[None]:
    """Defer SIGTERM: the code inside checks `stop_requested` where it can stop.

    Raises
    ------
    Stopped
        At the end, if SIGTERM was received and the code inside did not stop.
    """
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    if _stop_requested:
        raise Stopped
