"""Copies of a store with a card, to a folder or URL and from there. Each can be interrupted and repeated."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from kdcache.answers.card import CARD, AnswerCard, StoredFile
from kdcache.answers.card_store import CardStore
from kdcache.answers.durable_store import ROOT_KEY
from kdcache.answers.head import read_head
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import AnswerStore
from kdcache.answers.table import Table
from kdcache.errors import KdcacheError, UsageError, abbreviated, problem

__all__ = ["CopyProgress", "complete_tables", "copy_files", "describe_files"]

FILES_AT_ONCE = 8

CopyProgress = Callable[[int, int], None]
"""Receives how many of how many bytes are in place."""

log = logging.getLogger("kdcache")


def complete_tables(store: AnswerStore) -> list[str]:
    """List the tables of logits that are complete and undamaged; others are reported.

    Raises
    ------
    KdcacheError
        If a chunk is damaged.
    UsageError
        If there are none.
    """
    tables = [store.table(path) for path in store.table_paths()]
    incomplete = [table.name for table in tables if not _is_complete(table)]
    if incomplete:
        log.warning("left out, since they are incomplete: %s", abbreviated(incomplete, 3))
    if len(incomplete) == len(tables):
        raise UsageError(problem(f"store {store.location.where}", expected="a complete table of logits", got="none"))
    return [table.name for table in tables if table.name not in incomplete]


def _is_complete(table: Table) -> bool:
    committed = table.committed() > 0
    for chunk in committed.nonzero()[0].tolist():
        table.read(chunk)
    if table.damaged:
        what = f"chunk {min(table.damaged)} of {table.name} in {table.location.where} is damaged"
        raise KdcacheError(problem(what, remedy="Compute it again with 'kdcache cache fill', and push then."))
    return bool(committed.all())


def describe_files(store: AnswerStore, tables: Sequence[str]) -> dict[str, StoredFile]:
    """Compute the checksum of each file of some tables of a store, and of those that lead to them."""
    found, location = {}, store.location
    present = set(location.list_keys())
    top, chosen = {key.split("/")[0] for key in present}, [store.table(path) for path in tables]
    chosen += [store.images] if store.images.name in top and _is_complete(store.images) else []
    if store.head is not None:
        read_head(store)  # without which the logits are unknown
        chosen.append(store.head)
    groups = {ROOT_KEY} | {f"{group}/{ROOT_KEY}" for table in chosen for group in _groups(table.name)}
    keys = groups.union(*map(_keys, chosen)) & present
    for key in sorted(keys):
        content = location.read(key)
        if content is not None:
            found[key] = StoredFile.of(content)
    return found


def _groups(path: str) -> Iterator[str]:
    yield path
    yield from map(str, PurePosixPath(path).parents[:-1])


def _keys(table: Table) -> set[str]:
    arrays = [f"{table.name}/{name}" for name in (*table.layout, "commits")]
    metadata = {f"{array}/{ROOT_KEY}" for array in arrays}
    return metadata | {f"{array}/c/{chunk}/0" for array in arrays for chunk in range(len(table.chunks))}


def copy_files(
    card: AnswerCard, source: StoreLocation, target: StoreLocation, progress: CopyProgress = lambda done, total: None
) -> int:
    """Copy the files of a card, and then the card.

    What is in place already, with the right checksum, is not copied again. Each file is checked before it is written.
    The root metadata are written last but the card, so that a part of a store is not taken for one.

    Returns
    -------
    int
        Bytes that were written.

    Raises
    ------
    UsageError
        If there is anything else in the target, or another process writes there.
    KdcacheError
        If a file of the source is damaged.
    """
    with target.lock(None, wait=False) as locked:
        if not locked:
            expected, got = "a place that is not in use", "one that another process writes to"
            raise UsageError(problem(target.where, expected=expected, got=got))
        present = {key for key in target.list_keys() if not key.endswith(".partial")}
        _require_room(card, target, present)
        text = card.to_json()
        if CARD in present and target.read(CARD) != text:
            target.delete(CARD)  # it is not true of what is written from here on
        checked, done, written = CardStore(source, card.files), 0, 0

        def copy(key: str) -> int:
            if key in present and card.files[key].matches(target.read(key)):
                return 0
            target.write(key, checked.read(key))
            return card.files[key].size

        with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
            others = [key for key in card.files if key != ROOT_KEY]
            for key, size in zip(others, threads.map(copy, others), strict=True):
                done, written = done + card.files[key].size, written + size
                progress(done, card.size)
        written += copy(ROOT_KEY)
        progress(card.size, card.size)
        target.write(CARD, text)
    return written


def _require_room(card: AnswerCard, target: StoreLocation, present: set[str]) -> None:
    """Refuse a place that holds anything but a part of these answers, or more of the same store."""
    if ROOT_KEY in present:
        if not card.files[ROOT_KEY].matches(target.read(ROOT_KEY)):
            remedy = "Name another place, or delete what is there."
            got = "another store"
            raise UsageError(
                problem(target.where, expected="an empty place, or the same store", got=got, remedy=remedy)
            )
    elif other := present - card.files.keys() - {CARD}:
        got = f"other files, such as {min(other)}"
        raise UsageError(problem(target.where, expected="an empty place, or an interrupted copy", got=got))
