"""A store of zarr in a folder: what is written is on the disk, and nothing leads out of the folder."""

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from kdcache.errors import KdcacheError, first_line, problem

__all__ = ["MAX_VALUE_BYTES", "ROOT_KEY", "DurableStore"]

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

    async def _open(self, *, mode: str | None = None) -> None:
        """Open the store. Its folder is made when something is written: looking for a store leaves nothing behind."""
        await super(LocalStore, self)._open()

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
