"""The errors that kdcache raises on purpose.

Every message is one line in one form: what is wrong and where, what was expected, what was found, and what to do
about it. Any other exception that reaches the command line is a bug in kdcache, and is reported as such.
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["KdcacheError", "UsageError", "first_line", "is_out_of_memory", "memory_explained", "printable", "problem"]

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "could not create a primitive", "bad_alloc")
"""What devices, torch's allocator, oneDNN and C++ say where the memory does not suffice."""

MAX_VALUE_CHARS = 500
"""Characters of a bad value that a message repeats: the value may come from a file of any size."""


class KdcacheError(Exception):
    """A failure at work: a loss that became NaN, a damaged file. The command line exits with 1."""

    exit_code = 1


class UsageError(KdcacheError):
    """Wrong use: a bad option, a missing folder, a teacher that does not fit. The command line exits with 2.

    Parameters
    ----------
    *problems : str
        One line for each problem; all problems that can be found together are reported together.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def problem(what: str, *, expected: object = None, got: object = None, remedy: str | None = None) -> str:
    """Write one line in the project's form: ``what: expected ..., got .... Remedy.``.

    Parameters
    ----------
    what : str
        What is wrong and where, naming the option, file or field.
    expected, got : object, optional
        What would have been right, and what was found instead. ``None`` leaves the part out.
    remedy : str, optional
        What to do about it: a sentence of its own, with its full stop.
    """
    details = [f"expected {expected}"] if expected is not None else []
    details += [f"got {_short(got)}"] if got is not None else []
    line = f"{what}: {', '.join(details)}" if details else what
    return printable(f"{line}. {remedy}" if remedy else line)


def printable(text: object) -> str:
    """Write a text that may come from a file so that it is one line, and commands nothing to a terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]} and so on"


def first_line(error: Exception) -> str:
    """Put what a library says into the one line of a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
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
        if not is_out_of_memory(error):
            raise
        raise KdcacheError(problem("out of memory", expected=remedy, got=work)) from error
