"""A table of stored logits: chunks of rows, each of which is complete and correct, or known to be missing.

A missing chunk of a zarr array reads as its fill value without an error, and a file may be truncated or altered. So a
table has a commit record: for each chunk, written after its data are on the disk, the number of rows and a checksum.
Only chunks that agree with their record are returned. Each record has a file of its own, so nothing is ever rewritten
and two writers do not interfere.
"""

from __future__ import annotations  # so that sizes can be computed without torch

import logging
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from kdcache.answers.encoding import EncodedAnswers, Layout, row_bytes
from kdcache.answers.nodes import DAMAGE, array_metadata, open_array, read_attributes
from kdcache.errors import first_line

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from kdcache.answers.location import StoreLocation

__all__ = ["ComputeRows", "Table", "chunk_rows", "fill_missing"]

CHUNK_BYTES = 2 * 2**20
"""Size of a chunk: smaller ones cost more calls, larger ones lose more work when a process is killed."""

LARGE_CHUNK_BYTES, MAX_SMALL_CHUNKS = 16 * 2**20, 500
"""Size of a chunk in tables that would have more than `MAX_SMALL_CHUNKS` chunks, each of which is a file."""

ComputeRows = Callable[[range], EncodedAnswers]
"""Computes the encoded logits of a range of rows, on the CPU."""

log = logging.getLogger("kdcache")


def chunk_rows(rows: int, row_bytes: int) -> int:
    """Choose the number of rows in a chunk, so that all chunks have nearly the same size."""
    chunks = math.ceil(rows * row_bytes / CHUNK_BYTES)
    if chunks > MAX_SMALL_CHUNKS:
        chunks = math.ceil(rows * row_bytes / LARGE_CHUNK_BYTES)
    return math.ceil(rows / min(chunks, rows))


class Table:
    """Rows of logits in a store.

    Parameters
    ----------
    location : StoreLocation
    name : str
        Path of the table's group in the store.
    rows : int
    layout : Layout
    origin : str
        Digest of what the logits depend on. It goes into the checksum of each chunk, with the table and the place of
        the chunk, so that a chunk that was moved is recognized.

    Attributes
    ----------
    chunks : list of range
        The rows of each chunk.
    damaged : set of int
        Chunks that were found to be damaged.
    """

    def __init__(self, location: StoreLocation, name: str, rows: int, layout: Layout, origin: str = "") -> None:
        self.location, self.name, self.rows, self.layout, self.origin = location, name, rows, layout, origin
        self.chunk_rows = chunk_rows(rows, row_bytes(layout))
        self.chunks = [range(start, min(start + self.chunk_rows, rows)) for start in range(0, rows, self.chunk_rows)]
        self.damaged: set[int] = set()
        self._arrays: dict[str, zarr.Array] = {}

    def create(self) -> None:
        """Create the arrays that do not exist, or whose metadata are damaged. Committed chunks are kept."""
        with self.location.lock(f"{self.name}/arrays"):
            for name in (*self.layout, "commits"):
                array = self._open(name)
                if array is None:
                    # The metadata depend on the table only, so damaged ones are replaced; chunks are files beside them.
                    self._delete_damaged_groups()
                    self.location.delete(f"{self.name}/{name}/zarr.json")
                    array = self._create_array(self.location.store, name)
                self._arrays[name] = array

    def _delete_damaged_groups(self) -> None:
        """Delete the unreadable metadata of the groups around the arrays; zarr writes them again."""
        for path in (PurePosixPath(self.name), *PurePosixPath(self.name).parents[:-1]):
            try:
                read_attributes(self.location, str(path))
            except FileNotFoundError:
                continue
            except DAMAGE as error:
                log.warning("%s: the metadata of %s are damaged (%s)", self.location.where, path, first_line(error))
                self.location.delete(f"{path}/zarr.json")

    def committed(self) -> np.ndarray:
        """Number of rows in the record of each chunk, int64 (chunks,); 0 if the record or the chunk is missing."""
        keys = set(self.location.list_keys(self.name))
        rows = np.array([self._record(chunk)[0] for chunk in range(len(self.chunks))], np.int64)
        # Zarr writes no chunk of zeros, but logits are never all NaN.
        written = [name for name, (_, dtype) in self.layout.items() if dtype.kind == "f"]
        for chunk in rows.nonzero()[0].tolist():
            if not keys.issuperset(f"{self.name}/{name}/c/{chunk}/0" for name in written):
                self._warn_damaged(chunk, "it is missing")
                rows[chunk] = 0
        return rows

    def read(self, chunk: int) -> EncodedAnswers | None:
        """Read a chunk; ``None`` if it is not committed, or damaged, which is logged."""
        import torch

        rows, checksum = self._record(chunk)
        if rows == 0:
            return None
        try:
            span = slice(self.chunks[chunk].start, self.chunks[chunk].stop)
            found = {name: np.asarray(self._array(name)[span]) for name in self.layout}
        except (*DAMAGE, FileNotFoundError) as error:
            self._warn_damaged(chunk, error)
            return None
        if rows != len(self.chunks[chunk]) or self._checksum(chunk, found) != checksum:
            self._warn_damaged(chunk, "checksum mismatch")
            return None
        return {name: torch.from_numpy(column) for name, column in found.items()}

    def read_or_compute(self, chunk: int, compute_rows: ComputeRows, wait: bool = True) -> EncodedAnswers | None:
        """Read a chunk, or compute and write it under a lock, so that only one process computes it.

        Parameters
        ----------
        chunk : int
        compute_rows : callable
        wait : bool
            Whether to wait for another process that computes the chunk.

        Returns
        -------
        EncodedAnswers or None
            ``None`` only if another process computes the chunk and `wait` is false.
        """
        found = self.read(chunk)
        if found is not None:
            return found
        with self.location.lock(f"{self.name}/{chunk}", wait) as locked:
            if not locked:
                return None
            self.create()
            found = self.read(chunk)  # another process may have written it before we got the lock
            if found is None:
                found = compute_rows(self.chunks[chunk])
                self._write(chunk, found)
            return found

    def _write(self, chunk: int, columns: EncodedAnswers) -> None:
        """Write a chunk and then its record; the caller holds the lock."""
        arrays = {name: columns[name].numpy() for name in self.layout}
        span = self.chunks[chunk]
        for name, values in arrays.items():
            self._arrays[name][span.start : span.stop] = values
        self._arrays["commits"][chunk] = len(span), self._checksum(chunk, arrays)

    def _checksum(self, chunk: int, columns: dict[str, np.ndarray]) -> int:
        checksum = zlib.crc32(f"{self.origin}/{self.name}/{chunk}".encode())
        for name in sorted(columns):
            checksum = zlib.crc32(np.ascontiguousarray(columns[name]).data, checksum)
        return checksum

    def _record(self, chunk: int) -> tuple[int, int]:
        """Read the number of rows and the checksum of a chunk; zeros if there is no readable record."""
        try:
            rows, checksum = np.asarray(self._array("commits")[chunk]).tolist()
        except FileNotFoundError:
            # Without metadata, either nothing was ever committed or the metadata are lost.
            if self.location.has(f"{self.name}/commits/c/{chunk}/0"):
                self._warn_damaged(chunk, "the metadata of its record are missing or damaged")
            return 0, 0
        except DAMAGE as error:
            self._warn_damaged(chunk, error)
            return 0, 0
        return rows, checksum

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            array = self._open(name)
            if array is None:
                raise FileNotFoundError(f"{self.name}/{name}")
            self._arrays[name] = array
        return self._arrays[name]

    def _open(self, name: str) -> zarr.Array | None:
        """Open an array; ``None`` if it does not exist or has other metadata than it should have."""
        path = f"{self.name}/{name}"
        try:
            array = open_array(self.location, path)
            found, expected = (array_metadata(one) for one in (array, self._create_array(MemoryStore(), name)))
        except FileNotFoundError:
            return None
        except DAMAGE as error:
            log.warning("%s: the metadata of %s are damaged (%s)", self.location.where, path, first_line(error))
            return None
        if found != expected:
            wrong = ", ".join(sorted(key for key in expected if found.get(key) != expected[key]))
            log.warning("%s: the metadata of %s are damaged (%s)", self.location.where, path, wrong)
            return None
        return array

    def _create_array(self, store: Store, name: str) -> zarr.Array:
        shape, chunks, dtype = self._shape(name)
        return zarr.create_array(
            store,
            name=f"{self.name}/{name}",
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            # Logits do not compress. The checksum is for other readers, which do not know the commit record.
            compressors=(Crc32cCodec(),),
            fill_value=0 if dtype.kind in "iu" else np.nan,
        )

    def _shape(self, name: str) -> tuple[tuple[int, int], tuple[int, int], np.dtype]:
        if name == "commits":
            return (len(self.chunks), 2), (1, 2), np.dtype("uint32")
        width, dtype = self.layout[name]
        return (self.rows, width), (self.chunk_rows, width), dtype

    def _warn_damaged(self, chunk: int, reason: object) -> None:
        if chunk not in self.damaged:
            self.damaged.add(chunk)
            log.warning(
                "%s: chunk %d of %s is damaged (%s) and is not used", self.location.where, chunk, self.name, reason
            )


def fill_missing(work: Iterable[tuple[Table, ComputeRows]]) -> Iterator[tuple[Table, int, EncodedAnswers]]:
    """Compute and write all missing or damaged chunks; several processes may do this at once and share the work.

    Parameters
    ----------
    work : iterable of (Table, ComputeRows)

    Yields
    ------
    table : Table
    chunk : int
    columns : EncodedAnswers
        The rows of the chunk, which is in the store now.
    """
    pending = [(table, chunk, compute_rows) for table, compute_rows in work for chunk in range(len(table.chunks))]
    # Chunks that another process computes come last: by then it is done with them, or has died.
    for wait in (False, True):
        postponed = []
        for table, chunk, compute_rows in pending:
            columns = table.read_or_compute(chunk, compute_rows, wait)
            if columns is None:
                postponed.append((table, chunk, compute_rows))
            else:
                yield table, chunk, columns
        pending = postponed
