"""The tables that a store has, and the space for more."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from kdcache.answers.encoding import AnswerEncoding, Vectors
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN, HEAD, IMAGES, AnswerStore, ReplayTableName, parse_replay_tables, table_bytes
from kdcache.views.plan import ViewPlan

__all__ = ["UNLIMITED", "StoreContents", "default_limit", "stored_bytes"]

UNLIMITED = 2**62
"""Size limit in bytes that no store reaches."""

DEFAULT_LIMIT_BYTES = 10 * 10**9
"""Default size limit of a teacher's stores, unless `MAX_DISK_SHARE` is less."""

HASH_BYTES = 32
"""Bytes of the SHA-256 of an image."""

MAX_DISK_SHARE = 0.1
"""Share of the disk space, free or already taken by the stores, that they may take by default."""


@dataclass(frozen=True)
class StoreContents:
    """The tables of a store, and the size limit of all stores of its teacher.

    Parameters
    ----------
    table_bytes : int
        Size of each table.
    limit : int
        Maximum size of all tables of all stores in bytes.
    replay : mapping
        Epochs that have a replay table, by view seed and kind of view.
    has_clean : bool
        Whether there is a table of clean views.
    incomplete : mapping
        Committed rows, bool (N,), of the tables that lack chunks, by path. Other tables are complete.
    others : int
        Bytes of the tables in the other stores.
    clean_beside : ndarray of bool, shape (N,), optional
        The samples whose clean views are in other stores; by default none.
    hash_bytes : int
        Size of the hashes of the images, which come with the table of clean views.
    head_bytes : int
        Size of the teacher's last layer, which comes with vectors.
    """

    table_bytes: int
    limit: int
    replay: Mapping[tuple[int, str], Set[int]] = field(default_factory=dict)
    has_clean: bool = False
    incomplete: Mapping[str, np.ndarray] = field(default_factory=dict)
    others: int = 0
    clean_beside: np.ndarray | None = None
    hash_bytes: int = 0
    head_bytes: int = 0

    @classmethod
    def with_tables(cls, paths: Iterable[str], table_bytes: int, limit: int) -> Self:
        """Make the space of a store with certain tables."""
        paths, replay = set(paths), dict[tuple[int, str], set[int]]()
        for name in parse_replay_tables(paths):
            replay.setdefault((name.seed, name.kind), set()).add(name.epoch)
        return cls(table_bytes, limit, replay, CLEAN in paths)

    @classmethod
    def of_store(
        cls,
        store: AnswerStore,
        limit: int | None = None,
        others: int = 0,
        read_commits: bool = False,
    ) -> Self:
        """Read which tables a store has.

        Parameters
        ----------
        store : AnswerStore
        limit : int, optional
            By default `default_limit`.
        others : int
            Bytes of the other stores of the teacher.
        read_commits : bool
            Whether to find out which tables are incomplete, which reads a small file for each chunk.
        """
        paths = store.table_paths()
        if limit is None:
            limit = default_limit(store.location.free_bytes(), len(paths) * store.table_bytes + others)
        space = cls.with_tables(paths, store.table_bytes, limit)
        head = _head_bytes(store.classes, store.encoding)
        space = replace(space, others=others, hash_bytes=HASH_BYTES * store.samples, head_bytes=head)
        return replace(space, incomplete=_incomplete_tables(store, paths)) if read_commits else space

    @classmethod
    def of_new_store(
        cls,
        location: StoreLocation,
        samples: int,
        classes: int,
        encoding: AnswerEncoding,
        limit: int | None = None,
        others: int = 0,
    ) -> Self:
        """Make the space of a store that does not exist yet, see `of_store`."""
        if limit is None:
            limit = default_limit(location.free_bytes(), others)
        head, hashes = _head_bytes(classes, encoding), HASH_BYTES * samples
        size = table_bytes(samples, classes, encoding)
        return cls(size, limit, others=others, hash_bytes=hashes, head_bytes=head)

    @property
    def num_tables(self) -> int:
        """Number of tables."""
        return self.has_clean + sum(map(len, self.replay.values()))

    @property
    def size(self) -> int:
        """Bytes of all tables when they are complete."""
        beside = self.has_clean * self.hash_bytes + (self.head_bytes if self.num_tables else 0)
        return self.num_tables * self.table_bytes + beside

    @property
    def max_tables(self) -> int:
        """Number of tables within the limit."""
        return self.own_limit // self.table_bytes

    @property
    def own_limit(self) -> int:
        """Bytes for tables of answers that the other stores, and what this one has beside them, leave."""
        return max(0, self.limit - self.others - self.has_clean * self.hash_bytes - self.head_bytes)

    def missing_clean(self, plan: ViewPlan) -> int:
        """Count the samples whose clean views are in no store."""
        missing = np.full(plan.samples, not self.has_clean)
        if CLEAN in self.incomplete:
            missing = ~self.incomplete[CLEAN]
        return int(np.sum(missing if self.clean_beside is None else missing & ~self.clean_beside))

    def missing_epochs(self, plan: ViewPlan, epochs: int, kind: str) -> Set[int]:
        """Find the epochs of a plan that have no replay table of a kind."""
        return set(range(epochs)) - self.replay.get((plan.seed, kind), set())

    def fits(self, plan: ViewPlan, epochs: int) -> bool:
        """Tell whether all tables of a run are there or fit into the limit."""
        if not plan.crop_flip:
            return replace(self, has_clean=True).size + self.others <= self.limit
        missing = sum(len(self.missing_epochs(plan, epochs, kind)) for kind in plan.kinds)
        return self.num_tables + missing <= self.max_tables

    def after_run(self, plan: ViewPlan, epochs: int, keep: Set[str]) -> Self:
        """Add the tables of the kinds that a run keeps, as far as they fit, and complete all that it uses."""
        if not plan.crop_flip:
            return replace(self, has_clean=self.has_clean or bool(keep), incomplete={})
        used = {ReplayTableName(plan.seed, epoch, kind).path for epoch in range(epochs) for kind in plan.kinds}
        incomplete = {path: rows for path, rows in self.incomplete.items() if path not in used}
        kept = [kind for kind in plan.kinds if kind in keep]
        missing = {kind: self.missing_epochs(plan, epochs, kind) for kind in kept}
        # A run creates tables epoch by epoch, until no further one fits.
        tables = sorted((epoch, slot) for slot, kind in enumerate(kept) for epoch in missing[kind])
        replay = {key: set(stored) for key, stored in self.replay.items()}
        for epoch, slot in tables[: max(0, self.max_tables - self.num_tables)]:
            replay.setdefault((plan.seed, kept[slot]), set()).add(epoch)
        return replace(self, replay=replay, incomplete=incomplete)


def stored_bytes(store: AnswerStore) -> int:
    """Bytes of the tables of a store; incomplete ones of logits are counted as a whole."""
    beside = sum(store.location.size(name) for name in (IMAGES, HEAD))
    return len(store.table_paths()) * store.table_bytes + beside


def _head_bytes(classes: int, encoding: AnswerEncoding) -> int:
    return 4 * classes * (encoding.width + 1) if isinstance(encoding, Vectors) else 0


def _incomplete_tables(store: AnswerStore, paths: Iterable[str]) -> dict[str, np.ndarray]:
    found = {}
    for path in paths:
        table = store.table(path)
        committed = table.committed() > 0
        if not committed.all():
            found[path] = np.repeat(committed, table.chunk_rows)[: store.samples]
    return found


def default_limit(free: int | None, stored: int) -> int:
    """Default size limit of stores that have so many bytes, on a disk with so many free ones."""
    return DEFAULT_LIMIT_BYTES if free is None else min(DEFAULT_LIMIT_BYTES, int(MAX_DISK_SHARE * (free + stored)))
