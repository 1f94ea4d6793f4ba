"""Writing files and folders whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from kdcache.errors import KdcacheError, first_line, problem

__all__ = ["rename_durably", "write_atomically", "write_folder_atomically", "write_json", "write_text"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that after any interruption `path` holds the old content or the new, never a part.

    Parameters
    ----------
    path : Path
        The file to make or replace; its folder must exist.
    write : callable
        Is given a temporary name in the same folder and writes the whole content there. What it raises is raised
        on, the temporary file removed and `path` left as it was.

    Raises
    ------
    KdcacheError
        Where the disk is full, or cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask grants; safetensors grants less
        write(temporary)
        temporary.chmod(mode)
        _sync(temporary)  # the content must be on the disk before the name points to it
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise KdcacheError(problem(f"cannot write {path}", got=first_line(error))) from error
    finally:
        temporary.unlink(missing_ok=True)


def rename_durably(draft: Path, path: Path) -> None:
    """Give a finished draft its name; it may have been written by several processes, one after the other."""
    _sync(draft)
    os.replace(draft, path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, obj: object) -> None:
    """Write `obj` to `path` as indented JSON, whole or not at all; NaN and infinity are a ``ValueError``."""
    write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder so that `path` never holds a part of it; a folder that was there before is replaced.

    Parameters
    ----------
    path : Path
        The folder to make; its parent must exist.
    write : callable
        Is given a temporary name beside `path`, makes that folder and fills it.
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
