"""How many questions a study asks the teacher, and how many bytes the answers take: counted before anything runs."""

from collections.abc import Iterable, Set
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdcache.analysis.precision import Loss, loss_of
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.record import newest
from kdcache.resolve import find_teacher_run, load_data, plan_of, store_path
from kdcache.store import policy
from kdcache.store.answers import CLEAN, AnswerStore, Replayed, table_bytes
from kdcache.store.formats import DENSE, Format, TopK, format_of, row_bytes
from kdcache.store.place import Place
from kdcache.store.policy import Choice
from kdcache.views import Plan

__all__ = ["Cost", "StudyCosts", "cost", "distinct", "study_costs"]


class Cost(NamedTuple):
    """What the students of a study cost under one kind of store.

    Attributes
    ----------
    store : str
        ``off`` or what ``--cache`` keeps.
    first : int
        Questions that the first student asks.
    further : int
        Questions that every further one asks.
    tables : int
        Tables of the store that are made.
    """

    store: str
    first: int
    further: int
    tables: int

    def questions(self, students: int) -> int:
        """Questions that so many students ask."""
        return self.first + (students - 1) * self.further

    def pays_from(self, online: "Cost") -> int | None:
        """Students from which on fewer questions are asked than online; ``None`` if never."""
        if self.first < online.first:
            return 1
        saved = online.further - self.further
        return 2 + (self.first - online.first) // saved if saved > 0 else None


def cost(store: str, plan: Plan, epochs: int, existing: Set[str], choice: Choice) -> Cost:
    """Count the cost of a study under one choice of what is kept.

    Parameters
    ----------
    store : str
        Name of the choice.
    plan : Plan
        Of every student: they share the view seed.
    epochs : int
    existing : set of str
        Tables of the store that are filled already.
    choice : Choice
    """
    samples = plan.samples
    if not plan.crop_flip:
        missing = choice.indexed and CLEAN not in existing
        further = 0 if choice.indexed else samples * epochs
        return Cost(store, missing * samples or further, further, int(missing))
    first = further = tables = 0
    for kind in plan.kinds:
        lacking = [epoch for epoch in range(epochs) if Replayed(plan.seed, epoch, kind).table not in existing]
        recognised = choice.indexed and kind == "standard"
        asked = distinct(plan, lacking, existing) if recognised else samples * len(lacking)
        first += asked
        further += 0 if kind in choice.keep else asked
        tables += len(lacking) if kind in choice.keep else 0
    return Cost(store, first, further, tables)


class StudyCosts(NamedTuple):
    """What a study costs under each kind of store.

    Attributes
    ----------
    costs : list of Cost
    table_bytes : int
        Size of each table.
    limit : int
        Bytes that the store may take.
    format : Format
    row_bytes, whole_bytes : int
        Size of an answer in this format, and in the default one.
    loss : Loss or None
        What a `TopK` loses on the teacher's clean answers, where they are known in full.
    """

    costs: list[Cost]
    table_bytes: int
    limit: int
    format: Format
    row_bytes: int
    whole_bytes: int
    loss: Loss | None


def study_costs(config: StudentConfig) -> StudyCosts:
    """Count the costs of students of one config; a store that is there already counts, but need not be there."""
    data = load_data(config)
    plan, format = plan_of(config, data), format_of(config.store_dtype, config.topk)
    size = table_bytes(len(data.train), data.num_classes, format)
    run = find_teacher_run(config.teacher) if config.teacher else newest(TeacherConfig, config.dataset)
    where = config.store or (store_path(run.path, format) if run else None)
    existing = set(AnswerStore(where).tables()) if where and Place(where).has("zarr.json") else set()
    limit = policy.room(config.cache_limit, Place(where))
    found = [
        cost(store, plan, config.epochs, existing, policy.choose(store, plan, config.epochs, existing, size, limit))
        for store in ("off", *(("standard", "replay") if plan.crop_flip else ("clean",)), "auto")
    ]
    loss = _loss_on_clean(run.path, format, config.temperature) if run else None
    sizes = (row_bytes(one.layout(data.num_classes)) for one in (format, DENSE))
    return StudyCosts(found, size, limit, format, *sizes, loss)


def _loss_on_clean(teacher: Path, format: Format, temperature: float) -> Loss | None:
    whole = store_path(teacher)
    if not isinstance(format, TopK) or not Place(whole).has("zarr.json"):
        return None
    store = AnswerStore(whole)
    columns = store.table(CLEAN).read(0)  # a chunk is plenty of answers
    return loss_of(store.format.decode(columns, store.classes), format, temperature) if columns else None


def distinct(plan: Plan, epochs: Iterable[int], existing: Set[str] = frozenset()) -> int:
    """Count the standard views that come up in some epochs and are not among the answers yet, from the tables.

    Parameters
    ----------
    plan : Plan
    epochs : iterable of int
    existing : set of str
        Tables of the store that are filled already, of any view seed.
    """
    bare, everyone = replace(plan, mix=None, slots=0), np.arange(plan.samples)
    known = np.zeros(plan.samples * plan.standard_views, bool)
    if CLEAN in existing:
        known[plan.clean_keys()] = True
    for name in filter(None, map(Replayed.parse, existing)):
        if name.kind == "standard":
            other = replace(bare, seed=name.seed)
            known[other.standard_keys(other.epoch(name.epoch), everyone)] = True
    before = int(known.sum())
    for epoch in epochs:
        known[bare.standard_keys(bare.epoch(epoch), everyone)] = True
    return int(known.sum()) - before
