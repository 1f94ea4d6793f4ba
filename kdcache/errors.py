"""The errors that kdcache raises on purpose.

Every message is one line in one form: what is wrong and where, what is allowed, what was given. Any other
exception that reaches the command line is a defect of kdcache, and is reported as such.
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["KdcacheError", "UsageError", "fault", "first_line", "lacks_memory", "memory_explained", "printable"]

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "could not create a primitive", "bad_alloc")
"""What devices, torch's allocator, oneDNN and C++ say where the memory does not suffice."""

LONGEST_GIVEN = 500
"""Characters of what was given that a message repeats: it may come from a file of any size."""


class KdcacheError(Exception):
    """A failure at work: a loss that became NaN, a damaged file. The command line exits with 1."""

    exit_code = 1


class UsageError(KdcacheError):
    """Wrong use: a bad option, a missing folder, a teacher that does not fit. The command line exits with 2.

    Parameters
    ----------
    *faults : str
        One line for each fault; all faults that can be known together are reported together.
    """

    exit_code = 2

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def fault(what: str, *, allowed: object = None, given: object = None) -> str:
    """One line in the project's form, ``what: allowed ..., given ...``.

    Parameters
    ----------
    what : str
        What is wrong and where, naming the option, file or field.
    allowed, given : object, optional
        What would have been right, and what was found instead. ``None`` leaves the part out.
    """
    details = [f"allowed {allowed}"] if allowed is not None else []
    details += [f"given {_short(given)}"] if given is not None else []
    return printable(f"{what}: {', '.join(details)}" if details else what)


def printable(text: object) -> str:
    """Write a text that may come from a file so that it is one line, and commands nothing to a terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_GIVEN else f"{text[:LONGEST_GIVEN]} and so on"


def first_line(error: Exception) -> str:
    """Put what a library says into the one line of a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error means that the memory of the machine or of its device does not suffice."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def memory_explained(work: str, remedy: str) -> Iterator[None]:
    """Say what was too large and what can be done where the memory does not suffice for some work.

    Parameters
    ----------
    work, remedy : str
        In the words of the message. Work within other work explains itself.

    Raises
    ------
    KdcacheError
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise KdcacheError(fault("out of memory", allowed=remedy, given=work)) from error
