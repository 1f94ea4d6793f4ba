"""The store of a teacher's answers for one dataset: its fingerprint, its tables and their sizes.

The table ``clean`` has a row for each training sample, and ``images`` the SHA-256 of its image.
``replay/seed-S/epoch-E/KIND`` has a row for each position of epoch E of the plan with view seed S, for each kind of
view (`kdcache.views.ViewPlan.kinds`). See ``docs/store.md``.
"""

from __future__ import annotations  # so that sizes can be computed without torch

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import numpy as np
import zarr

from kdcache.answers.encoding import AnswerEncoding, TopK, Vectors, make_encoding, row_bytes
from kdcache.answers.fingerprint import digest, require_same_fingerprint
from kdcache.answers.location import StoreLocation
from kdcache.answers.nodes import DAMAGE, read_attributes
from kdcache.answers.table import Table
from kdcache.choices import MAX_CLASSES, PRECISIONS
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.views.plan import CLEAN, parse_kind

__all__ = [
    "BIAS",
    "CLEAN",
    "HEAD",
    "IMAGES",
    "IMAGE_SETTINGS",
    "SHA256",
    "WEIGHT",
    "AnswerStore",
    "ReplayTableName",
    "parse_replay_tables",
    "table_bytes",
]

SCHEMA = "kdcache-answers-7"

IMAGES, SHA256 = "images", "sha256"
"""Table and column of the SHA-256 of each sample's image, by which other stores find the logits of clean views."""

HEAD, WEIGHT, BIAS = "head", "weight", "bias"
"""Table and columns of the teacher's last layer, a row for each class, in a store of vectors."""

CHECKSUMMED_ATTRIBUTES = ("schema", "fingerprint", "made_with", "encoding")
"""Attributes of a store that its attribute ``sha256`` covers."""

IMAGE_SETTINGS = "image settings"
"""Key in ``made_with`` of the settings that say which images a store is for."""

MAX_TABLE_BYTES = 2**44
"""Attributes that state a larger table are taken for damaged."""


class ReplayTableName(NamedTuple):
    """Name of a replay table: one kind of view, in one epoch (counted from 0) of one view seed."""

    seed: int
    epoch: int
    kind: str

    @property
    def path(self) -> str:
        """Path of the table in the store."""
        return f"replay/seed-{self.seed}/epoch-{self.epoch:04d}/{self.kind}"

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """Parse the path of a table; ``None`` if it is not a replay table."""
        found = re.fullmatch(r"replay/seed-(\d{1,19})/epoch-(\d{4,9})/([^/]+)", path, re.ASCII)
        if found is None:
            return None
        name = cls(int(found[1]), int(found[2]), found[3])
        try:
            parse_kind(name.kind)
        except ValueError:
            return None
        return name if name.path == path and name.seed < 2**63 and name.kind != CLEAN else None


def parse_replay_tables(paths: Iterable[str], kind: str | None = None) -> list[ReplayTableName]:
    """Find the replay tables among paths of tables: those of one kind, or all."""
    names = [name for path in paths if (name := ReplayTableName.parse(path))]
    return [name for name in names if kind in (None, name.kind)]


class AnswerStore:
    """The logits of one teacher for one dataset, in one encoding.

    Parameters
    ----------
    location : StoreLocation, str or Path
        A folder or URL.

    Attributes
    ----------
    location : StoreLocation
    fingerprint, made_with : dict
        See `create_or_open`.
    image_settings : dict
        The part of `made_with` that says which images the store is for.
    samples, classes : int
    precision : str
        Of the teacher's forwards.
    encoding : AnswerEncoding
    origin : str
        Digest of the fingerprint.

    Raises
    ------
    UsageError
        If there is no store.
    KdcacheError
        If the store is damaged or cannot be read.
    """

    def __init__(self, location: StoreLocation | str | Path) -> None:
        self.location = location if isinstance(location, StoreLocation) else StoreLocation(location)
        where = self.location.where
        if not self.location.holds_store():
            raise UsageError(problem("--store", expected="a store that exists", got=where))
        try:
            found = read_attributes(self.location)
        except DAMAGE as error:
            raise KdcacheError(problem(f"could not read the store {where}", got=first_line(error))) from None
        if found.get("schema") != SCHEMA:
            what, remedy = (
                f"the store {where} was written by another version of kdcache",
                "Name another one with --store.",
            )
            raise KdcacheError(problem(what, expected=SCHEMA, got=found.get("schema"), remedy=remedy))
        attributes = {name: found.get(name) for name in CHECKSUMMED_ATTRIBUTES}
        if found.get("sha256") != digest(attributes):
            raise KdcacheError(problem(f"store {where} is damaged", got="attributes that do not match their checksum"))
        try:
            self.fingerprint: dict[str, Any] = dict(found["fingerprint"])
            self.made_with: dict[str, Any] = dict(found["made_with"])
            self.image_settings: dict[str, Any] = dict(self.made_with.get(IMAGE_SETTINGS, {}))
            self.samples, self.classes = (self.fingerprint[name] for name in ("samples", "classes"))
            self.precision = self.fingerprint["teacher precision"]
            self.encoding = make_encoding(**found["encoding"])
            _check_attributes(self.samples, self.classes, self.precision, self.encoding)
        except DAMAGE as error:
            remedy = "Delete the store, or name another one with --store."
            raise KdcacheError(problem(f"store {where} is damaged", got=f"{error}", remedy=remedy)) from None
        if self.encoding.name != self.fingerprint.get("dtype"):
            raise KdcacheError(
                problem(f"store {where} is damaged", got="an encoding that its fingerprint does not name")
            )
        self.origin = digest(self.fingerprint)

    @classmethod
    def create_or_open(
        cls,
        location: StoreLocation | str | Path,
        fingerprint: Mapping[str, Any],
        encoding: AnswerEncoding,
        made_with: Mapping[str, Any],
    ) -> Self:
        """Open the store in a place, or create it, for logits with a certain fingerprint.

        Parameters
        ----------
        location : StoreLocation, str or Path
        fingerprint : mapping
            What the logits depend on, with the ``samples`` and ``classes`` of the training set.
        encoding : AnswerEncoding
        made_with : mapping
            Recorded in a new store, but not compared: versions, threads, rows of a forward.

        Raises
        ------
        UsageError
            If the store has another fingerprint; with one line for each field that differs.
        KdcacheError
            If the store is damaged or cannot be read.
        """
        location = location if isinstance(location, StoreLocation) else StoreLocation(location)
        encoding.layout(fingerprint["classes"])  # raises for a topk that does not fit, before anything is created
        if not location.holds_store():
            attributes: dict[str, Any] = {
                "schema": SCHEMA,
                "fingerprint": {**fingerprint, "dtype": encoding.name},
                "made_with": dict(made_with),
                "encoding": asdict(encoding),
            }
            with location.lock("attributes"):
                if not location.holds_store():  # another process may have created it before we got the lock
                    attributes["sha256"] = digest(attributes)
                    zarr.create_group(location.store, attributes=attributes)
        store = cls(location)
        store.require_fingerprint({**fingerprint, "dtype": encoding.name}, made_with.get(IMAGE_SETTINGS))
        return store

    def require_fingerprint(
        self, fingerprint: Mapping[str, Any], image_settings: Mapping[str, Any] | None = None
    ) -> None:
        """Refuse other logits than those in the store.

        Parameters
        ----------
        fingerprint : mapping
            What the logits depend on, or a part of it.
        image_settings : mapping, optional
            The settings that say which images they are for, to explain a difference.

        Raises
        ------
        UsageError
            With one line for each field that differs.
        """
        stored = {name: self.fingerprint.get(name) for name in fingerprint}
        require_same_fingerprint(self.location.where, stored, fingerprint, self.image_settings, image_settings)

    def has_facts(self, facts: Mapping[str, Any]) -> bool:
        """Tell whether the fingerprint has these facts."""
        return all(self.fingerprint.get(name) == value for name, value in facts.items())

    def table(self, path: str) -> Table:
        """Make the object for a table, which need not exist."""
        return Table(self.location, path, self.samples, self.encoding.layout(self.classes), self.origin)

    def table_paths(self) -> list[str]:
        """List the paths of the tables of logits that exist, complete or not, in alphabetical order."""
        arrays = "|".join((*self.encoding.layout(self.classes), "commits"))
        found = (re.match(rf"(.+)/(?:{arrays})/", key) for key in self.location.list_keys())
        return sorted({match[1] for match in found if match} - {IMAGES, HEAD})

    @property
    def images(self) -> Table:
        """The table of the SHA-256 of each sample's image, see `kdcache.datasets.Split.image_digests`."""
        return Table(self.location, IMAGES, self.samples, {SHA256: (32, np.dtype("uint8"))}, self.origin)

    @property
    def head(self) -> Table | None:
        """The table of the teacher's last layer in float32, if vectors are stored: their logits follow from it."""
        if not isinstance(self.encoding, Vectors):
            return None
        layout = {WEIGHT: (self.encoding.width, np.dtype("float32")), BIAS: (1, np.dtype("float32"))}
        return Table(self.location, HEAD, self.classes, layout, self.origin)

    def replay_tables(self, kind: str | None = None) -> list[ReplayTableName]:
        """List the replay tables that exist, of one kind or all."""
        return parse_replay_tables(self.table_paths(), kind)

    def drop(self, paths: Collection[str]) -> None:
        """Delete tables, the groups that become empty, and unfinished files of killed writers.

        Raises
        ------
        UsageError
            If another process writes to the store.
        """
        with self.location.lock(None, wait=False) as locked:
            if not locked:
                what, got = f"store {self.location.where}", "one that another process writes to"
                raise UsageError(problem(what, expected="a store that is not in use", got=got))
            for path in paths:
                self.location.delete_group(path)
            remaining = self.table_paths()
            groups = {str(group) for path in paths for group in PurePosixPath(path).parents} - {"."}
            for group in groups:
                if not any(path.startswith(f"{group}/") for path in remaining):
                    self.location.delete_group(group)
            for key in self.location.list_keys():
                if key.endswith(".partial"):
                    self.location.delete(key)

    @property
    def table_bytes(self) -> int:
        """Size of a complete table in bytes, with its metadata."""
        return table_bytes(self.samples, self.classes, self.encoding)


def _check_attributes(samples: object, classes: object, precision: object, encoding: AnswerEncoding) -> None:
    """Raise a ``ValueError`` for sizes that no store has, before memory is allocated for them."""
    if precision not in PRECISIONS:
        raise ValueError(f"the attribute teacher precision, {precision}")
    for name, size, limit in (("samples", samples, MAX_TABLE_BYTES), ("classes", classes, MAX_CLASSES)):
        if type(size) is not int or not 1 <= size <= limit:
            raise ValueError(f"the attribute {name}, {size}")
    assert isinstance(samples, int)
    assert isinstance(classes, int)
    if isinstance(encoding, TopK) and not 1 <= encoding.topk < classes:
        raise ValueError(f"the attribute topk, {encoding.topk}, for {classes} classes")
    if samples * row_bytes(encoding.layout(classes)) > MAX_TABLE_BYTES:
        raise ValueError(f"attributes of {samples} samples and {classes} classes, more than a table holds")


@cache
def table_bytes(samples: int, classes: int, encoding: AnswerEncoding) -> int:
    """Compute the size of a complete table in bytes, with its metadata."""
    example = Table(StoreLocation(), CLEAN, samples, encoding.layout(classes))
    example.create()
    chunk = example.chunk_rows * row_bytes(example.layout)
    # Each chunk comes with a checksum for every column, and a commit record with a checksum of its own.
    return example.location.size() + len(example.chunks) * (chunk + 4 * len(example.layout) + 12)
