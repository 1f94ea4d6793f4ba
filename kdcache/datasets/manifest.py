"""The hashes of encoded images, and whether they can be decoded: kept, so that each is computed once.

A manifest is a file in the user's cache folder (``$XDG_CACHE_HOME/kdcache``, or ``~/.cache/kdcache``). For each image
it holds the SHA-256 of its bytes, and whether it can be decoded. An entry is valid as long as the path, the size, the
times of modification and of change, and the inode of its file are the same. Where the folder cannot be written, images
are hashed at each start.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from kdcache.datasets.decoding import TooManyPixels, decoder, too_many_pixels
from kdcache.datasets.pictures import Pictures
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import KdcacheError, UsageError, abbreviated, first_line, problem, with_remedy
from kdcache.files import user_cache_folder, write_atomically

__all__ = ["Manifest", "picture_digests"]

UNKNOWN, HASHED, GOOD, BAD = range(4)

ENTRY = np.dtype([("digest", "u1", 32), ("state", "u1"), ("longer", "<i4"), ("shorter", "<i4")])
"""What is known of an image: SHA-256, one of the states above, and its sides in pixels. The sides are known of an image
that was decoded, or has too many pixels for that."""

PICTURES_PER_BLOCK = 512
"""Images that a worker hashes per request."""

MAX_NAMES_LISTED = 5

ProgressCallback = Callable[[int, int], None]

log = logging.getLogger("kdcache")


@dataclass(eq=False)
class Manifest:
    """What is known of the images of a source.

    Parameters
    ----------
    pictures : Pictures
        Images of the source; only these are hashed and decoded, and bad within their limits.
    stamps : ndarray of int64, shape (files, 4)
        Stamps of the files, now.
    entries : ndarray of `ENTRY`, shape (N,)
        For each image of the source.
    """

    pictures: Pictures
    stamps: np.ndarray
    entries: np.ndarray

    @classmethod
    def load(cls, pictures: Pictures) -> "Manifest":
        """Read the manifest of a source; what is not known or no longer valid is left empty."""
        source = pictures.source
        manifest = cls(pictures, source.stamps(), np.zeros(len(source), ENTRY))
        try:
            path = _file(source.place)
            if not path.is_file():  # a FIFO would be waited for
                raise FileNotFoundError(path)
            with np.load(path, allow_pickle=False) as stored:
                if stored["listing"].tobytes() == source.listing():
                    same = np.broadcast_to((stored["stamps"] == manifest.stamps).all(1), len(source))
                    manifest.entries[same] = stored["entries"][same]
                    if str(stored["decoder"]) != decoder():
                        state = manifest.entries["state"]
                        state[state == BAD] = HASHED  # another version may decode them
        except Exception:  # missing, or damaged in any way: everything is hashed again
            pass
        manifest.entries[~manifest.entries["digest"].any(1)] = 0
        manifest._apply_limits()
        return manifest

    def _apply_limits(self) -> None:
        """Judge the size of images anew: the limits may differ from those under which they were decoded."""
        longer, shorter, state = (self.entries[name] for name in ("longer", "shorter", "state"))
        limits = self.pictures.max_pixels, self.pictures.rendering.shorter_side
        too_large = too_many_pixels(longer.astype(np.int64), shorter.astype(np.int64), *limits)
        state[(state == GOOD) & too_large] = BAD
        state[(state == BAD) & (longer > 0) & ~too_large] = HASHED

    def update(
        self,
        *,
        decode_all: bool = False,
        again: bool = False,
        progress: ProgressCallback = lambda done, total: None,
    ) -> None:
        """Hash the images whose hash is not known, and save the manifest.

        From then on, reading one of the images raises an error if it has other bytes.

        Parameters
        ----------
        decode_all : bool
            Whether to decode the images whose state is unknown, too. Then an image that cannot be read is a bad one.
        again : bool
            Whether to hash and decode known images again.
        progress : callable
            Called with the number of images that are done, and their total.

        Raises
        ------
        UsageError
            If an image cannot be read.
        """
        chosen = self.pictures.indices
        state = self.entries["state"][chosen]
        missing = chosen[(state == UNKNOWN) | (decode_all & (state == HASHED)) | again]
        blocks = np.split(missing, range(PICTURES_PER_BLOCK, len(missing), PICTURES_PER_BLOCK)) if len(missing) else []
        workers = self.pictures.workers if len(blocks) > 1 else 0  # starting workers would take longer
        found = prefetch_map(partial(_hash_block, self.pictures, decode_all), blocks, workers)
        done = 0
        try:
            for block, entries in zip(blocks, found, strict=True):
                self.entries[block] = entries
                done += len(block)
                progress(done, len(missing))
        finally:
            if done:
                self._save()
        source, digests = self.pictures.source, self.entries["digest"]
        if source.digests is not None:  # those of other pictures of this source
            unknown = ~digests.any(1)
            digests[unknown] = source.digests[unknown]
        source.digests = digests

    @property
    def bad(self) -> np.ndarray:
        """Indices of the images that cannot be decoded, as far as they are known."""
        chosen = self.pictures.indices
        return chosen[self.entries["state"][chosen] == BAD]

    def _save(self) -> None:
        source, entries = self.pictures.source, self.entries.copy()
        entries[~entries["digest"].any(1)] = 0  # a file that could not be read may be readable the next time
        listing = np.frombuffer(source.listing(), np.uint8)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, listing=listing, stamps=self.stamps, entries=entries, decoder=np.array(decoder()))

        try:
            path = _file(source.place)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, write)
        except (OSError, KdcacheError) as error:
            _say_once(
                problem(
                    "hashes of images are not kept, so that the next start hashes them again", got=first_line(error)
                )
            )


def picture_digests(pictures: Pictures) -> np.ndarray:
    """SHA-256 of each picture, uint8 (N, 32). Those that are not known are hashed.

    Raises
    ------
    UsageError
        If a picture cannot be read; or cannot be decoded, where that is known and all are needed.
    """
    known, chosen = pictures.source.digests, pictures.indices
    if known is None or not known[chosen].any(1).all():
        manifest = Manifest.load(pictures)
        manifest.update()
        if pictures.all_needed:
            _refuse(pictures, manifest.bad.tolist())
        known = pictures.source.digests
    assert known is not None
    return known[chosen]


def _refuse(pictures: Pictures, bad: list[int]) -> None:
    """Raise the error of the first one of some pictures that cannot be decoded, and name the others."""
    if not bad:
        return
    first, *others = bad
    try:
        pictures.decode(first)
    except UsageError as error:
        line = str(error)
        if others:
            names = abbreviated(map(pictures.source.name, others), MAX_NAMES_LISTED)
            line = with_remedy(line, f"Nor can {len(others)} more be decoded: {names}.")
        raise pictures.refused(UsageError(line)) from error


def _hash_block(pictures: Pictures, decode_all: bool, block: np.ndarray) -> np.ndarray:
    entries = np.zeros(len(block), ENTRY)
    for place, picture in enumerate(block.tolist()):
        entry = entries[place]
        try:
            data = pictures.source.read(picture, pictures.max_bytes)
        except UsageError as error:
            if not decode_all:
                raise pictures.refused(error) from error
            entry["state"] = BAD
            continue
        entry["digest"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        entry["state"] = HASHED
        if decode_all:
            entry["state"], entry["longer"], entry["shorter"] = _try_to_decode(pictures, data)
    return entries


def _try_to_decode(pictures: Pictures, data: bytes) -> tuple[int, int, int]:
    try:
        size = pictures.decode_bytes(data, "").size
    except TooManyPixels as error:
        return BAD, max(error.size), min(error.size)
    except UsageError:
        return BAD, 0, 0
    return GOOD, max(size), min(size)


def _file(place: str) -> Path:
    """File of the manifest of a source. Without a home folder, there is no place for it: `OSError`."""
    return user_cache_folder() / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.npz"


@cache
def _say_once(line: str) -> None:
    log.warning(line)
