"""The store of a teacher's answers to a dataset: its fingerprint, its tables, and what they take of the disk.

``clean`` holds a row for each training sample; ``replay/seed-S/epoch-E/KIND`` one for each position of an epoch of the
plan with view seed S, for each kind of slot (`kdcache.views.Plan.kinds`). ``docs/store.md`` is the schema.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import zarr

from kdcache.answers.codec import Format, TopK, format_of, row_bytes
from kdcache.answers.fingerprint import compare, digest
from kdcache.answers.location import StoreLocation
from kdcache.answers.table import DAMAGE, Table
from kdcache.choices import MAX_CLASSES, PRECISIONS
from kdcache.errors import KdcacheError, UsageError, first_line, problem

__all__ = ["CLEAN", "AnswerStore", "Replayed", "replayed", "table_bytes"]

SCHEMA = "kdcache-answers-3"

_CHECKED = ("schema", "fingerprint", "made_with", "format")
"""The attributes of a store, beside the SHA-256 of these."""

MOST_BYTES = 2**44
"""A table with more bytes no store is believed to have."""

CLEAN = "clean"


class Replayed(NamedTuple):
    """What a replay table answers: the views of one slot in one epoch, counted from 0, of one view seed."""

    seed: int
    epoch: int
    kind: str

    @property
    def table(self) -> str:
        """Name the table."""
        return f"replay/seed-{self.seed}/epoch-{self.epoch:04d}/{self.kind}"

    @classmethod
    def parse(cls, table: str) -> Self | None:
        """Read the name of a table; ``None`` for one of another sort."""
        found = re.fullmatch(r"replay/seed-(\d{1,19})/epoch-(\d{4,9})/([a-z]+(?:-\d+)?)", table, re.ASCII)
        name = cls(int(found[1]), int(found[2]), found[3]) if found else None
        return name if name and name.table == table and name.seed < 2**63 else None


def replayed(tables: Iterable[str], kind: str | None = None) -> list[Replayed]:
    """Find the replay tables among the names of tables, those of one kind or all."""
    found = [name for table in tables if (name := Replayed.parse(table))]
    return [name for name in found if kind in (None, name.kind)]


class AnswerStore:
    """The answers of one teacher about one dataset, in one format.

    Parameters
    ----------
    where : str or Path
        Folder or URL.

    Raises
    ------
    UsageError
        Where there is no store.
    KdcacheError
        Where it cannot be read, or is not a store of answers.
    """

    def __init__(self, where: str | Path) -> None:
        self.place = StoreLocation(where)
        if not _is_there(self.place):
            raise UsageError(problem("store of answers", expected="a store that exists", got=where))
        try:
            group = zarr.open_group(self.place.store, mode="r", zarr_format=3)
        except DAMAGE as error:
            raise KdcacheError(problem(f"{where} is damaged or cannot be read", got=first_line(error))) from None
        found: dict[str, Any] = dict(group.attrs)
        if found.get("schema") != SCHEMA:
            raise KdcacheError(problem(f"{where}: schema", expected=SCHEMA, got=found.get("schema")))
        attributes = {name: found.get(name) for name in _CHECKED}
        if found.get("sha256") != digest(attributes):
            raise KdcacheError(problem(f"{where} is damaged", got="attributes that do not fit their checksum"))
        try:
            self.fingerprint: dict[str, Any] = dict(found["fingerprint"])
            self.made_with: dict[str, Any] = dict(found["made_with"])
            self.samples, self.classes = (self.fingerprint[name] for name in ("samples", "classes"))
            self.precision = self.fingerprint["teacher precision"]
            self.format = format_of(**found["format"])
            _check_sizes(self.samples, self.classes, self.precision, self.format)
        except DAMAGE as error:
            raise KdcacheError(problem(f"{where} is damaged", got=f"attributes with another {error}")) from None
        if self.format.name != self.fingerprint.get("dtype"):
            raise KdcacheError(problem(f"{where} is damaged", got="a format that its fingerprint does not name"))
        self.origin = digest(self.fingerprint)

    @classmethod
    def open(
        cls,
        where: str | Path,
        fingerprint: Mapping[str, Any],
        format: Format,
        made_with: Mapping[str, Any],
    ) -> Self:
        """Open a store for certain answers, or make it.

        Parameters
        ----------
        where : str or Path
        fingerprint : mapping
            What the answers are a function of; ``samples`` and ``classes`` of the training set among it.
        format : Format
        made_with : mapping
            Recorded in a store that is made, not compared: versions, threads, rows of a forward.

        Raises
        ------
        UsageError
            Where the store holds other answers; the message names each field that differs, with both values.
        KdcacheError
            Where it cannot be read.
        """
        fingerprint = {**fingerprint, "dtype": format.name}
        format.layout(fingerprint["classes"])  # a topk that does not fit is refused before anything is made
        place = StoreLocation(where)
        if not _is_there(place):
            attributes: dict[str, Any] = {
                "schema": SCHEMA,
                "fingerprint": fingerprint,
                "made_with": dict(made_with),
                "format": asdict(format),
            }
            with place.lock("attributes"):
                if not _is_there(place):  # another process may have made it before we held the lock
                    attributes["sha256"] = digest(attributes)
                    zarr.create_group(place.store, attributes=attributes)
        store = cls(where)
        compare(where, store.fingerprint, fingerprint)
        return store

    def table(self, name: str) -> Table:
        """Find a table by its name, whether it exists or not."""
        return Table(self.place, name, self.samples, self.format.layout(self.classes), self.origin)

    def tables(self) -> list[str]:
        """List the tables that exist, whole or in part, in the order of their names."""
        arrays = "|".join((*self.format.layout(self.classes), "commits"))
        found = (re.match(rf"(.+)/(?:{arrays})/", key) for key in self.place.list_keys())
        return sorted({match[1] for match in found if match})

    def replayed(self, kind: str | None = None) -> list[Replayed]:
        """List the replay tables that exist, of one kind or of all."""
        return replayed(self.tables(), kind)

    def drop(self, tables: Collection[str]) -> None:
        """Remove tables, the groups that they leave empty, and what writers that were killed left behind.

        Raises
        ------
        UsageError
            Where another process is writing to the store.
        """
        with self.place.lock(None, wait=False) as mine:
            if not mine:
                raise UsageError(problem(self.place.where, expected="a store that nobody writes to", got="one in use"))
            for table in tables:
                self.place.delete_group(table)
            left = self.tables()
            groups = {str(group) for table in tables for group in PurePosixPath(table).parents} - {"."}
            for group in groups:
                if not any(table.startswith(f"{group}/") for table in left):
                    self.place.delete_group(group)
            for key in self.place.list_keys():
                if key.endswith(".partial"):
                    self.place.delete(key)

    @cached_property
    def table_bytes(self) -> int:
        """Bytes of a table that is full, metadata and all."""
        return table_bytes(self.samples, self.classes, self.format)


def _is_there(place: StoreLocation) -> bool:
    """Tell whether a place holds a store. One that holds anything else is refused, so that nothing gets mixed up."""
    if place.has("zarr.json"):
        return True
    # What a writer that was killed left unfinished, or another one is just writing, is nobody's file.
    keys = [key for key in place.list_keys() if not key.endswith(".partial")]
    if "zarr.json" in keys:  # another process has made it between the two looks
        return True
    if keys:
        gone = any(key.startswith((f"{CLEAN}/", "replay/")) for key in keys)
        what = "a store whose zarr.json is gone" if gone else "other files"
        raise UsageError(problem(f"store of answers {place.where}", expected="a store, or nothing", got=what))
    return False


def _check_sizes(samples: object, classes: object, precision: object, format: Format) -> None:
    """Refuse, as a ``ValueError``, what nobody stored: before memory is taken for as much as a file says."""
    if precision not in PRECISIONS:
        raise ValueError("teacher precision")
    for name, size, most in (("samples", samples, MOST_BYTES), ("classes", classes, MAX_CLASSES)):
        if type(size) is not int or not 1 <= size <= most:
            raise ValueError(name)
    assert isinstance(samples, int)
    assert isinstance(classes, int)
    if isinstance(format, TopK) and not 1 <= format.topk < classes:
        raise ValueError("format")
    if samples * row_bytes(format.layout(classes)) > MOST_BYTES:
        raise ValueError("samples")


def table_bytes(samples: int, classes: int, format: Format) -> int:
    """Compute the bytes of a table that is full, metadata and all."""
    example = Table(StoreLocation(), CLEAN, samples, format.layout(classes))
    example.create()
    chunk = example.chunk_rows * row_bytes(example.layout)
    # Beside each column's chunk stand its checksum and the commit record with a checksum of its own.
    return example.place.size() + len(example.chunks) * (chunk + 4 * len(example.layout) + 12)
