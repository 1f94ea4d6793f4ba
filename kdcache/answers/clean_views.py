"""Stored logits of clean views, found by the content of the image in stores for other sets of images."""

from collections.abc import Iterator, Sequence

import numpy as np

from kdcache.answers.encoding import EncodedAnswers
from kdcache.answers.store import CLEAN, SHA256, AnswerStore

__all__ = ["find_clean_views", "find_equal_rows", "known_clean_views"]


def known_clean_views(stores: Sequence[AnswerStore], images: np.ndarray) -> np.ndarray:
    """Tell of which images some stores hold the logits of the clean view: bool (N,).

    Parameters
    ----------
    stores : sequence of AnswerStore
    images : ndarray of uint8, shape (N, 32)
        SHA-256 of the images, see `kdcache.datasets.Split.image_digests`.
    """
    known = np.zeros(len(images), bool)
    for store in stores:
        known |= _rows_of(images, store) >= 0
    return known


def find_clean_views(stores: Sequence[AnswerStore], images: np.ndarray) -> Iterator[tuple[np.ndarray, EncodedAnswers]]:
    """Read the logits of the clean views of images, as far as some stores hold them.

    Parameters
    ----------
    stores : sequence of AnswerStore
    images : ndarray of uint8, shape (N, 32)
        SHA-256 of the images.

    Yields
    ------
    samples : ndarray of int64
        Positions in `images`; those that several stores hold come several times.
    columns : EncodedAnswers
        A row for each.
    """
    for store in stores:
        table, row_of = store.table(CLEAN), _rows_of(images, store)
        for chunk, samples in _by_chunk(row_of, table.chunk_rows):
            columns = table.read(chunk)
            if columns is not None:
                rows = row_of[samples] - table.chunks[chunk].start
                yield samples, {name: column[rows] for name, column in columns.items()}


def _rows_of(images: np.ndarray, store: AnswerStore) -> np.ndarray:
    """Row of each image in the table of clean views of a store, int64 (N,); -1 for images that it does not hold."""
    table, stored = store.table(CLEAN), _stored_images(store)
    committed = np.repeat(table.committed() > 0, table.chunk_rows)[: store.samples]
    rows = np.flatnonzero(committed & stored.any(1))
    found = find_equal_rows(images, stored[rows])
    found[found >= 0] = rows[found[found >= 0]]
    return found


def find_equal_rows(wanted: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Find a row of `held` that is equal to each of `wanted`: int64 (N,), -1 where there is none.

    Parameters
    ----------
    wanted, held : ndarray of uint8, shapes (N, 32), (M, 32)
    """
    found = np.full(len(wanted), -1)
    if len(held):
        # Bytes have an order; what they omit, zeros at the end, does not matter at equal lengths.
        one, other = (np.ascontiguousarray(digests).view("S32").ravel() for digests in (wanted, held))
        order = np.argsort(other)
        place = order[np.minimum(np.searchsorted(other, one, sorter=order), len(held) - 1)]
        same = other[place] == one
        found[same] = place[same]
    return found


def _stored_images(store: AnswerStore) -> np.ndarray:
    """SHA-256 of the images of a store, uint8 (samples, 32); zeros where they are not stored."""
    table = store.images
    stored = np.zeros((store.samples, 32), np.uint8)
    for chunk, rows in enumerate(table.chunks):
        columns = table.read(chunk)
        if columns is not None:
            stored[rows.start : rows.stop] = columns[SHA256].numpy()
    return stored


def _by_chunk(row_of: np.ndarray, chunk_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Group the samples that have a row by the chunk of the row."""
    samples = np.flatnonzero(row_of >= 0)
    if not len(samples):
        return
    samples = samples[np.argsort(row_of[samples], kind="stable")]
    chunks, starts = np.unique(row_of[samples] // chunk_rows, return_index=True)
    yield from zip(chunks.tolist(), np.split(samples, starts[1:]), strict=True)
