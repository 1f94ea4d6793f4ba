"""The files of a card, wherever they are: read-only, each one checked, those at a URL kept on the disk."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from kdcache import distributed
from kdcache.answers.card import AnswerCard, StoredFile, read_card, require_file
from kdcache.answers.durable_store import ROOT_KEY
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import AnswerStore
from kdcache.checked_files import FILE, kind_of, read_bytes
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.files import require_writable, user_cache_folder, write_atomically
from kdcache.locks import FileLock

__all__ = ["CardStore", "Downloads", "open_answers"]

READERS = 4
"""Files that are read at once: the columns of a chunk, and the chunk that is read ahead."""

WAIT_SECONDS = 0.02
"""Until it is tried again whether another process has fetched a file."""

log = logging.getLogger("kdcache")


class Downloads:
    """Files from a URL, kept in a folder, so that each one is fetched once by all processes and runs.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keeps = True

    def read(self, key: str, file: StoredFile, source: StoreLocation) -> bytes:
        """Read a file that was kept, or else fetch and keep it; one that is damaged is fetched again."""
        path, lock = self.folder / key, FileLock(self.folder / "downloads.lock", key)
        while (kept := _read_if_intact(path, file)) is None:
            if not lock.acquire(wait=False):  # another process fetches it
                time.sleep(WAIT_SECONDS)
                continue
            try:
                if (kept := _read_if_intact(path, file)) is None:
                    kept = require_file(source.where, key, source.read(key), file)
                    self._keep(path, kept)
                return kept
            finally:
                lock.release()
        return kept

    def _keep(self, path: Path, content: bytes) -> None:
        try:
            if self._keeps:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, lambda temporary: temporary.write_bytes(content))
        except (OSError, KdcacheError) as error:
            self._keeps = False
            log.warning("further answers are not kept on the disk (%s)", first_line(error))


def _read_if_intact(path: Path, file: StoredFile) -> bytes | None:
    return kept if kind_of(path) == FILE and file.matches(kept := read_bytes(path)) else None


class CardStore(Store):
    """The files that a card lists, as a store of zarr that can only be read.

    Parameters
    ----------
    source : StoreLocation
        Where they are.
    files : mapping of str to StoredFile
    downloads : Downloads, optional
        Keeps those that are fetched.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(
        self, source: StoreLocation, files: Mapping[str, StoredFile], downloads: Downloads | None = None
    ) -> None:
        super().__init__()
        self.source, self.files, self.downloads = source, files, downloads
        self._threads = ThreadPoolExecutor(READERS, "kdcache-files")

    def __eq__(self, other: object) -> bool:
        return self is other

    def read(self, key: str) -> bytes:
        """Read a file; a `KdcacheError` if it is not as the card says."""
        if self.downloads is not None:
            return self.downloads.read(key, self.files[key], self.source)
        return require_file(self.source.where, key, self.source.read(key), self.files[key])

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a key; ``None`` if the card does not list it."""
        if key not in self.files:
            return None
        if byte_range is not None:
            raise NotImplementedError("parts of files are not read")
        content = await asyncio.get_running_loop().run_in_executor(self._threads, self.read, key)
        return prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read keys."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Tell whether the card lists a key."""
        return key in self.files

    async def getsize(self, key: str) -> int:
        """Bytes of a key."""
        return self.files[key].size

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        raise KdcacheError(problem(f"{self.source.where} can only be read"))

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        raise KdcacheError(problem(f"{self.source.where} can only be read"))

    async def list(self) -> AsyncIterator[str]:
        """List all keys."""
        for key in self.files:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the keys that begin with a prefix."""
        for key in self.files:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List what is directly in a group."""
        group = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in dict.fromkeys(key[len(group) :].split("/")[0] for key in self.files if key.startswith(group)):
            yield name


def open_answers(where: str | Path, keep: bool = False, named_by: str = "--answers") -> tuple[AnswerCard, AnswerStore]:
    """Open a store that was copied with its card. It can only be read, and files that the card does not list are not.

    Parameters
    ----------
    where : str or Path
        Folder or URL.
    keep : bool
        Keep what is fetched from a URL in the user's cache folder.
    named_by : str
        What names it, for messages.

    Raises
    ------
    UsageError
        If there is no card, or it is damaged.
    KdcacheError
        If the store is damaged, or not the one on the card.
    """
    source = StoreLocation(where, named_by=named_by)
    card = read_card(source)
    downloads = _downloads(source, card) if keep and source.folder is None else None
    store = AnswerStore(StoreLocation(where, CardStore(source, card.files, downloads)))
    if store.fingerprint != card.fingerprint:
        raise KdcacheError(problem(f"answers {where}", expected="the store on the card", got="another one"))
    return card, store


def _downloads(source: StoreLocation, card: AnswerCard) -> Downloads | None:
    try:
        folder = user_cache_folder() / "answers" / card.files[ROOT_KEY].sha256[:16]
        require_writable(folder, "XDG_CACHE_HOME")
    except (OSError, UsageError) as error:
        if distributed.is_main():
            log.info("answers are fetched from %s in each epoch, since they cannot be kept: %s", source.where, error)
        return None
    if distributed.is_main():
        log.info("answers that are fetched from %s are kept in %s", source.where, folder)
    return Downloads(folder)
