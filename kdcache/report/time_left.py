"""How fast a work is, and how long it will still take."""

import time
from collections import deque
from collections.abc import Callable

__all__ = ["TimeLeft", "format_duration"]

PARTS_AVERAGED = 10

UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))

UNITS_SHOWN = 2


class TimeLeft:
    """Estimates the time left from the wall time of the latest parts of a work, whatever it was spent on.

    Parameters
    ----------
    total : int
        The whole work, in any unit.
    done : int
        What was done of it before.
    clock : callable
        Seconds since any moment.

    Attributes
    ----------
    total, done : int
    """

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self._clock = total, done, clock
        self._parts = deque([(clock(), done)], PARTS_AVERAGED + 1)

    def update(self, done: int, total: int) -> None:
        """Report what is done; another total, or less than before, begins another work."""
        if total != self.total or done < self.done:
            self._parts = deque([(self._clock(), done)], PARTS_AVERAGED + 1)
        self.done, self.total = done, total

    def end_part(self) -> None:
        """Report the end of a part of the work, such as an epoch."""
        self._parts.append((self._clock(), self.done))

    @property
    def rate(self) -> float | None:
        """Work done per second; ``None`` at the beginning."""
        began, before = self._parts[0]
        seconds = self._clock() - began
        return (self.done - before) / seconds if self.done > before and seconds > 0 else None

    def speed(self, unit: str) -> str:
        """Write the work done per second; nothing at the beginning."""
        return "" if self.rate is None else f"{self.rate:.{1 if self.rate < 10 else 0}f} {unit}/s"

    def __str__(self) -> str:
        """Write the time left; nothing at the beginning and at the end."""
        rate = self.rate
        if rate is None or self.done >= self.total:
            return ""
        return f"{format_duration((self.total - self.done) / rate)} left"


def format_duration(seconds: float) -> str:
    """Write a duration in its two largest units, such as ``3 min 20 s``."""
    rest = round(seconds)
    parts: list[tuple[int, str]] = []
    for unit, size in UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:UNITS_SHOWN] if count) or "0 s"
