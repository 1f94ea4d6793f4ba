"""Where a store is: a folder or a URL, with durable writes and locks."""

import asyncio
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.locks import FileLock

__all__ = ["StoreLocation"]

ROOT_KEY = "zarr.json"
"""Key of the root metadata, which every store has."""

MAX_VALUE_BYTES = 64 * 2**20
"""Larger values are not read into memory: no chunk is nearly as large."""


class DurableStore(LocalStore):
    """A folder whose keys are on the disk once they are set; zarr renames files too, but does not sync them.

    Symbolic links inside of the folder are refused. A store that disappears while it is in use, for example because a
    disk was removed, is an error: it must not be created anew.
    """

    _root_seen = False

    async def exists(self, key: str) -> bool:
        """Tell whether a key exists."""
        found = await super().exists(key)
        self._root_seen |= found and key == ROOT_KEY
        return found

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key; anything but a regular file of at most `MAX_VALUE_BYTES` is a ``ValueError``."""
        path = self._path(key)
        with suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                return None
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_VALUE_BYTES:
                raise ValueError(f"{key} is not a regular file of at most {MAX_VALUE_BYTES} bytes")
        return await super().get(key, prototype, byte_range)

    async def delete(self, key: str) -> None:
        """Remove a key."""
        self._path_to_change(key)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys in a group."""
        self._path(prefix)
        await super().delete_dir(prefix)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key and sync it, with the folders that were created for it, to the disk."""
        path = self._path_to_change(key)
        if path.is_dir():
            remedy = "Remove the folder."
            raise KdcacheError(problem(f"{path} in a store", expected="a file", got="a folder", remedy=remedy))
        existing = next(folder for folder in path.parents if folder.exists())
        try:
            await super().set(key, value)
            await asyncio.to_thread(self._sync, path, existing)
        except OSError as error:
            raise KdcacheError(problem(f"could not write {path}", got=first_line(error))) from error

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write and sync a key, unless it exists."""
        if not await self.exists(key):
            await self.set(key, value)

    def _path(self, key: str) -> Path:
        if self._root_seen and not (self.root / ROOT_KEY).exists():
            raise KdcacheError(problem(f"store {self.root}", got=f"no {ROOT_KEY} any more: the store was removed"))
        path = self.root / key
        for entry in (path, *path.parents):
            if entry == self.root:
                break
            if entry.is_symlink():
                raise KdcacheError(problem(f"{entry} in a store", expected="a file or folder", got="a symbolic link"))
        return path

    def _path_to_change(self, key: str) -> Path:
        path = self._path(key)
        for folder in path.parents:
            if folder.is_file():
                remedy = "Remove the file."
                raise KdcacheError(problem(f"{folder} in a store", expected="a folder", got="a file", remedy=remedy))
        return path

    def _sync(self, path: Path, existing: Path) -> None:
        """Sync a file and every folder up to one that existed before."""
        if existing == self.root:  # zarr may have created it just now
            existing = self.root.parent
        for entry in (path, *path.parents):
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if entry == existing:
                return


class StoreLocation:
    """Keys, sizes and locks of the store in one place.

    Parameters
    ----------
    where : str or Path, optional
        A folder, or a URL that obstore supports (``s3://``, ``gs://``, ``az://``), with credentials from the
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
        If the folder is a file, or the URL is not supported.
    """

    def __init__(self, where: str | Path | None = None) -> None:
        self.where = "memory" if where is None else str(where)
        # Resolved, so that every name of a folder leads to the same lock file.
        self.folder = None if where is None or "://" in self.where else _resolved(Path(where))
        self.store: Store
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise UsageError(problem(f"--store {where}", expected="a folder or a URL", got="a file"))
            self.store = DurableStore(self.folder)
        else:
            self.store = MemoryStore() if where is None else _remote(self.where)

    def list_keys(self, group: str = "") -> list[str]:
        """List all keys, or those in a group."""

        async def collect() -> list[str]:
            return [key async for key in self.store.list_prefix(_prefix(group))]

        return sorted(sync(collect()))

    def has(self, key: str) -> bool:
        """Tell whether a key exists; a `KdcacheError` if a service does not respond."""
        try:
            return sync(self.store.exists(key))
        except Exception as error:  # each service has errors of its own
            raise KdcacheError(problem(f"could not reach the store {self.where}", got=first_line(error))) from error

    def holds_store(self) -> bool:
        """Tell whether a store exists here.

        Raises
        ------
        UsageError
            If there is anything else, which must not be mixed with a store.
        """
        if self.has(ROOT_KEY):
            return True
        # Unfinished files of other writers, or of killed ones, do not count.
        keys = [key for key in self.list_keys() if not key.endswith(".partial")]
        if ROOT_KEY in keys:  # another process created the store after the first look
            return True
        if keys:
            lost_root = any(key.startswith(("clean/", "images/", "replay/")) for key in keys)
            found = f"a store that lost its {ROOT_KEY}" if lost_root else "other files"
            raise UsageError(problem(f"--store {self.where}", expected="a store, or an empty folder", got=found))
        return False

    def size(self, group: str = "") -> int:
        """Bytes of all keys, or of those in a group."""

        async def add() -> int:
            return sum([await self.store.getsize(key) async for key in self.store.list_prefix(_prefix(group))])

        return sync(add())

    def delete(self, key: str) -> None:
        """Remove a key, if it exists."""
        sync(self.store.delete(key))

    def delete_group(self, group: str) -> None:
        """Remove every key in a group."""
        sync(self.store.delete_dir(group))

    def free_bytes(self) -> int | None:
        """Free space on the disk; ``None`` if it is unknown, as for a URL."""
        if self.folder is None:
            return None
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        status = os.statvfs(existing)
        return status.f_bavail * status.f_frsize

    def write_error(self) -> str | None:
        """Try whether this process can write here, and return why not; ``None`` if it can."""
        key = f"try.{secrets.token_hex(4)}.partial"
        try:
            with self.lock(key, wait=False):
                if self.folder is None or self.folder.exists():
                    sync(self.store.set(key, default_buffer_prototype().buffer.from_bytes(b"try")))
        except Exception as error:  # each service has errors of its own
            return getattr(error.__cause__, "strerror", None) or first_line(error)
        finally:
            with suppress(Exception):
                self.delete(key)
        return None

    @contextmanager
    def lock(self, name: str | None, wait: bool = True) -> Iterator[bool]:
        """Hold a lock between processes and threads within a ``with`` block.

        The kernel releases the locks of a process that dies. A URL has no locks: only one process may write there.

        Parameters
        ----------
        name : str or None
            What will be written; ``None`` is everything.
        wait : bool
            Whether to wait for another process or thread that holds it.

        Yields
        ------
        bool
            Whether the lock is held; always true after waiting.
        """
        if self.folder is None:
            yield True
            return
        with FileLock(self.folder.with_name(f"{self.folder.name}.lock"), name).held(wait) as held:
            yield held


def _resolved(folder: Path) -> Path:
    try:
        return folder.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a cycle of symbolic links, or an unknown user in ~user
        raise UsageError(problem(f"could not resolve the path --store {folder}", got=first_line(error))) from None


def _prefix(group: str) -> str:
    return f"{group}/" if group else ""


def _remote(url: str) -> Store:
    try:
        from obstore.store import from_url
    except ImportError:
        remedy = "Install obstore with pip install 'kdcache[url]'."
        raise UsageError(problem(f"--store {url}", expected="a folder", got="a URL", remedy=remedy)) from None
    options: dict[str, Any] = {}
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["client_options"] = {"allow_http": True}
    try:
        return ObjectStore(from_url(url, **options))
    except Exception as error:  # each service has errors of its own
        raise UsageError(
            problem(f"--store {url}", expected="a URL that obstore supports", got=first_line(error))
        ) from error
