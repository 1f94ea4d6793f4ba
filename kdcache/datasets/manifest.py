"""The hashes of encoded images, and whether they can be decoded: kept, so that each is computed once.

A manifest is a file in the user's cache folder (``$XDG_CACHE_HOME/kdcache``, or ``~/.cache/kdcache``). For each image
it holds the SHA-256 of its bytes, and whether it can be decoded. An entry is valid as long as the path, the size and
the modification time of its file are the same.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from kdcache.datasets.pictures import decode
from kdcache.datasets.sources import Source
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import UsageError
from kdcache.files import write_atomically

__all__ = ["Manifest"]

UNKNOWN, GOOD, BAD = range(3)

PICTURES_PER_BLOCK = 512
"""Images that a worker hashes per request."""

ProgressCallback = Callable[[int, int], None]


@dataclass(eq=False)
class Manifest:
    """The known hashes and states of the images of a source.

    Parameters
    ----------
    source : Source
    stamps : ndarray of int64, shape (files, 2)
        Size and modification time of the files, now.
    digests : ndarray of uint8, shape (N, 32)
        SHA-256 of each image.
    hashed : ndarray of bool, shape (N,)
        Which of the digests are known.
    state : ndarray of uint8, shape (N,)
        `UNKNOWN`, `GOOD`, or `BAD` for an image that cannot be decoded.
    """

    source: Source
    stamps: np.ndarray
    digests: np.ndarray
    hashed: np.ndarray
    state: np.ndarray

    @classmethod
    def load(cls, source: Source) -> "Manifest":
        """Read the manifest of a source; what is not known or no longer valid is left empty."""
        count = len(source)
        manifest = cls(
            source, source.stamps(), np.zeros((count, 32), np.uint8), np.zeros(count, bool), np.zeros(count, np.uint8)
        )
        try:
            with np.load(_file(source), allow_pickle=False) as stored:
                if stored["listing"].tobytes() != source.listing():
                    return manifest
                same = np.broadcast_to((stored["stamps"] == manifest.stamps).all(1), count)
                manifest.digests[same], manifest.hashed[same] = stored["digests"][same], stored["hashed"][same]
                manifest.state[same] = stored["state"][same]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            pass  # missing or damaged: everything is hashed again
        return manifest

    def update(
        self,
        workers: int,
        *,
        decode_all: bool = False,
        again: bool = False,
        progress: ProgressCallback = lambda done, total: None,
    ) -> None:
        """Hash the images whose hash is not known, and save the manifest.

        Parameters
        ----------
        workers : int
            Number of processes.
        decode_all : bool
            Whether to decode the images whose state is unknown, too.
        again : bool
            Whether to hash and decode known images again.
        progress : callable
            Called with the number of images that are done, and their total.
        """
        missing = ~self.hashed | (decode_all & (self.state == UNKNOWN)) | again
        rows = np.flatnonzero(missing)
        blocks = np.split(rows, range(PICTURES_PER_BLOCK, len(rows), PICTURES_PER_BLOCK)) if len(rows) else []
        few = len(blocks) <= 1  # starting workers would take longer
        found = prefetch_map(partial(_hash_block, self.source, decode_all), blocks, 0 if few else workers)
        done = 0
        for block, (digests, state) in zip(blocks, found, strict=True):
            self.digests[block], self.hashed[block] = digests, True
            if decode_all:
                self.state[block] = state
            done += len(block)
            progress(done, len(rows))
        if len(rows):
            self._save()

    @property
    def bad(self) -> np.ndarray:
        """Indices of the images that cannot be decoded, as far as they are known."""
        return np.flatnonzero(self.state == BAD)

    def _save(self) -> None:
        path = _file(self.source)
        listing = np.frombuffer(self.source.listing(), np.uint8)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    listing=listing,
                    stamps=self.stamps,
                    digests=self.digests,
                    hashed=self.hashed,
                    state=self.state,
                )

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, write)
        except OSError:
            pass  # everything is hashed again the next time


def _hash_block(source: Source, decode_all: bool, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    digests, state = np.empty((len(rows), 32), np.uint8), np.zeros(len(rows), np.uint8)
    for place, picture in enumerate(rows.tolist()):
        data = source.read(picture)
        digests[place] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        if decode_all:
            try:
                decode(data, "")
                state[place] = GOOD
            except UsageError:
                state[place] = BAD
    return digests, state


def _file(source: Source) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "kdcache" / f"{hashlib.sha256(source.place.encode()).hexdigest()[:32]}.npz"
