"""A table of answers: rows in whole chunks, of which each is either there and right, or known to be missing.

A missing chunk of a zarr array reads as its fill value without a word, and a file may be cut short or altered. So a
table has a commit record: for each chunk, written after its data are on the disk, the number of rows and their
checksum. Only what agrees with its record is ever handed out. Records lie in files of their own, so that nothing is
ever rewritten and two writers need not know of each other.
"""

import logging
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from kdcache.answers.codec import Columns, Layout, row_bytes
from kdcache.answers.location import StoreLocation
from kdcache.errors import first_line

__all__ = ["Ask", "Table", "chunk_rows", "fill"]

CHUNK_BYTES = 2 * 2**20
"""Bytes of a chunk: smaller ones cost more calls, larger ones are lost and asked again at a kill."""

LARGE_CHUNK_BYTES, MANY_CHUNKS = 16 * 2**20, 500
"""Bytes of a chunk where the smaller ones would be more files than file systems like."""

Ask = Callable[[range], Columns]
"""Finds the rows of a range, which are missing, on the CPU."""

log = logging.getLogger("kdcache")

# What zarr and its codecs raise at data that are damaged. A system that refuses to read or write is another matter.
DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, AttributeError)


def chunk_rows(rows: int, row_bytes: int) -> int:
    """Settle how many rows a chunk holds, all chunks being as equal as they can be."""
    chunks = math.ceil(rows * row_bytes / CHUNK_BYTES)
    if chunks > MANY_CHUNKS:
        chunks = math.ceil(rows * row_bytes / LARGE_CHUNK_BYTES)
    return math.ceil(rows / min(chunks, rows))


class Table:
    """Rows of answers in a store.

    Parameters
    ----------
    place : StoreLocation
    name : str
        Path of the table's group in the store.
    rows : int
    layout : Layout
    origin : str
        What the answers were made from. The record of a chunk tells it from one of another origin, table or place.

    Attributes
    ----------
    chunks : list of range
        The rows of each chunk.
    damaged : set of int
        Chunks that were found damaged.
    """

    def __init__(self, place: StoreLocation, name: str, rows: int, layout: Layout, origin: str = "") -> None:
        self.place, self.name, self.rows, self.layout, self.origin = place, name, rows, layout, origin
        self.chunk_rows = chunk_rows(rows, row_bytes(layout))
        self.chunks = [range(start, min(start + self.chunk_rows, rows)) for start in range(0, rows, self.chunk_rows)]
        self.damaged: set[int] = set()
        self._arrays: dict[str, zarr.Array] = {}

    def create(self) -> None:
        """Make the arrays that are not there, at their full size. What is committed stays as it is."""
        with self.place.lock(f"{self.name}/arrays"):
            for name in (*self.layout, "commits"):
                array = self._open(name)
                if array is None:
                    # Metadata follow from the table alone. Damaged ones are replaced; chunks lie beside them and stay.
                    self._clear_groups()
                    self.place.delete(f"{self.name}/{name}/zarr.json")
                    array = self._make(self.place.store, name)
                self._arrays[name] = array

    def _clear_groups(self) -> None:
        """Remove the metadata of groups around the arrays that cannot be read; zarr makes them anew."""
        for path in (PurePosixPath(self.name), *PurePosixPath(self.name).parents[:-1]):
            try:
                zarr.open_group(self.place.store, path=str(path), mode="r", zarr_format=3)
            except FileNotFoundError:
                continue
            except DAMAGE as error:
                log.warning("%s: metadata of %s are damaged (%s)", self.place.where, path, first_line(error))
                self.place.delete(f"{path}/zarr.json")

    def committed(self) -> np.ndarray:
        """Rows that each chunk is recorded to hold, int64 (chunks,); 0 where there is no whole record."""
        return np.array([self._record(chunk)[0] for chunk in range(len(self.chunks))], np.int64)

    def read(self, chunk: int) -> Columns | None:
        """Read a chunk that was committed; ``None`` where it was not, or where it is damaged, which is told."""
        rows, checksum = self._record(chunk)
        if rows == 0:
            return None
        try:
            span = slice(self.chunks[chunk].start, self.chunks[chunk].stop)
            found = {name: np.asarray(self._array(name)[span]) for name in self.layout}
        except (*DAMAGE, FileNotFoundError) as error:
            self._tell(chunk, error)
            return None
        if rows != len(self.chunks[chunk]) or self._checksum(chunk, found) != checksum:
            self._tell(chunk, "its checksum is another")
            return None
        return {name: torch.from_numpy(column) for name, column in found.items()}

    def obtain(self, chunk: int, ask: Ask, wait: bool = True) -> Columns | None:
        """Read a chunk, or ask for its rows and write it: nobody else asks for them at the same time.

        Parameters
        ----------
        chunk : int
        ask : callable
        wait : bool
            Whether to wait for another process that is asking.

        Returns
        -------
        Columns or None
            ``None`` only where another process is asking, and `wait` is false.
        """
        found = self.read(chunk)
        if found is not None:
            return found
        with self.place.lock(f"{self.name}/{chunk}", wait) as mine:
            if not mine:
                return None
            self.create()  # which mends damaged metadata too
            found = self.read(chunk)  # it may have been written while we waited
            if found is None:
                found = ask(self.chunks[chunk])
                self._write(chunk, found)
            return found

    def _write(self, chunk: int, columns: Columns) -> None:
        """Write a whole chunk, and commit it, under its lock."""
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
        try:
            rows, checksum = np.asarray(self._array("commits")[chunk]).tolist()
        except FileNotFoundError:
            # The array was never made, unless there is a record in it.
            if self.place.has(f"{self.name}/commits/c/{chunk}/0"):
                self._tell(chunk, "the metadata of its record are gone or damaged")
            return 0, 0
        except DAMAGE as error:
            self._tell(chunk, error)
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
        """Open an array that is as it should be; ``None`` where there is none, or its metadata are damaged."""
        path = f"{self.name}/{name}"
        try:
            # Version 2 may name filters, of which one runs code.
            array = zarr.open_array(self.place.store, path=path, mode="r+", zarr_format=3)
            found, expected = (_metadata(one) for one in (array, self._make(MemoryStore(), name)))
        except FileNotFoundError:
            return None
        except DAMAGE as error:
            log.warning("%s: metadata of %s are damaged (%s)", self.place.where, path, first_line(error))
            return None
        if found != expected:
            odd = ", ".join(sorted(key for key in expected if found.get(key) != expected[key]))
            log.warning("%s: metadata of %s are damaged (%s)", self.place.where, path, odd)
            return None
        return array

    def _make(self, store: Store, name: str) -> zarr.Array:
        shape, chunks, dtype = self._shape(name)
        return zarr.create_array(
            store,
            name=f"{self.name}/{name}",
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            # Logits do not compress. The checksum is for readers that know nothing of the commit record.
            compressors=(Crc32cCodec(),),
            fill_value=0 if dtype.kind in "iu" else np.nan,
        )

    def _shape(self, name: str) -> tuple[tuple[int, int], tuple[int, int], np.dtype]:
        if name == "commits":
            return (len(self.chunks), 2), (1, 2), np.dtype("uint32")
        width, dtype = self.layout[name]
        return (self.rows, width), (self.chunk_rows, width), dtype

    def _tell(self, chunk: int, reason: object) -> None:
        if chunk not in self.damaged:
            self.damaged.add(chunk)
            log.warning(
                "%s: chunk %d of %s is damaged (%s); it is not used", self.place.where, chunk, self.name, reason
            )


def _metadata(array: zarr.Array) -> dict[str, Any]:
    """Tell how an array is stored: shapes, types, and what its bytes go through when they are read."""
    return {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}


def fill(work: Iterable[tuple[Table, Ask]]) -> Iterator[tuple[Table, int, Columns]]:
    """Write every chunk that is missing or damaged, sharing the work with other processes that do the same.

    Parameters
    ----------
    work : iterable of (Table, Ask)

    Yields
    ------
    table : Table
    chunk : int
    columns : Columns
        Its rows, which are there now.
    """
    left = [(table, chunk, ask) for table, ask in work for chunk in range(len(table.chunks))]
    # What another process is at comes last: by then it is done, or that process has died.
    for wait in (False, True):
        postponed = []
        for table, chunk, ask in left:
            columns = table.obtain(chunk, ask, wait)
            if columns is None:
                postponed.append((table, chunk, ask))
            else:
                yield table, chunk, columns
        left = postponed
