"""Stored logits by position: one table for each epoch and kind of view, read one chunk ahead of the training step."""

from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from kdcache import distributed
from kdcache.answers.encoding import EncodedAnswers
from kdcache.answers.store import AnswerStore, ReplayTableName
from kdcache.answers.table import ComputeRows, Table, fill_missing

__all__ = ["Replay"]


@dataclass
class _Reader:
    """State of reading one table: the current chunks, and those that are being read ahead."""

    table: Table
    current: dict[int, EncodedAnswers | None] = field(default_factory=dict)
    ahead: dict[int, "Future[EncodedAnswers | None]"] = field(default_factory=dict)


class Replay:
    """Reads and writes the replay tables of a plan.

    Parameters
    ----------
    store : AnswerStore
    seed : int
        View seed.
    kinds : sequence of str
        Kind of view in each slot, see `kdcache.views.ViewPlan.kinds`.
    keep : set of str, optional
        Kinds for which tables are created. Existing tables are read, and missing chunks written, in any case; unless
        `keep` is ``None``: then nothing is written.
    limit : int
        Maximum size of all tables of the store in bytes; tables beyond it are not created.
    """

    def __init__(
        self, store: AnswerStore, seed: int, kinds: Sequence[str], keep: Set[str] | None = None, limit: int = 0
    ) -> None:
        self.store, self.seed, self.kinds, self.keep, self.limit = store, seed, kinds, keep, limit
        self._tables = set(store.table_paths())
        self._table_bytes = store.table_bytes
        self._readers: dict[int, _Reader] = {}
        self._epoch = -1
        self._thread = ThreadPoolExecutor(1, "kdcache-read")

    def has_table(self, epoch: int, slot: int) -> bool:
        """Tell whether a table exists or may be created; its space is reserved then."""
        path = self._path(epoch, slot)
        if path in self._tables:
            return True
        fits = (len(self._tables) + 1) * self._table_bytes <= self.limit
        if self.keep is None or self.kinds[slot] not in self.keep or not fits:
            return False
        self._tables.add(path)
        return True

    def rows(self, epoch: int, slot: int, positions: range, compute_rows: ComputeRows) -> EncodedAnswers | None:
        """Read the encoded logits of one slot; within an epoch, positions only increase.

        Parameters
        ----------
        epoch, slot : int
        positions : range
        compute_rows : callable
            Computes a whole chunk that is missing and will be written.

        Returns
        -------
        EncodedAnswers or None
            ``None`` if the rows are missing and will not be written.
        """
        if not self.has_table(epoch, slot):
            return None
        reader = self._reader(epoch, slot)
        first, last = (position // reader.table.chunk_rows for position in (positions.start, positions.stop - 1))
        parts = []
        for chunk in range(first, last + 1):
            columns = self._chunk(reader, chunk, compute_rows)
            if columns is None:
                return None
            span = reader.table.chunks[chunk]
            rows = slice(max(positions.start - span.start, 0), positions.stop - span.start)
            parts.append({name: column[rows] for name, column in columns.items()})
        reader.current = {chunk: columns for chunk, columns in reader.current.items() if chunk >= first}
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def tables(self, epochs: int) -> list[tuple[int, int]]:
        """List the tables of the first epochs that exist or will be created: (epoch, slot)."""
        slots = range(len(self.kinds))
        return [(epoch, slot) for epoch in range(epochs) for slot in slots if self.has_table(epoch, slot)]

    def fill_missing(
        self, epochs: int, compute_rows: Callable[[int, int], ComputeRows]
    ) -> Iterator[tuple[int, int, range, EncodedAnswers]]:
        """Write the missing chunks of the first epochs, see `kdcache.answers.table.fill_missing`.

        Parameters
        ----------
        epochs : int
        compute_rows : callable
            From epoch and slot, the function that computes rows of it.

        Yields
        ------
        epoch, slot : int
        positions : range
        columns : EncodedAnswers
            The rows at these positions, which are in the store now.
        """
        places = {self._path(*place): place for place in self.tables(epochs)}
        work = ((self.store.table(path), compute_rows(*place)) for path, place in places.items())
        for table, chunk, columns in fill_missing(work):
            yield *places[table.name], table.chunks[chunk], columns

    def _chunk(self, reader: _Reader, chunk: int, compute_rows: ComputeRows) -> EncodedAnswers | None:
        if chunk in reader.current:
            return reader.current[chunk]
        table, ahead = reader.table, reader.ahead.pop(chunk, None)
        columns = ahead.result() if ahead else table.read(chunk)
        if columns is None and self.keep is not None:
            for own in self._own_chunk(chunk, len(table.chunks)):
                table.read_or_compute(own, compute_rows)
            columns = table.read_or_compute(chunk, compute_rows)
        reader.current[chunk] = columns
        if chunk + 1 < len(table.chunks):
            reader.ahead[chunk + 1] = self._thread.submit(table.read, chunk + 1)
        return columns

    @staticmethod
    def _own_chunk(chunk: int, chunks: int) -> list[int]:
        """Choose the chunk that this process computes first, so that the processes compute different ones at once."""
        own = chunk - chunk % distributed.world_size() + distributed.rank()
        return [own] if chunk < own < chunks else []

    def _reader(self, epoch: int, slot: int) -> _Reader:
        if epoch != self._epoch:
            self._epoch, self._readers = epoch, {}
        if slot not in self._readers:
            self._readers[slot] = _Reader(self.store.table(self._path(epoch, slot)))
        return self._readers[slot]

    def _path(self, epoch: int, slot: int) -> str:
        return ReplayTableName(self.seed, epoch, self.kinds[slot]).path
