"""Where a store lies: a folder, or a URL; how what is written there is made durable, and who may write."""

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.locks import FileLock

__all__ = ["StoreLocation"]


METADATA = "zarr.json"
"""The key that each store has from its first moment on."""

MOST_BYTES = 64 * 2**20
"""A key with more bytes is none of ours, and is not read into memory: chunks are far smaller."""


class DurableStore(LocalStore):
    """A folder in which a key that was set is on the disk; zarr's own renames, but does not wait for the disk.

    Nothing in it leads elsewhere: a symbolic link among its files or folders is refused. Once its metadata were seen,
    they stay: a folder that vanishes, as with a disk that is taken away, must not be begun anew in the midst of work.
    """

    _seen = False

    async def exists(self, key: str) -> bool:
        """Tell whether a key is there."""
        there = await super().exists(key)
        self._seen |= there and key == METADATA
        return there

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key; what is no file, or too large for one of ours, is a ``ValueError``."""
        path = self._inside(key)
        with suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                return None
            if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
                raise ValueError(f"{key} is no file of at most {MOST_BYTES} bytes")
        return await super().get(key, prototype, byte_range)

    async def delete(self, key: str) -> None:
        """Remove a key, or all behind it."""
        self._inside(key)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys in a group."""
        self._inside(prefix)
        await super().delete_dir(prefix)

    def _inside(self, key: str) -> Path:
        if self._seen and not (self.root / METADATA).exists():
            stays = "a folder that stays where it is while somebody works with it"
            raise KdcacheError(problem(f"store {self.root}", expected=stays, got="one that is gone"))
        path = self.root / key
        for entry in (path, *path.parents):
            if entry == self.root:
                break
            if entry.is_symlink():
                raise KdcacheError(problem(f"{entry} in a store", expected="files and folders", got="a symbolic link"))
        return path

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key, and wait until the file and whatever new folders lead to it are on the disk."""
        path = self._inside(key)
        if path.is_dir():
            raise KdcacheError(problem(f"{path} in a store", expected="a file", got="a folder"))
        old = next(folder for folder in path.parents if folder.exists())
        try:
            await super().set(key, value)
            await asyncio.to_thread(self._sync, path, old)
        except OSError as error:
            raise KdcacheError(problem(f"cannot write {path}", got=first_line(error))) from error

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a key that is not there, likewise."""
        if not await self.exists(key):
            await self.set(key, value)

    def _sync(self, path: Path, old: Path) -> None:
        if old == self.root:  # which zarr may have made just now
            old = self.root.parent
        for entry in (path, *path.parents):
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if entry == old:  # the last one whose entries are new
                return


class StoreLocation:
    """A zarr store with its keys, sizes and locks.

    Parameters
    ----------
    where : str or Path, optional
        A folder, or a URL that obstore knows (``s3://``, ``gs://``, ``az://``), whose credentials come from the
        environment; by default memory.

    Attributes
    ----------
    where : str
    folder : Path or None
        The folder, if it is one.
    store : zarr.abc.store.Store

    Raises
    ------
    UsageError
        Where the URL cannot be used.
    """

    def __init__(self, where: str | Path | None = None) -> None:
        self.where = "memory" if where is None else str(where)
        # Resolved, so that every name of a folder leads to the same lock file.
        self.folder = None if where is None or "://" in self.where else _resolved(Path(where))
        self.store: Store
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise UsageError(problem("store of answers", expected="a folder or a URL", got=where))
            self.store = DurableStore(self.folder)
        else:
            self.store = MemoryStore() if where is None else _remote(self.where)

    def list_keys(self, group: str = "") -> list[str]:
        """List every key, or those in a group."""

        async def collect() -> list[str]:
            return [key async for key in self.store.list_prefix(_inside(group))]

        return sorted(sync(collect()))

    def has(self, key: str) -> bool:
        """Tell whether a key is there; a service that cannot be reached is a `KdcacheError`."""
        try:
            return sync(self.store.exists(key))
        except Exception as error:  # each service has errors of its own
            raise KdcacheError(problem(f"cannot reach the store {self.where}", got=first_line(error))) from error

    def size(self, group: str = "") -> int:
        """Add up the bytes that are stored, or those in a group."""

        async def add() -> int:
            return sum([await self.store.getsize(key) async for key in self.store.list_prefix(_inside(group))])

        return sync(add())

    def delete(self, key: str) -> None:
        """Remove a key, which need not be there."""
        sync(self.store.delete(key))

    def delete_group(self, group: str) -> None:
        """Remove every key in a group."""
        sync(self.store.delete_dir(group))

    def free_bytes(self) -> int | None:
        """Room on the disk; ``None`` where nobody can tell, as at a URL."""
        if self.folder is None:
            return None
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        status = os.statvfs(there)
        return status.f_bavail * status.f_frsize

    @contextmanager
    def lock(self, name: str | None, wait: bool = True) -> Iterator[bool]:
        """Hold a kernel lock, so that one process at a time writes what `name` says.

        A process that dies gives up its locks. At a URL there are none: there, one process at a time may write.

        Parameters
        ----------
        name : str or None
            What will be written; ``None`` is everything.
        wait : bool
            Whether to wait for another process that holds it.

        Yields
        ------
        bool
            Whether it is held; always true after waiting.
        """
        if self.folder is None:
            yield True
            return
        with FileLock(self.folder.with_name(f"{self.folder.name}.lock"), name).held(wait) as held:
            yield held


def _resolved(folder: Path) -> Path:
    try:
        return folder.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # links that lead round in a circle, a home that nobody has
        raise UsageError(problem(f"store of answers {folder}", got=first_line(error))) from None


def _inside(group: str) -> str:
    return f"{group}/" if group else ""


def _remote(url: str) -> Store:
    try:
        from obstore.store import from_url
    except ImportError:
        remedy = "a folder, or a URL after pip install 'kdcache[url]'"
        raise UsageError(problem(f"--store {url}", expected=remedy)) from None
    options: dict[str, Any] = {}
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["client_options"] = {"allow_http": True}
    try:
        return ObjectStore(from_url(url, **options))
    except Exception as error:  # obstore's own kinds of errors differ from service to service
        raise UsageError(
            problem(f"--store {url}", expected="a URL that obstore knows", got=first_line(error))
        ) from error
