"""What is known of the pictures of a source, so that none is hashed or tried twice.

A manifest is a file in the user's cache folder (``$XDG_CACHE_HOME/kdcache``, or ``~/.cache/kdcache``). For each picture
it holds the SHA-256 of its bytes, and whether it decodes. It counts for the files whose path, size and time of change
are as they were.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from kdcache.datasets.pictures import Source, decode
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import UsageError
from kdcache.files import write_atomically

__all__ = ["Manifest"]

UNSEEN, DECODES, BAD = range(3)

BLOCK = 512
"""Pictures that a worker looks at in one go."""

Tell = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


@dataclass(eq=False)
class Manifest:
    """What is known of each picture.

    Parameters
    ----------
    source : Source
    stamps : ndarray of int64, shape (files, 2)
        Of the files as they are now.
    digests : ndarray of uint8, shape (N, 32)
        SHA-256 of each picture.
    hashed : ndarray of bool, shape (N,)
        Which of these are known.
    state : ndarray of uint8, shape (N,)
        0 where it was not tried, 1 for a picture that decodes, 2 for one that does not.
    """

    source: Source
    stamps: np.ndarray
    digests: np.ndarray
    hashed: np.ndarray
    state: np.ndarray

    @classmethod
    def of(cls, source: Source) -> "Manifest":
        """Read what is known of a source."""
        count = len(source)
        made = cls(
            source, source.stamps(), np.zeros((count, 32), np.uint8), np.zeros(count, bool), np.zeros(count, np.uint8)
        )
        try:
            with np.load(_file(source), allow_pickle=False) as kept:
                if kept["listing"].tobytes() != source.listing():
                    return made
                same = np.broadcast_to((kept["stamps"] == made.stamps).all(1), count)
                made.digests[same], made.hashed[same] = kept["digests"][same], kept["hashed"][same]
                made.state[same] = kept["state"][same]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            pass  # there is none, or it is damaged: everything is looked at again
        return made

    def know(self, workers: int, *, decodes: bool = False, again: bool = False, tell: Tell = _silent) -> None:
        """Look at the pictures of which something is not known, and keep what is found.

        Parameters
        ----------
        workers : int
            Processes that do so.
        decodes : bool
            Whether it matters that they decode.
        again : bool
            Whether to look at those that are known too.
        tell : callable
            Hears how many of how many pictures were looked at.
        """
        missing = ~self.hashed | (decodes & (self.state == UNSEEN)) | again
        rows = np.flatnonzero(missing)
        blocks = np.split(rows, range(BLOCK, len(rows), BLOCK)) if len(rows) else []
        few = len(blocks) <= 1  # starting workers would take longer
        look = partial(_look, self.source, decodes)
        done = 0
        for block, (digests, state) in zip(blocks, prefetch_map(look, blocks, 0 if few else workers), strict=True):
            self.digests[block], self.hashed[block] = digests, True
            if decodes:
                self.state[block] = state
            done += len(block)
            tell(done, len(rows))
        if len(rows):
            self._keep()

    @property
    def bad(self) -> np.ndarray:
        """Pictures that do not decode, of those that were tried."""
        return np.flatnonzero(self.state == BAD)

    def _keep(self) -> None:
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
            pass  # it is looked at again the next time


def _look(source: Source, decodes: bool, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    digests, state = np.empty((len(rows), 32), np.uint8), np.zeros(len(rows), np.uint8)
    for place, picture in enumerate(rows.tolist()):
        data = source.read(picture)
        digests[place] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        if decodes:
            try:
                decode(data, "")
                state[place] = DECODES
            except UsageError:
                state[place] = BAD
    return digests, state


def _file(source: Source) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "kdcache" / f"{hashlib.sha256(source.place.encode()).hexdigest()[:32]}.npz"
