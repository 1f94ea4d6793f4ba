"""The errors that kdcache raises on purpose.

Every message is one line in one form: what is wrong and where, what was expected, what was found, and what to do about
it. Any other exception that reaches the command line is a bug in kdcache, and is reported as such.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

__all__ = [
    "KdcacheError",
    "UsageError",
    "abbreviated",
    "did_you_mean",
    "first_line",
    "is_out_of_memory",
    "memory_explained",
    "names_parameters",
    "printable",
    "problem",
    "require_package",
    "with_remedy",
]

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "could not create a primitive", "bad_alloc")
"""What CUDA, torch's allocator, oneDNN and C++ say when memory runs out."""

MAX_VALUE_CHARS = 500
"""Length at which a message truncates a bad value, which may come from a file of any size."""

ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")
"""How Python prints an object, such as the file that a library could not read."""


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class KdcacheError(Exception):
    """A failure during the work, such as a loss that became NaN or a damaged file. The command line exits with 1."""

    exit_code = 1


class UsageError(KdcacheError):
    """Wrong use, such as a bad option or a missing folder. The command line exits with 2.

    Parameters
    ----------
    *problems : str
        One line for each problem. Problems that can be found together are reported together.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def problem(what: str, *, expected: object = None, got: object = None, remedy: str | None = None) -> str:
    """Write a message: ``what: expected ..., got .... Remedy.``

    Parameters
    ----------
    what : str
        What is wrong and where, naming the option, file or field.
    expected, got : object, optional
        What would have been right, and what was found instead. ``None`` leaves the part out.
    remedy : str, optional
        What to do about it: a sentence with a full stop.
    """
    details = [f"expected {expected}"] if expected is not None else []
    details += [f"got {_short(got)}"] if got is not None else []
    line = f"{what}: {', '.join(details)}" if details else what
    return printable(with_remedy(line, remedy) if remedy else line)


def require_package(what: str, package: str, extra: str) -> None:
    """Raise `UsageError` if an optional package is not installed, without importing it.

    Parameters
    ----------
    what : str
        What needs it, such as an option with its value.
    package : str
        As it is imported.
    extra : str
        What installs it: ``pip install 'kdcache[EXTRA]'``.
    """
    found = find_spec(package)
    if found is None or found.origin is None:  # a folder of this name, such as ./datasets, is no package
        raise UsageError(problem(f"{what}: {package} is not installed", remedy=f"Run pip install 'kdcache[{extra}]'."))


def with_remedy(message: str, remedy: str) -> str:
    """Add a sentence that says what to do to a message, which may end with a sentence of its own."""
    return f"{message} {remedy}" if message.endswith(".") else f"{message}. {remedy}"


def printable(text: object) -> str:
    """Escape control characters, so that text from a file is one line and cannot command a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}..."


def first_line(error: BaseException) -> str:
    """First line of an error's message, without addresses in memory, or the name of its type if it is empty."""
    return _short((ADDRESS.sub("", str(error)).strip().splitlines() or [type(error).__name__])[0])


def abbreviated(names: Iterable[str], limit: int) -> str:
    """List names in alphabetical order, and count those beyond a limit."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Propose a known name for one that is not known, as a remedy; ``None`` if none is similar."""
    by_lower = {one.lower(): one for one in known}
    similar = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"Did you mean {by_lower[similar[0]]}?" if similar else None


def names_parameters(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let the errors of a public function name its parameters, where they name options of the command line.

    Those at the beginning of a line, which say what is wrong, are written as they are, others in quotes.
    """
    parameters = {f"--{name.replace('_', '-')}": name for name in inspect.signature(function).parameters}
    parameters["--aug-option"] = "options"

    def renamed(match: re.Match[str]) -> str:
        name = parameters.get(match[0])
        return match[0] if name is None else name if not match.start() else f"'{name}'"

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except KdcacheError as error:
            lines = [re.sub(r"--[a-z-]+", renamed, line) for line in str(error).splitlines()]
            raise UsageError(*lines) if isinstance(error, UsageError) else type(error)("\n".join(lines)) from error

    return call


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the machine or its device ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def memory_explained(work: str, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error into a message that says what was too large and what to do.

    Parameters
    ----------
    work : str
        What needed the memory, as in "a step of 64 images".
    remedy : str
        What to try, as in "a smaller --batch-size". Of nested contexts, the innermost one writes the message.

    Raises
    ------
    KdcacheError
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise KdcacheError(problem(f"out of memory for {work}", remedy=f"Try {remedy}.")) from error
