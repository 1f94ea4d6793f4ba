"""Answers by position: a table for each epoch and kind of view, filled a chunk ahead of the step that needs it."""

from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from kdcache.store.answers import AnswerStore, Replayed
from kdcache.store.formats import Columns
from kdcache.store.table import Ask, Table, fill

__all__ = ["Replay"]


@dataclass
class _Reader:
    """Where the reading of one table has come to."""

    table: Table
    held: dict[int, Columns] = field(default_factory=dict)
    ahead: dict[int, "Future[Columns | None]"] = field(default_factory=dict)


class Replay:
    """The part of a store that knows every view of a plan by its name, (epoch, position, slot).

    Parameters
    ----------
    store : AnswerStore
    seed : int
        View seed.
    kinds : sequence of str
        What each slot shows, see `kdcache.views.Plan.kinds`.
    keep : set of str
        The kinds whose answers are to be stored; those of others are used if they are there.
    limit : int
        Bytes that all tables of the store may take; a table that would not fit is not begun.
    """

    def __init__(self, store: AnswerStore, seed: int, kinds: Sequence[str], keep: Set[str], limit: int) -> None:
        self.store, self.seed, self.kinds, self.keep, self.limit = store, seed, kinds, keep, limit
        self._existing = set(store.tables())
        self._readers: dict[int, _Reader] = {}
        self._epoch = -1
        self._thread = ThreadPoolExecutor(1, "kdcache-read")

    def keeps(self, epoch: int, slot: int) -> bool:
        """Whether what is missing in the table of a slot in an epoch is to be stored."""
        name = self._name(epoch, slot)
        if self.kinds[slot] not in self.keep:
            return False
        if name not in self._existing:
            if (len(self._existing) + 1) * self.store.table_bytes > self.limit:
                return False
            self._existing.add(name)
        return True

    def rows(self, epoch: int, slot: int, positions: range, ask: Ask) -> Columns | None:
        """Find the answers of one slot at some positions, which only rise within an epoch.

        Parameters
        ----------
        epoch, slot : int
        positions : range
        ask : callable
            Answers a whole chunk that is missing and to be kept.

        Returns
        -------
        Columns or None
            ``None`` where they are neither there nor to be kept.
        """
        if not self.keeps(epoch, slot) and self._name(epoch, slot) not in self._existing:
            return None
        reader = self._reader(epoch, slot)
        first, last = (place // reader.table.chunk_rows for place in (positions.start, positions.stop - 1))
        parts = []
        for chunk in range(first, last + 1):
            columns = self._chunk(reader, chunk, ask if self.keeps(epoch, slot) else None)
            if columns is None:
                return None
            span = reader.table.chunks[chunk]
            rows = slice(max(positions.start - span.start, 0), positions.stop - span.start)
            parts.append({name: column[rows] for name, column in columns.items()})
        reader.held = {chunk: columns for chunk, columns in reader.held.items() if chunk >= first}
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def tables(self, epochs: int) -> list[tuple[int, int]]:
        """List what is to be kept of the first epochs: (epoch, slot)."""
        return [(epoch, slot) for epoch in range(epochs) for slot in range(len(self.kinds)) if self.keeps(epoch, slot)]

    def fill(self, epochs: int, ask: Callable[[int, int], Ask]) -> Iterator[int]:
        """Write what is missing of the first epochs, see `kdcache.store.table.fill`.

        Parameters
        ----------
        epochs : int
        ask : callable
            Gives what answers a chunk of an epoch's slot.
        """
        yield from fill([(self.store.table(self._name(*place)), ask(*place)) for place in self.tables(epochs)])

    def _chunk(self, reader: _Reader, chunk: int, ask: Ask | None) -> Columns | None:
        if chunk in reader.held:
            return reader.held[chunk]
        table, ahead = reader.table, reader.ahead.pop(chunk, None)
        columns = ahead.result() if ahead else table.read(chunk)
        if columns is None and ask is not None:
            columns = table.obtain(chunk, ask)
        if columns is not None:
            reader.held[chunk] = columns
            if chunk + 1 < len(table.chunks):
                reader.ahead[chunk + 1] = self._thread.submit(table.read, chunk + 1)
        return columns

    def _reader(self, epoch: int, slot: int) -> _Reader:
        if epoch != self._epoch:
            self._epoch, self._readers = epoch, {}
        if slot not in self._readers:
            self._readers[slot] = _Reader(self.store.table(self._name(epoch, slot)))
        return self._readers[slot]

    def _name(self, epoch: int, slot: int) -> str:
        return Replayed(self.seed, epoch, self.kinds[slot]).table
