"""Locks between processes, which the kernel releases when a process dies.

`filelock` locks whole files: a store of answers, which locks each of thousands of chunks, would need a file for each.
Here one empty file holds a lock for every name.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import KdcacheError, problem

__all__ = ["FileLock"]

log = logging.getLogger("kdcache")

# Closing any descriptor of a file drops all locks that the process holds on it: each file is opened once, for good.
_descriptors: dict[tuple[int, int], int] = {}


class FileLock:
    """An exclusive lock on a name within a lock file. Within one process it excludes nobody.

    Parameters
    ----------
    path : Path
        The lock file, created on acquisition together with its folder.
    name : str, optional
        What is locked, by default everything: the whole file excludes every name.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name
        self._start, self._length = _byte_range(name)
        self._descriptor: int | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Acquire the lock.

        Parameters
        ----------
        wait : bool
            Whether to wait for another process that holds it.

        Returns
        -------
        bool
            Whether the lock is held; always true after waiting.

        Raises
        ------
        KdcacheError
            Where the lock file is a symbolic link.
        """
        descriptor = _open(self.path)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, self._length, self._start)
        except (BlockingIOError, PermissionError):
            if not wait:
                return False
            log.info("waiting for the process that holds the lock on %s in %s", self.name or "everything", self.path)
            fcntl.lockf(descriptor, fcntl.LOCK_EX, self._length, self._start)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, self._length, self._start)
            self._descriptor = None

    @contextmanager
    def held(self, wait: bool = True) -> Iterator[bool]:
        """Hold the lock within a ``with`` block, which receives whether it is held, see `acquire`."""
        acquired = self.acquire(wait)
        try:
            yield acquired
        finally:
            self.release()


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise KdcacheError(problem(f"lock file {path}", expected="a regular file", got="a symbolic link"))
    path.touch()
    status = path.stat()
    key = status.st_dev, status.st_ino
    if key not in _descriptors:
        _descriptors[key] = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    return _descriptors[key]


def _byte_range(name: str | None) -> tuple[int, int]:
    """Give each name one byte of the file, at an offset that is its hash; ``None`` covers the whole file."""
    if name is None:
        return 0, 0
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2, 1
