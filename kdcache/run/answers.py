"""Logits that travel: from a teacher's run to a folder or URL, and from there to a folder or another run folder."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import kdcache
from kdcache.answers.card import AnswerCard, describe_views
from kdcache.answers.card_store import open_answers
from kdcache.answers.copies import CopyProgress, complete_tables, copy_files, describe_files
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import AnswerStore
from kdcache.errors import UsageError, printable, problem
from kdcache.models import checkpoint
from kdcache.run.find import find_stores, stores_of
from kdcache.run.folder import FinishedRun, RunFolder

__all__ = ["find_store", "pull_answers", "push_answers"]

PULLED = Path("answers")
"""Parent of the folders of answers that were pulled without ``--out``."""


def find_store(teacher: Path, name: str | None) -> AnswerStore:
    """Find the store of a teacher that is named, or the only one.

    Raises
    ------
    UsageError
        If there are several, or none.
    """
    found = find_stores(teacher, name).readable()
    if len(found) != 1:
        got = f"{len(found)} that can be read"
        remedy = f"'kdcache cache info {teacher}' lists them."
        raise UsageError(problem(f"stores of {teacher}", expected="one that --store names", got=got, remedy=remedy))
    return found[0]


def push_answers(
    run: FinishedRun,
    store: AnswerStore,
    where: str,
    license: str = "not stated",
    progress: CopyProgress = lambda done, total: None,
) -> AnswerCard:
    """Copy what is complete in a store of a teacher's logits to a folder or URL, with a card.

    Parameters
    ----------
    run : FinishedRun
        Of the teacher.
    store : AnswerStore
    where : str
    license : str
        Of the logits, for the card.
    progress : callable

    Raises
    ------
    UsageError
        If the store is another teacher's, has nothing that is complete, or there is something else in the place.
    KdcacheError
        If the store is damaged.
    """
    target = StoreLocation(where, named_by="URL")
    network_file = _network_file(run, store.fingerprint.get("teacher"))
    if network_file is None:
        raise UsageError(problem(f"store {store.location.where}", expected=f"logits of {run.path}", got="of another"))
    tables = complete_tables(store)
    described, files = checkpoint.metadata(network_file), describe_files(store, tables)
    network = checkpoint.describe(network_file, described)
    card = AnswerCard(
        network=network.name,
        epoch=described["epoch"],
        top1=described["top1"],
        dataset=str(store.made_with.get("dataset's name")),
        image_size=network.rendering.image_size,
        shorter_side=network.rendering.shorter_side,
        interpolation=network.rendering.interpolation,
        views=describe_views(tables),
        rows=len(tables) * store.samples,
        size=sum(file.size for file in files.values()),
        license=license,
        pushed={
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "kdcache": kdcache.__version__,
            "command": [printable(word) for word in sys.argv],
        },
        made_with=store.made_with,
        fingerprint=store.fingerprint,
        files=files,
    )
    copy_files(card, store.location, target, progress)
    return card


def pull_answers(
    where: str, out: Path | None = None, progress: CopyProgress = lambda done, total: None
) -> tuple[AnswerCard, Path]:
    """Copy logits with their card from a folder or URL.

    Parameters
    ----------
    where : str
    out : Path, optional
        A folder, or the run folder of the same teacher, whose store it becomes; by default a new folder in `PULLED`.
    progress : callable

    Returns
    -------
    card : AnswerCard
    folder : Path
        Where they are.

    Raises
    ------
    UsageError
        If there is no card, the run is another teacher's, or there is something else in the folder.
    KdcacheError
        If a file is damaged. What is in place is whole, and used when this is repeated.
    """
    card, store = open_answers(where, named_by="URL")
    folder = PULLED / store.origin[:12] if out is None else out
    if RunFolder(folder).holds_run:
        run = FinishedRun(folder)
        if _network_file(run, store.fingerprint.get("teacher")) is None:
            got = f"those of another {card.network}"
            raise UsageError(problem(f"answers {where}", expected=f"those of the teacher {run.path}", got=got))
        folder = stores_of(run.path).place(store.fingerprint)
    copy_files(card, StoreLocation(where, named_by="URL"), StoreLocation(folder, named_by="--out"), progress)
    return card, folder


def _network_file(run: FinishedRun, fingerprint: object) -> Path | None:
    """Find the file of a run with the network of a fingerprint."""
    for file in (run.network_file, run.best_network_file):
        if os.path.isfile(file) and checkpoint.fingerprint(checkpoint.load(file)) == fingerprint:
            return file
    return None
