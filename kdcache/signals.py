"""Being told to stop by a scheduler: what is under way comes to a good end first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SIGTERM_EXIT_CODE", "Stopped", "cancel_repeat", "defer_stop", "on_sigterm", "stop_requested"]

SIGTERM_EXIT_CODE = 143
"""Exit code of what SIGTERM stopped."""


class Stopped(BaseException):
    """The work was stopped by SIGTERM; what was whole is kept."""


_stop_requested = False
_deferred = False


def on_sigterm(number: int, frame: object) -> None:
    """Hear a signal: stop at once, or let those who asked for it stop where it suits them."""
    global _stop_requested
    _stop_requested = True
    if not _deferred:
        raise Stopped


def cancel_repeat() -> None:
    """Keep an interrupt that was noticed from being repeated, see `kdcache.cli`."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def stop_requested() -> bool:
    """Tell whether the work is to stop."""
    return _stop_requested


@contextmanager
def defer_stop() -> Iterator[None]:
    """Keep a signal from cutting in: those inside look at `stop_requested` where they can stop.

    Raises
    ------
    Stopped
        At the end, where nobody inside did so.
    """
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    if _stop_requested:
        raise Stopped
