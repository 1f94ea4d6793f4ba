"""Files of a run folder, which may come from any disk and from anybody.

Only regular files are read, so that no link leads elsewhere and no FIFO is waited for. JSON is checked before it is
used. And each file ends with a checksum of its content: JSON objects and the last one of JSON lines under the key
``sha256``, TOML in a comment. `kdcache.tensor_files` does the same for tensors.
"""

import errno
import hashlib
import json
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from kdcache.errors import UsageError, first_line, problem
from kdcache.files import write_text

__all__ = [
    "digest",
    "kind_of",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_lines",
    "read_toml",
    "require_digest",
    "require_kind",
    "write_json",
    "write_lines",
    "write_toml",
]

Document = TypeVar("Document")

FILE, FOLDER = "a regular file", "a folder"
"""Kinds of entries that a run folder has."""

MAX_BYTES = 256 * 2**20
"""Larger files are not read: those of a run with a million epochs are not nearly as large."""

CHECKSUM = "sha256"

TOML_CHECKSUM = f"# {CHECKSUM} = "

_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISREG, FILE),
    (stat.S_ISDIR, FOLDER),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


def kind_of(path: Path) -> str | None:
    """Say what a path is, without following it; ``None`` if there is nothing, as at a path that cannot exist."""
    try:
        mode = path.lstat().st_mode
    except ValueError:  # NUL in the path
        return None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise
        return None
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a device")


def require_kind(path: Path, expected: str, remedy: str | None = None) -> None:
    """Raise a `UsageError` if a path exists and is anything else than `FILE` or `FOLDER`."""
    found = kind_of(path)
    if found not in (expected, None):
        raise UsageError(problem(str(path), expected=expected, got=found, remedy=remedy))


def read_bytes(path: Path) -> bytes:
    """Read a regular file.

    Raises
    ------
    UsageError
        If it is missing, anything else, too large, or cannot be read.
    """
    require_kind(path, FILE)
    try:
        # Opened so that even what has just taken the place of the file is neither followed nor waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise UsageError(problem(str(path), expected=f"a regular file of at most {MAX_BYTES} bytes"))
            return file.read()
    except OSError as error:
        raise UsageError(problem(f"could not read {path}", got=error.strerror)) from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that is at hand for any use: of finite numbers, 64-bit integers, and text that can be written.

    Raises
    ------
    ValueError
        For anything else, and for JSON that is nested too deeply.
    """
    try:
        document = json.loads(text, parse_constant=_refuse, parse_int=_integer)
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()  # raises for lone surrogates, and for 1e999
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the number {constant}")


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def digest(value: object) -> str:
    """SHA-256, in hexadecimal, of a JSON value."""
    return hashlib.sha256(json.dumps(value, allow_nan=False).encode()).hexdigest()


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write a JSON object with its checksum, atomically."""
    write_text(path, json.dumps({**document, CHECKSUM: digest(dict(document))}, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote.

    Raises
    ------
    UsageError
        If the file is missing, damaged or altered.
    """
    document: dict[str, Any] = _parse(path, read_bytes(path), dict)
    stated = document.pop(CHECKSUM, None)
    _compare(path, stated, digest(document))
    return document


def write_lines(path: Path, documents: Iterable[Mapping[str, object]]) -> None:
    """Write JSON objects, one a line and at least one, with the checksum of all in the last one; atomically."""
    lines = [dict(document) for document in documents]
    checksum = digest(lines)
    lines[-1] = {**lines[-1], CHECKSUM: checksum}
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects that `write_lines` wrote; errors as for `read_json`."""
    content = read_bytes(path).splitlines()
    lines = _parse(path, b"[%b]" % b",".join(content), list)
    if len(lines) != len(content) or not all(isinstance(line, dict) for line in lines):
        raise UsageError(problem(str(path), expected="a JSON object in each line", got="others"))
    _compare(path, lines[-1].pop(CHECKSUM, None) if lines else None, digest(lines))
    return lines


def write_toml(path: Path, text: str) -> None:
    """Write TOML with its checksum in a comment at the end, atomically."""
    write_text(path, f"{text}{TOML_CHECKSUM}{digest(text)}\n")


def read_toml(path: Path) -> dict[str, Any]:
    """Read the TOML that `write_toml` wrote; errors as for `read_json`."""
    try:
        text = read_bytes(path).decode()
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not all that tomllib raises is its own
        raise UsageError(problem(f"could not read {path} as TOML", got=first_line(error))) from None
    content, found, stated = text.rpartition(TOML_CHECKSUM)
    _compare(path, stated.removesuffix("\n") if found else None, digest(content))
    return document


def require_digest(what: str, stated: object, computed: str, remedy: str | None = None) -> None:
    """Raise a `UsageError` unless what a file states is the SHA-256 of its content."""
    if stated != computed:
        is_digest = isinstance(stated, str) and len(stated) == len(computed)
        raise UsageError(
            problem(what, expected=stated if is_digest else "one in the file", got=computed, remedy=remedy)
        )


def _parse(path: Path, content: bytes, kind: type[Document]) -> Document:
    try:
        document = parse_json(content)
    except ValueError as error:
        raise UsageError(problem(f"could not read {path}", expected="JSON", got=first_line(error))) from None
    if not isinstance(document, kind):
        raise UsageError(problem(str(path), expected="a JSON object", got=f"a {type(document).__name__}"))
    return document


def _compare(path: Path, stated: object, computed: str) -> None:
    what = f"could not read {path}, which is damaged or was altered: its SHA-256"
    require_digest(what, stated, computed, remedy="Restore it from a copy, or train the run again.")
