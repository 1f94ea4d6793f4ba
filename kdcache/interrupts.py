"""Being told to stop by a scheduler: what is under way comes to a good end first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TERMINATED", "Stopped", "asked", "deferred", "got_through", "heard"]

TERMINATED = 143
"""Exit code of what SIGTERM stopped."""


class Stopped(BaseException):
    """The work was stopped by SIGTERM; what was whole is kept."""


_asked = False
_deferred = False


def heard(number: int, frame: object) -> None:
    """Hear a signal: stop at once, or let those who asked for it stop where it suits them."""
    global _asked
    _asked = True
    if not _deferred:
        raise Stopped


def got_through() -> None:
    """Keep an interrupt that was noticed from being repeated, see `kdcache.cli`."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def asked() -> bool:
    """Tell whether the work is to stop."""
    return _asked


@contextmanager
def deferred() -> Iterator[None]:
    """Keep a signal from cutting in: those inside look at `asked` where they can stop, at the latest at the end.

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
    if _asked:
        raise Stopped
