"""Locks between processes and between the threads of one, which the kernel releases when their process dies.

`filelock` locks whole files: a store of answers, which locks each of thousands of chunks, would need a file for each.
Here one empty file holds a lock for every name.
"""

import fcntl
import hashlib
import io
import logging
import os
import stat
import struct
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import KdcacheError, problem

__all__ = ["FileLock"]

log = logging.getLogger("kdcache")

# These locks belong to the open file, not to the process: each lock has a file of its own, so that threads exclude one
# another, and closing a file releases no other lock. Python has no names for them on macOS.
SET_LOCK: int = getattr(fcntl, "F_OFD_SETLK", 90)
SET_LOCK_WAITING: int = getattr(fcntl, "F_OFD_SETLKW", 91)

# A forked child has the files of its parent, and with them the locks, even after the parent has died.
_files: "weakref.WeakSet[io.FileIO]" = weakref.WeakSet()


def _close_in_child() -> None:
    for file in list(_files):
        file.close()


os.register_at_fork(after_in_child=_close_in_child)


class FileLock:
    """An exclusive lock on a name within a lock file.

    Parameters
    ----------
    path : Path
        The lock file, created on acquisition together with its folder.
    name : str, optional
        What is locked, by default everything: the whole file excludes every name.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name
        self._file: io.FileIO | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Acquire the lock.

        Parameters
        ----------
        wait : bool
            Whether to wait for another process or thread that holds it.

        Returns
        -------
        bool
            Whether the lock is held; always true after waiting.

        Raises
        ------
        KdcacheError
            Where the lock file cannot be written, or is no regular file.
        """
        try:
            file = _open(self.path)
        except OSError as error:
            raise KdcacheError(problem(f"could not write {self.path}", got=error.strerror)) from error
        try:
            acquired = self._lock(file, SET_LOCK)
            if not acquired and wait:
                log.info("waiting for the lock on %s in %s, which is held elsewhere", self.name or "all", self.path)
                acquired = self._lock(file, SET_LOCK_WAITING)
        except OSError as error:
            file.close()
            raise KdcacheError(problem(f"could not lock {self.path}", got=error.strerror)) from error
        if not acquired:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextmanager
    def held(self, wait: bool = True) -> Iterator[bool]:
        """Hold the lock within a ``with`` block, which receives whether it is held, see `acquire`."""
        acquired = self.acquire(wait)
        try:
            yield acquired
        finally:
            self.release()

    def _lock(self, file: io.FileIO, command: int) -> bool:
        start, length = _byte_range(self.name)
        if sys.platform == "darwin":
            request = struct.pack("qqihh", start, length, 0, fcntl.F_WRLCK, os.SEEK_SET)
        else:
            request = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(file, command, request)
        except (BlockingIOError, PermissionError):
            return False
        return True


def _open(path: Path) -> io.FileIO:
    """Open a lock file; as one that does not block, so that a named pipe is refused instead of waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise KdcacheError(problem(f"lock file {path}", expected="a regular file", got="a symbolic link"))
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = io.FileIO(path, "r+", opener=lambda name, _: os.open(name, flags, 0o666))
    _files.add(file)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise KdcacheError(problem(f"lock file {path}", expected="a regular file", got="another kind of file"))
    return file


def _byte_range(name: str | None) -> tuple[int, int]:
    """Give each name one byte of the file, at an offset that is its hash; ``None`` covers the whole file."""
    if name is None:
        return 0, 0
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2, 1
