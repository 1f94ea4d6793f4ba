"""Where a store is: a folder or a URL, with durable writes and locks."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore, ObjectStore

from kdcache.answers.durable_store import ROOT_KEY, DurableStore
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.locks import FileLock

__all__ = ["StoreLocation"]


class StoreLocation:
    """Keys, sizes and locks of the store in one place.

    Parameters
    ----------
    where : str or Path, optional
        A folder, or a URL that obstore supports (``s3://``, ``gs://``, ``az://``), with credentials from the
        environment; by default memory. From ``http://`` and ``https://``, keys can be read, but not listed.
    store : Store, optional
        What reads the keys there, if neither zarr's store of the folder or URL does.
    named_by : str
        The option that names it, for messages.

    Attributes
    ----------
    where : str
    folder : Path or None
        The folder, if it is one that is read as it is.
    store : zarr.abc.store.Store

    Raises
    ------
    UsageError
        If the folder is a file, or the URL is not supported.
    """

    def __init__(self, where: str | Path | None = None, store: Store | None = None, named_by: str = "--store") -> None:
        self.where, self.folder = "memory" if where is None else str(where), None
        self.store: Store
        if store is not None:
            self.store = store
        elif where is None:
            self.store = MemoryStore()
        elif "://" in self.where:
            self.store = _remote(self.where, named_by)
        else:
            # Resolved, so that every name of a folder leads to the same lock file.
            self.folder = _resolved(Path(where), named_by)
            if self.folder.exists() and not self.folder.is_dir():
                raise UsageError(problem(f"{named_by} {where}", expected="a folder or a URL", got="a file"))
            self.store = DurableStore(self.folder)

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
            remedy = "If 'kdcache cache pull' was interrupted there, run it again." if lost_root else None
            expected = "a store, or an empty folder"
            raise UsageError(problem(f"--store {self.where}", expected=expected, got=found, remedy=remedy))
        return False

    def size(self, group: str = "") -> int:
        """Bytes of all keys, or of those in a group."""

        async def add() -> int:
            return sum([await self.store.getsize(key) async for key in self.store.list_prefix(_prefix(group))])

        return sync(add())

    def read(self, key: str) -> bytes | None:
        """Read a key; ``None`` if there is none. A `KdcacheError` if a service does not respond."""
        try:
            found = sync(self.store.get(key, default_buffer_prototype()))
        except KdcacheError:
            raise
        except Exception as error:  # each service has errors of its own
            raise KdcacheError(problem(f"could not read {key} in {self.where}", got=first_line(error))) from error
        return None if found is None else found.to_bytes()

    def write(self, key: str, content: bytes) -> None:
        """Write a key; a `KdcacheError` if that fails."""
        try:
            sync(self.store.set(key, default_buffer_prototype().buffer.from_bytes(content)))
        except KdcacheError:
            raise
        except Exception as error:  # each service has errors of its own
            raise KdcacheError(problem(f"could not write {key} in {self.where}", got=first_line(error))) from error

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


def _resolved(folder: Path, named_by: str) -> Path:
    try:
        return folder.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a cycle of symbolic links, or an unknown user in ~user
        raise UsageError(problem(f"could not resolve the path {named_by} {folder}", got=first_line(error))) from None


def _prefix(group: str) -> str:
    return f"{group}/" if group else ""


def _remote(url: str, named_by: str) -> Store:
    try:
        from obstore.store import from_url
    except ImportError:
        remedy = "Install obstore with pip install 'kdcache[url]'."
        raise UsageError(problem(f"{named_by} {url}", expected="a folder", got="a URL", remedy=remedy)) from None
    options: dict[str, Any] = {}
    if any(place.startswith("http://") for place in (url, os.environ.get("AWS_ENDPOINT_URL", ""))):
        options["client_options"] = {"allow_http": True}
    try:
        return ObjectStore(from_url(url, **options))
    except Exception as error:  # each service has errors of its own
        raise UsageError(
            problem(f"{named_by} {url}", expected="a URL that obstore supports", got=first_line(error))
        ) from error
