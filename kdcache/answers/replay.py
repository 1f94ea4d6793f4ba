"""Answers by position: a table for each epoch and kind of view, filled a chunk ahead of the step that needs it."""

from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from kdcache import distributed
from kdcache.answers.codec import Columns
from kdcache.answers.store import AnswerStore, Replayed
from kdcache.answers.table import Ask, Table, fill

__all__ = ["Replay"]


@dataclass
class _Reader:
    """Where the reading of one table has come to."""

    table: Table
    held: dict[int, Columns | None] = field(default_factory=dict)
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
    keep : set of str, optional
        The kinds of which tables are added. Tables that are there are looked up, and completed, in any case; unless
        `keep` is ``None``: then nothing is written.
    limit : int
        Bytes that all tables of the store may take; a table that would not fit is not begun.
    """

    def __init__(
        self, store: AnswerStore, seed: int, kinds: Sequence[str], keep: Set[str] | None = None, limit: int = 0
    ) -> None:
        self.store, self.seed, self.kinds, self.keep, self.limit = store, seed, kinds, keep, limit
        self._tables = set(store.tables())
        self._readers: dict[int, _Reader] = {}
        self._epoch = -1
        self._thread = ThreadPoolExecutor(1, "kdcache-read")

    def _admit(self, epoch: int, slot: int) -> bool:
        """Tell whether a table is there, or may be begun: room is set aside for it then."""
        name = self._name(epoch, slot)
        if name in self._tables:
            return True
        fits = (len(self._tables) + 1) * self.store.table_bytes <= self.limit
        if self.keep is None or self.kinds[slot] not in self.keep or not fits:
            return False
        self._tables.add(name)
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
        if not self._admit(epoch, slot):
            return None
        reader = self._reader(epoch, slot)
        first, last = (place // reader.table.chunk_rows for place in (positions.start, positions.stop - 1))
        parts = []
        for chunk in range(first, last + 1):
            columns = self._chunk(reader, chunk, ask)
            if columns is None:
                return None
            span = reader.table.chunks[chunk]
            rows = slice(max(positions.start - span.start, 0), positions.stop - span.start)
            parts.append({name: column[rows] for name, column in columns.items()})
        reader.held = {chunk: columns for chunk, columns in reader.held.items() if chunk >= first}
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def tables(self, epochs: int) -> list[tuple[int, int]]:
        """List what is there, or will be, of the first epochs: (epoch, slot)."""
        return [(epoch, slot) for epoch in range(epochs) for slot in range(len(self.kinds)) if self._admit(epoch, slot)]

    def fill(self, epochs: int, ask: Callable[[int, int], Ask]) -> Iterator[tuple[int, int, range, Columns]]:
        """Write what is missing of the first epochs, see `kdcache.answers.table.fill`.

        Parameters
        ----------
        epochs : int
        ask : callable
            Gives what answers a chunk of an epoch's slot.

        Yields
        ------
        epoch, slot : int
        positions : range
        columns : Columns
            The answers, which are there now.
        """
        places = {self._name(*place): place for place in self.tables(epochs)}
        for table, chunk, columns in fill((self.store.table(name), ask(*place)) for name, place in places.items()):
            yield *places[table.name], table.chunks[chunk], columns

    def _chunk(self, reader: _Reader, chunk: int, ask: Ask) -> Columns | None:
        if chunk in reader.held:
            return reader.held[chunk]
        table, ahead = reader.table, reader.ahead.pop(chunk, None)
        columns = ahead.result() if ahead else table.read(chunk)
        if columns is None and self.keep is not None:
            for own in self._own(chunk, len(table.chunks)):
                table.obtain(own, ask)
            columns = table.obtain(chunk, ask)
        reader.held[chunk] = columns
        if chunk + 1 < len(table.chunks):
            reader.ahead[chunk + 1] = self._thread.submit(table.read, chunk + 1)
        return columns

    @staticmethod
    def _own(chunk: int, chunks: int) -> list[int]:
        """Say which chunk this process asks first: of as many as there are processes, each takes another one."""
        own = chunk - chunk % distributed.world_size() + distributed.rank()
        return [own] if chunk < own < chunks else []

    def _reader(self, epoch: int, slot: int) -> _Reader:
        if epoch != self._epoch:
            self._epoch, self._readers = epoch, {}
        if slot not in self._readers:
            self._readers[slot] = _Reader(self.store.table(self._name(epoch, slot)))
        return self._readers[slot]

    def _name(self, epoch: int, slot: int) -> str:
        return Replayed(self.seed, epoch, self.kinds[slot]).table
