"""Atomic writing of files and folders."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Set
from pathlib import Path

from safetensors import SafetensorError

from kdcache.errors import KdcacheError, UsageError, abbreviated, first_line, problem

__all__ = [
    "expanded",
    "read_text",
    "rename_durably",
    "require_replaceable",
    "require_writable",
    "require_writable_file",
    "user_cache_folder",
    "write_atomically",
    "write_folder_atomically",
    "write_json",
    "write_text",
]

MAX_NAMES_LISTED = 3


def expanded(path: str | Path) -> Path:
    """Replace ``~`` and ``~user`` by a home folder; `UsageError` if there is none."""
    found = os.path.expanduser(path)
    if str(found).startswith("~"):
        raise UsageError(problem(f"no home folder for {Path(path).parts[0]} of {path}"))
    return Path(found)


def user_cache_folder() -> Path:
    """Folder for what may be deleted: ``$XDG_CACHE_HOME/kdcache``, or ``~/.cache/kdcache``.

    Raises
    ------
    FileNotFoundError
        If there is no home folder.
    """
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME", ""))
    if not os.path.isabs(home):  # the specification says to ignore it
        home = os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        raise FileNotFoundError("no home folder, and no XDG_CACHE_HOME")
    return Path(home) / "kdcache"


def read_text(path: Path) -> str:
    """Read a text file, which may begin with a byte order mark; `UsageError` if it cannot be read or is not UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(problem(f"could not read {path}", expected="UTF-8", got=first_line(error))) from None
    except OSError as error:
        raise UsageError(problem(f"could not read {path}", got=error.strerror)) from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that after any interruption it has the old content or the new, never a part.

    Parameters
    ----------
    path : Path
        The file to create or replace; its folder must exist.
    write : callable
        Writes the content to the path that it gets, an empty file in a temporary folder beside `path`, which may get
        other files: some libraries write one and rename it. If it raises, `path` is unchanged.

    Raises
    ------
    KdcacheError
        If the file cannot be written, for example because the disk is full, or if anything but a file is there.
    """
    if kind := _no_file(path):
        raise KdcacheError(problem(f"could not write {path}", expected="a file", got=kind))
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary = folder / path.name
    try:
        folder.mkdir()
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask says; safetensors would restrict it
        write(temporary)
        temporary.chmod(mode)
        _sync(temporary)  # the content must be on the disk before the name refers to it
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise KdcacheError(problem(f"could not write {path}", got=first_line(error))) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_writable_file(path: Path, option: str = "--out") -> None:
    """Check before the work of a command that its output can be written to a file, see `require_writable`.

    Raises
    ------
    UsageError
        If not, or if there is something else, such as a folder or a device, which would be replaced.
    """
    if kind := _no_file(path):
        raise UsageError(problem(f"could not write {path}", expected="the path of a file", got=kind))
    require_writable(path.parent, option)


def _no_file(path: Path) -> str | None:
    """Tell what exists at a path if it is no file; in the folder of devices, links like ``/dev/stdout`` are none."""
    if os.path.isdir(path):
        return "a folder"
    if os.path.realpath(path.parent) == "/dev" or (os.path.exists(path) and not os.path.isfile(path)):
        return "a device or FIFO"
    return None


def require_writable(folder: Path, option: str = "--out") -> None:
    """Create a folder for the output of a command, and check before its work that files can be written there.

    Raises
    ------
    UsageError
        If not, naming the option or argument.
    """
    temporary = folder / f".try.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        remedy = f"Name another place with {option}."
        raise UsageError(problem(f"could not write to {folder}", got=error.strerror, remedy=remedy)) from None


def require_replaceable(folder: Path, content: Set[str], kind: str) -> None:
    """Check before the work of a command that its output can be written as a folder.

    Parameters
    ----------
    folder : Path
    content : set of str
        Names of all files in an output of an earlier time, which may be replaced.
    kind : str
        What it is called.

    Raises
    ------
    UsageError
        If there is anything else.
    """
    if os.path.lexists(folder):
        is_folder = folder.is_dir() and not folder.is_symlink()
        found = set(os.listdir(folder)) if is_folder else set()
        if not is_folder or found not in (set(), content):
            got = abbreviated(found - content or found, MAX_NAMES_LISTED) if is_folder else "something else"
            expected = f"a new or empty folder, or one with {kind} alone"
            raise UsageError(problem(f"could not write {folder}", expected=expected, got=got))
    require_writable(folder.resolve().parent)


def rename_durably(draft: Path, path: Path) -> None:
    """Rename a finished draft to `path`, with its content safely on the disk before."""
    _sync(draft)
    os.replace(draft, path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text to a file as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, obj: object) -> None:
    """Write an object to a file as indented JSON, atomically. NaN and infinity raise ``ValueError``."""
    write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder so that `path` never holds a part of it. An existing folder is replaced.

    Parameters
    ----------
    path : Path
        The folder to create; its parent must exist.
    write : callable
        Creates and fills the folder that it gets, a temporary one beside `path`.
    """
    mark = secrets.token_hex(4)
    temporary, old = (path.with_name(f".{path.name}.{mark}.{word}") for word in ("tmp", "old"))
    try:
        write(temporary)
        for entry in (temporary, *temporary.rglob("*")):
            _sync(entry)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
