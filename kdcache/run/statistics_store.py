"""The statistics of a run on the disk, an epoch at a time, each with a checksum."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from kdcache import checked_files
from kdcache.answers.location import StoreLocation
from kdcache.answers.nodes import DAMAGE, array_metadata, open_array, read_attributes
from kdcache.errors import KdcacheError, first_line, problem
from kdcache.files import write_folder_atomically, write_json
from kdcache.run.statistics import EpochStatistics, StatisticsShape

__all__ = ["StatisticsReader", "StatisticsStore", "StoredEpoch"]

SCHEMA = "kdcache-statistics-4"

BYTES_IN_A_CALL = 2**24
"""Of statistics that are read together."""

REMEDY = "Train the run again to record them anew."

log = logging.getLogger("kdcache")

Columns = dict[str, np.ndarray]
"""The statistics of an epoch as stored, by the name of their array."""


class StatisticsStore:
    """Writes the statistics of a run to a zarr store.

    The arrays are ``d_x`` (E, N), ``d_mixed`` (E, M, N), ``picked`` (E, M, N), ``kl_ratio`` (E, T), ``disagreements``
    (E, T) and ``losses`` (E, T, L); empty ones are left out. d is stored in float16, whose relative error of at most
    2^-11 is far below its spread. The attribute ``losses`` names the losses, ``epochs_written`` counts the epochs, and
    ``checksums`` has the SHA-256 of each; they are updated after the arrays.

    Parameters
    ----------
    path : Path
        Created if missing, filled with NaN. A resumed run continues its store; with more epochs, the arrays grow.
        Metadata follow from the other parameters, so damaged ones are written anew.
    epochs : int
        E.
    shape : StatisticsShape
    checksums : sequence of str
        Of the epochs that are done, as `write` returned them. Epochs that do not match are reported: they cannot be
        computed again.
    """

    def __init__(self, path: Path, epochs: int, shape: StatisticsShape, checksums: Sequence[str] = ()) -> None:
        samples, slots, steps, losses = shape
        self.path, self.losses, self.checksums = path, list(losses), list(checksums)
        shapes: dict[str, tuple[tuple[int, ...], str, Any]] = {
            "d_x": ((epochs, samples), "float16", np.nan),
            "d_mixed": ((epochs, slots, samples), "float16", np.nan),
            "picked": ((epochs, slots, samples), "bool", False),
            "kl_ratio": ((epochs, steps), "float32", np.nan),
            "disagreements": ((epochs, steps), "float32", np.nan),
            "losses": ((epochs, steps, len(losses)), "float32", np.nan),
        }
        self._shapes = {name: stored for name, stored in shapes.items() if 0 not in stored[0]}
        checked_files.require_kind(path, checked_files.FOLDER)
        if not path.exists():
            write_folder_atomically(path, self._create)
        self._location = StoreLocation(path)
        self._write_attributes(path)
        self._arrays = {name: self._open(name) for name in self._shapes}
        self._report_damage()

    def write(self, epoch: int, statistics: EpochStatistics) -> str:
        """Write the statistics of an epoch, counted from 0; once they are on the disk, return their checksum."""
        columns = {
            name: getattr(statistics, name).cpu().numpy().astype(array.dtype) for name, array in self._arrays.items()
        }
        for name, column in columns.items():
            self._arrays[name][epoch] = column
        checksum = _checksum(epoch, columns)
        self.checksums = [*self.checksums[:epoch], checksum]
        self._write_attributes(self.path)
        return checksum

    def _create(self, folder: Path) -> None:
        folder.mkdir()
        self._write_attributes(folder)
        for name in self._shapes:
            self._create_array(StoreLocation(folder).store, name)

    def _create_array(self, store: Any, name: str) -> zarr.Array:
        shape, dtype, fill_value = self._shapes[name]
        return zarr.create_array(
            store,
            name=name,
            shape=shape,
            chunks=(1, *shape[1:]),  # each epoch is a chunk of its own, written once
            dtype=dtype,
            compressors=(BloscCodec(cname="zstd"), Crc32cCodec()),
            fill_value=fill_value,
        )

    def _open(self, name: str) -> zarr.Array:
        """Open an array. Chunks are files beside its metadata, which are replaced where they are not as expected."""
        expected = array_metadata(self._create_array(MemoryStore(), name))
        try:
            array = open_array(self._location, name)
            found = array_metadata(array)
            if found == expected:
                return array
            reason = ", ".join(sorted(key for key in expected if found.get(key) != expected[key]))
        except (*DAMAGE, FileNotFoundError) as error:
            reason = first_line(error)
        if reason != "shape":  # of a run that got more epochs
            log.warning("%s: the metadata of %s were damaged (%s) and are written anew", self.path, name, reason)
        self._location.delete(f"{name}/zarr.json")
        return self._create_array(self._location.store, name)

    def _write_attributes(self, folder: Path) -> None:
        found = {"schema": SCHEMA, "losses": self.losses, "epochs_written": len(self.checksums)}
        attributes = {**found, "checksums": self.checksums}
        write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": _sealed(attributes)})

    def _report_damage(self) -> None:
        for epoch, checksum in enumerate(self.checksums):
            try:
                damaged = _checksum(epoch, _read(self._arrays, epoch)) != checksum
            except DAMAGE:
                damaged = True
            if damaged:
                log.warning("%s: epoch %d is damaged and cannot be computed again", self.path, epoch + 1)


@dataclass(frozen=True)
class StoredEpoch:
    """The statistics of one epoch as stored.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    d_x : ndarray of float32, shape (N,)
    d_mixed : ndarray of float32, shape (M, N)
    picked : ndarray of bool, shape (M, N)
    kl_ratio, disagreements : ndarray of float32, shape (T,)
        See `kdcache.run.statistics.EpochStatistics`.
    """

    epoch: int
    d_x: np.ndarray
    d_mixed: np.ndarray
    picked: np.ndarray
    kl_ratio: np.ndarray
    disagreements: np.ndarray


@dataclass(frozen=True)
class StatisticsReader:
    """Reads the statistics of a run, finished or not, one epoch at a time to save memory.

    Parameters
    ----------
    path : Path
        Of a store that `StatisticsStore` wrote.
    checksums : tuple of str
        Of the epochs written.
    """

    path: Path
    checksums: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "StatisticsReader":
        """Open a store.

        Raises
        ------
        KdcacheError
            If it is missing or damaged.
        """
        kind = checked_files.kind_of(path)
        if kind != checked_files.FOLDER:
            raise KdcacheError(problem(f"statistics {path}", expected="a folder", got=kind or "nothing", remedy=REMEDY))
        try:
            attributes = read_attributes(StoreLocation(path))
        except (*DAMAGE, OSError) as error:
            what = f"could not read the statistics {path}"
            raise KdcacheError(problem(what, got=first_line(error), remedy=REMEDY)) from None
        if attributes.get("schema") != SCHEMA:
            what = f"the statistics {path} were written by another version of kdcache"
            raise KdcacheError(problem(what, expected=SCHEMA, got=attributes.get("schema"), remedy=REMEDY))
        if attributes != _sealed(attributes):
            got = "attributes that do not match their checksum"
            raise KdcacheError(problem(f"the statistics {path} are damaged", got=got, remedy=REMEDY))
        return cls(path, tuple(attributes["checksums"]))

    @property
    def epochs(self) -> int:
        """Number of epochs written."""
        return len(self.checksums)

    def epoch(self, epoch: int) -> StoredEpoch:
        """Read an epoch, counted from 0.

        Raises
        ------
        KdcacheError
            If it is damaged.
        """
        try:
            return self._checked(epoch, _read(self._arrays, epoch))
        except (*DAMAGE, OSError) as error:
            what = f"could not read epoch {epoch + 1} of the statistics {self.path}"
            raise KdcacheError(problem(what, got=first_line(error), remedy=REMEDY)) from None

    def __iter__(self) -> Iterator[StoredEpoch]:
        """Read all epochs written, one after the other."""
        try:
            step = self._epochs_in_a_call
        except (*DAMAGE, OSError):
            step = 1
        for start in range(0, self.epochs, step):
            epochs = range(start, min(self.epochs, start + step))
            try:
                yield from self._read_together(epochs)
            except (*DAMAGE, OSError):
                yield from map(self.epoch, epochs)  # an error names the epoch

    def _read_together(self, epochs: range) -> list[StoredEpoch]:
        """Read several epochs in one call of zarr, each of which costs more than a few kilobytes."""
        columns = {name: np.asarray(array[epochs.start : epochs.stop]) for name, array in self._arrays.items()}
        return [
            self._checked(epoch, {name: column[place] for name, column in columns.items()})
            for place, epoch in enumerate(epochs)
        ]

    def _checked(self, epoch: int, columns: Columns) -> StoredEpoch:
        """Compare an epoch with its checksum."""
        if _checksum(epoch, columns) != self.checksums[epoch]:
            raise ValueError("another checksum than when it was written")
        samples = len(columns["d_x"])
        found = {  # a run without mixed views has no such arrays
            "d_mixed": np.empty((0, samples), np.float32),
            "picked": np.empty((0, samples), bool),
            **columns,
        }
        found.pop("losses", None)
        kept = {name: column if name == "picked" else column.astype(np.float32) for name, column in found.items()}
        return StoredEpoch(epoch, **kept)

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array]:
        location, arrays = StoreLocation(self.path), {}
        for name in ("d_x", "d_mixed", "picked", "kl_ratio", "disagreements", "losses"):
            if (self.path / name).exists():
                array = arrays[name] = open_array(location, name)
                if array.chunks != (1, *array.shape[1:]):  # an epoch is no larger than the largest chunk
                    raise ValueError(f"chunks of shape {array.chunks} in {name}")
        return arrays

    @property
    def _epochs_in_a_call(self) -> int:
        size = sum(array.nbytes // max(1, array.shape[0]) for array in self._arrays.values())
        return max(1, BYTES_IN_A_CALL // max(1, size))


def _read(arrays: Mapping[str, zarr.Array], epoch: int) -> Columns:
    return {name: np.asarray(array[epoch]) for name, array in arrays.items()}


def _checksum(epoch: int, columns: Columns) -> str:
    """SHA-256, in hexadecimal, of the statistics of an epoch."""
    sha = hashlib.sha256(json.dumps(epoch).encode())
    for name, column in sorted(columns.items()):
        sha.update(json.dumps([name, str(column.dtype), list(column.shape)]).encode())
        sha.update(np.ascontiguousarray(column).data)
    return sha.hexdigest()


def _sealed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Give attributes the checksum of the others."""
    others = {name: value for name, value in attributes.items() if name != "sha256"}
    return {**others, "sha256": checked_files.digest(others)}
