"""Answers to the standard views, which are finitely many, wherever in the epochs they came up first."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kdcache.answers.codec import Columns, Layout, row_bytes
from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.views import Plan

__all__ = ["CropFlipIndex"]


class CropFlipIndex:
    """A row of answers for each key that has one; keys are those of `kdcache.views.Plan.standard_keys`.

    Rows lie in the order in which they came, in a file without a name that is mapped into memory: training gathers from
    all over it, which from a zarr store would be a thousand times slower. It is made anew from what is committed.

    Parameters
    ----------
    keys : int
        How many keys there can be.
    capacity : int
        How many of them can get a row, those that come first; the disk is taken as rows come.
    layout : Layout
    folder : Path, optional
        Where the file may lie; by default the system's place for temporary files.
    """

    def __init__(self, keys: int, capacity: int, layout: Layout, folder: Path | None = None) -> None:
        self._row = np.full(keys, -1, np.int32)
        self._rows, self._capacity = 0, min(capacity, keys)
        self._columns: Columns = {}
        for name, (width, dtype) in layout.items():
            with tempfile.TemporaryFile(dir=folder) as file:  # the mapping keeps it until it is closed
                mapped = np.memmap(file, dtype, "w+", shape=(self._capacity, width))
            self._columns[name] = torch.from_numpy(mapped)

    @classmethod
    def of_store(cls, store: AnswerStore, plan: Plan, epochs: int, limit: int) -> "CropFlipIndex":
        """Collect what a store knows of the standard views of a plan, and make room for so many further epochs.

        Every epoch of every view seed counts, and so do the clean views, each the middle crop of its sample. The rows
        take at most `limit` bytes.
        """
        replayed = store.replayed("standard") if plan.crop_flip else []
        layout = store.format.layout(store.classes)
        capacity = min(plan.samples * (len(replayed) + epochs + 1), max(limit // row_bytes(layout), 1))
        folder = store.place.folder.parent if store.place.folder else None
        finite = cls(plan.samples * plan.standard_views, capacity, layout, folder)
        finite._collect(store, CLEAN, plan.clean_keys())
        for name in replayed:
            one = replace(plan, mixes=(), seed=name.seed)
            finite._collect(store, name.table, one.standard_keys(one.epoch(name.epoch), np.arange(plan.samples)))
        return finite

    def _collect(self, store: AnswerStore, name: str, keys: np.ndarray) -> None:
        table = store.table(name)
        for chunk, rows in enumerate(table.chunks):
            columns = table.read(chunk)
            if columns is not None:
                self.add(keys[rows.start : rows.stop], columns)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, Columns]:
        """Find the answers that are known.

        Parameters
        ----------
        keys : ndarray of int64, shape (B,)

        Returns
        -------
        known : ndarray of bool, shape (B,)
        columns : Columns
            The answers to those keys alone, in their order.
        """
        rows = self._row[keys]
        known = rows >= 0
        chosen = torch.from_numpy(rows[known].astype(np.int64))
        return known, {name: column[chosen] for name, column in self._columns.items()}

    def add(self, keys: np.ndarray, columns: Columns) -> None:
        """Remember answers while there is room; keys that have one already keep it."""
        new, first = np.unique(keys, return_index=True)
        first = first[self._row[new] < 0][: self._capacity - self._rows]
        place = slice(self._rows, self._rows + len(first))
        for name, column in columns.items():
            self._columns[name][place] = column[torch.from_numpy(first)]
        self._row[keys[first]] = np.arange(place.start, place.stop)
        self._rows = place.stop
