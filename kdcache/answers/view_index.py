"""Index of logits by crop and flip: a sample has few crop-and-flip views, which come up again in later epochs."""

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch

from kdcache.answers.encoding import EncodedAnswers, Layout, row_bytes
from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.views.plan import STANDARD, ViewPlan

__all__ = ["CropFlipLookup"]

log = logging.getLogger("kdcache")


class CropFlipLookup:
    """Maps keys of crop-and-flip views, see `kdcache.views.ViewPlan.standard_keys`, to encoded logits.

    The rows are in a memory-mapped temporary file, in the order in which they were added: training gathers rows from
    all over it, which from a zarr store would be a thousand times slower. They are written by calls, not through the
    mapping: there, a full disk would end the process by a signal. The index is rebuilt from the store in each process.

    Parameters
    ----------
    keys : int
        Number of possible keys.
    capacity : int
        Maximum number of rows; the disk space is allocated as rows are added.
    layout : Layout
    folder : Path, optional
        Folder for the temporary file; by default, and if it cannot be written, the system's.
    """

    def __init__(self, keys: int, capacity: int, layout: Layout, folder: Path | None = None) -> None:
        self._row = np.full(keys, -1, np.int32)
        self._rows, self._capacity = 0, min(capacity, keys)
        self._files: dict[str, IO[bytes]] = {}
        self._columns: dict[str, np.ndarray] = {}
        for name, (width, dtype) in layout.items():
            file = self._files[name] = _temporary_file(folder)
            file.truncate(self._capacity * width * dtype.itemsize)
            self._columns[name] = np.asarray(np.memmap(file, dtype, "r", shape=(self._capacity, width)))

    @classmethod
    def from_store(cls, store: AnswerStore, plan: ViewPlan, epochs: int, limit: int) -> "CropFlipLookup":
        """Build the index of a plan's crop-and-flip views from a store.

        Parameters
        ----------
        store : AnswerStore
            Its clean views and the x of every epoch and view seed are added. A clean view is the center crop.
        plan : ViewPlan
        epochs : int
            Further epochs for which there is to be capacity.
        limit : int
            Maximum size of the rows in bytes.
        """
        tables = store.replay_tables(STANDARD) if plan.crop_flip else []
        layout = store.encoding.layout(store.classes)
        capacity = min(plan.samples * (len(tables) + epochs + 1), max(limit // row_bytes(layout), 1))
        folder = store.location.folder.parent if store.location.folder else None
        index = cls(plan.samples * plan.standard_views, capacity, layout, folder)
        index._add_table(store, CLEAN, plan.clean_keys())
        for name in tables:
            stored = replace(plan, mixes=(), seed=name.seed)
            keys = stored.standard_keys(stored.epoch(name.epoch), np.arange(plan.samples))
            index._add_table(store, name.path, keys)
        return index

    def _add_table(self, store: AnswerStore, path: str, keys: np.ndarray) -> None:
        table = store.table(path)
        for chunk, rows in enumerate(table.chunks):
            columns = table.read(chunk)
            if columns is not None:
                self.add(keys[rows.start : rows.stop], columns)

    @property
    def is_complete(self) -> bool:
        """Whether it holds every possible key."""
        return self._rows == len(self._row)

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, EncodedAnswers]:
        """Look up keys.

        Parameters
        ----------
        keys : ndarray of int64, shape (B,)

        Returns
        -------
        hit : ndarray of bool, shape (B,)
            Whether each key is in the index.
        columns : EncodedAnswers
            The rows of the hits, in the order of the keys.
        """
        rows = self._row[keys]
        hit = rows >= 0
        return hit, {name: torch.from_numpy(column[rows[hit]]) for name, column in self._columns.items()}

    def add(self, view_keys: np.ndarray, encoded: EncodedAnswers) -> None:
        """Add the encoded logits of views while there is capacity and disk space; views in the index keep theirs."""
        new, first = np.unique(view_keys, return_index=True)
        first = first[self._row[new] < 0][: self._capacity - self._rows]
        rows = slice(self._rows, self._rows + len(first))
        try:
            for name, column in encoded.items():
                added = column[torch.from_numpy(first)].numpy()
                _write(self._files[name].fileno(), added.tobytes(), self._rows * added[:1].nbytes)
        except OSError as error:
            log.warning("the index of crop-and-flip views keeps its %d rows (%s)", self._rows, error.strerror)
            self._capacity = self._rows
            return
        self._row[view_keys[first]] = np.arange(rows.start, rows.stop)
        self._rows = rows.stop


def _temporary_file(folder: Path | None) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()


def _write(descriptor: int, content: bytes, offset: int) -> None:
    """Write bytes at an offset; a call may write a part of them."""
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
