"""Does a store still say what its teacher says? Every chunk is checked, and a sample of answers asked again."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.store import CLEAN, AnswerStore, Replayed
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.datasets import Split
from kdcache.run.folder import FinishedRun
from kdcache.setup import load_data, store_path, teacher_and_store, trained_network
from kdcache.views import Plan, ViewMaker

__all__ = ["Check", "verify", "verify_run"]


class Check(NamedTuple):
    """What came of checking one table.

    Attributes
    ----------
    table : str
    rows, of : int
        Rows that are stored and sound, of so many.
    damaged : int
        Chunks whose record promises rows that are not there as they were.
    compared : int
        Answers that were asked again.
    largest, mean : float
        Absolute difference of a logit; 0 where nothing was compared.
    flips : int
        Answers whose first class is another now.
    """

    table: str
    rows: int
    of: int
    damaged: int
    compared: int
    largest: float
    mean: float
    flips: int


def verify(
    store: AnswerStore, teacher: Teacher, data: Split, padding: int | None, samples: int | None, seed: int = 0
) -> Iterator[Check]:
    """Check the tables of a store one after the other.

    Parameters
    ----------
    store : AnswerStore
    teacher : Teacher
    data : Split
        The training images.
    padding : int or None
        Of the crop, in pixels, see `kdcache.views.Plan`.
    samples : int or None
        Answers to ask again in all, spread at random over the tables; ``None`` is all of them.
    seed : int
        Of the choice.

    Yields
    ------
    Check
    """
    tables = store.tables()
    # Neighbouring answers are asked together, a forward at a time; which ones is left to chance.
    chunks = store.table(CLEAN).chunks  # alike in all tables
    starts = np.concatenate([np.arange(chunk.start, chunk.stop, teacher.rows) for chunk in chunks])
    forwards = len(tables) * len(starts)
    wanted = forwards if samples is None else min(forwards, -(-samples // teacher.rows))
    chosen = np.random.Generator(np.random.Philox(seed)).permutation(forwards)[:wanted]
    for place, name in enumerate(tables):
        of_table = chosen[chosen % len(tables) == place] // len(tables)
        yield _check(store, name, teacher, data, padding, starts[np.sort(of_table)])


def verify_run(
    run: FinishedRun,
    store: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    data_root: Path | None = None,
) -> Iterator[Check]:
    """Check the store of a teacher's run, or another store of its answers, see `verify`."""
    config = run.config.model_copy(update={"data_root": data_root or run.config.data_root})
    data = load_data(config)
    where = AnswerStore(store or store_path(run.path)).place.where  # which must be there
    teacher, found = teacher_and_store(trained_network(run.network_file, data), data, where, Compute.choose(device))
    yield from verify(found, teacher, data.train, data.card.padding, samples, seed)


def _check(
    store: AnswerStore, name: str, teacher: Teacher, data: Split, padding: int | None, starts: np.ndarray
) -> Check:
    table, views = store.table(name), _views(name, teacher, data, padding)
    cached_teacher = CachedTeacher(teacher, views, store=store)
    replayed = Replayed.parse(name)
    rows = compared = flips = 0
    largest, total = 0.0, 0.0
    for chunk, (promised, span) in enumerate(zip(table.committed(), table.chunks, strict=True)):
        columns = table.read(chunk) if promised else None
        if columns is None:
            continue
        rows += len(span)
        stored = store.format.decode(columns, store.classes)
        for start in starts[(starts >= span.start) & (starts < span.stop)].tolist():
            again = range(start, min(start + teacher.rows, span.stop))
            if replayed is None:
                images = data.take(torch.arange(again.start, again.stop)).to(teacher.compute.device)
            else:
                images = views.views(replayed.epoch, len(views.plan.kinds) - 1, again)
            fresh = cached_teacher.compute_logits(images).cpu()
            then = stored[again.start - span.start : again.stop - span.start]
            difference = (fresh - then).abs()
            largest, total = max(largest, difference.max().item()), total + difference.sum(dtype=torch.float64).item()
            flips += int((fresh.argmax(1) != then.argmax(1)).sum())
            compared += len(again)
    mean = total / (compared * store.classes) if compared else 0.0
    return Check(name, rows, store.samples, len(table.damaged), compared, largest, mean, flips)


def _views(name: str, teacher: Teacher, data: Split, padding: int | None) -> ViewMaker:
    """Make the plan whose last slot is what a table answers."""
    replayed = Replayed.parse(name)
    seed, kind = (replayed.seed, replayed.kind) if replayed else (0, CLEAN)
    plan = Plan(len(data), data.image_size, padding, crop_flip=True, seed=seed).ending_with(kind)
    return ViewMaker(data, plan, teacher.rows, teacher.compute.device)
