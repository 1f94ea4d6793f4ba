"""How many questions a study asks the teacher, and how many bytes the answers take: counted before anything runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdcache.analysis.precision import Loss, loss_of
from kdcache.answers import budget
from kdcache.answers.budget import Choice
from kdcache.answers.codec import DENSE, Format, TopK, format_of, row_bytes
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN, AnswerStore, Replayed, replayed
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.run.folder import newest_finished_run
from kdcache.setup import find_teacher_run, load_data, plan_of, store_path
from kdcache.views import Plan

__all__ = ["Cost", "Filled", "StudyCosts", "cost", "distinct", "study_costs"]


class Cost(NamedTuple):
    """What the students of a study cost under one kind of store.

    Attributes
    ----------
    store : str
        A word of ``--cache``.
    first : int
        TeacherCounts that the first student asks.
    further : int
        TeacherCounts that every further one asks.
    tables : int
        Tables of the store that are made.
    """

    store: str
    first: int
    further: int
    tables: int

    def questions(self, students: int) -> int:
        """TeacherCounts that so many students ask."""
        return self.first + (students - 1) * self.further

    def pays_from(self, online: "Cost") -> int | None:
        """Students from which on fewer questions are asked than online; ``None`` if never."""
        if self.first < online.first:
            return 1
        saved = online.further - self.further
        return 2 + (self.first - online.first) // saved if saved > 0 else None


@dataclass(frozen=True)
class Filled:
    """What a store holds already.

    Parameters
    ----------
    tables : dict of str to ndarray of bool
        For each table, which of its chunks are there.
    chunk_rows : int
        Rows of a chunk.
    """

    tables: dict[str, np.ndarray] = field(default_factory=dict)
    chunk_rows: int = 1

    @classmethod
    def of(cls, store: AnswerStore) -> "Filled":
        """Read the commit records of a store."""
        chunks = {name: store.table(name).committed() > 0 for name in store.tables()}
        return cls(chunks, store.table(CLEAN).chunk_rows)

    def rows(self, table: str, samples: int) -> np.ndarray:
        """Tell which rows of a table are there: bool (N,)."""
        if table not in self.tables:
            return np.zeros(samples, bool)
        return np.repeat(self.tables[table], self.chunk_rows)[:samples]


def cost(cache: str, plan: Plan, epochs: int, filled: Filled, choice: Choice, max_tables: int) -> Cost:
    """Count the cost of a study under one choice of what is kept.

    Parameters
    ----------
    cache : str
        Name of the choice; with ``off``, what is there is not used.
    plan : Plan
        Of every student: they share the view seed.
    epochs : int
    filled : Filled
    choice : Choice
    max_tables : int
        Tables for which there is room.
    """
    filled = Filled() if cache == "off" else filled
    if not plan.crop_flip:
        first = int((~filled.rows(CLEAN, plan.samples)).sum()) * (epochs if cache == "off" else 1)
        new = bool(choice.keep) and CLEAN not in filled.tables
        return Cost(cache, first, 0 if choice.keep else first, int(new))
    known = _known_views(plan, filled) if choice.indexed else None
    first = further = made = 0
    for epoch in range(epochs):
        for kind in plan.kinds:
            table = Replayed(plan.seed, epoch, kind).table
            missing = np.flatnonzero(~filled.rows(table, plan.samples))
            recognised = kind == "standard" and known is not None
            asked = _learn(known, plan, epoch, missing) if recognised else len(missing)
            begun = table in filled.tables
            if not begun and kind in choice.keep and len(filled.tables) + made < max_tables:
                begun, made = True, made + 1
            first += asked
            further += 0 if begun else asked
    return Cost(cache, first, further, made)


class StudyCosts(NamedTuple):
    """What a study costs under each kind of store.

    Attributes
    ----------
    costs : list of Cost
    table_bytes : int
        Size of each table.
    format : Format
    row_bytes, whole_bytes : int
        Size of an answer in this format, and in the default one.
    loss : Loss or None
        What a `TopK` loses on the teacher's clean answers, where they are known in full.
    """

    costs: list[Cost]
    table_bytes: int
    format: Format
    row_bytes: int
    whole_bytes: int
    loss: Loss | None


def study_costs(config: StudentConfig) -> StudyCosts:
    """Count the costs of students of one config; a store that is there already counts, but need not be there."""
    data = load_data(config)
    plan, format = plan_of(config, data), format_of(config.store_dtype, config.topk)
    run = find_teacher_run(config.teacher) if config.teacher else newest_finished_run(TeacherConfig, config.dataset)
    where = config.store or (store_path(run.path, format) if run else None)
    filled = Filled.of(AnswerStore(where)) if where and StoreLocation(where).has("zarr.json") else Filled()
    room = budget.Room.at(where, plan.samples, data.num_classes, format, config.cache_limit)
    modes = ("off", "standard", "replay", "auto") if plan.crop_flip else ("off", "clean", "auto")
    found = []
    for mode in modes:
        if mode == "standard" and not budget.fits_an_index(plan):
            continue
        choice = budget.choose(mode, plan, config.epochs, room)
        found.append(cost(mode, plan, config.epochs, filled, choice, room.max_tables))
    loss = _loss_on_clean(run.path, format, config.temperature) if run else None
    row, whole = (row_bytes(one.layout(data.num_classes)) for one in (format, DENSE))
    return StudyCosts(found, room.table_bytes, format, row, whole, loss)


def _loss_on_clean(teacher: Path, format: Format, temperature: float) -> Loss | None:
    whole = store_path(teacher)
    if not isinstance(format, TopK) or not StoreLocation(whole).has("zarr.json"):
        return None
    store = AnswerStore(whole)
    columns = store.table(CLEAN).read(0)  # a chunk is plenty of answers
    return loss_of(store.format.decode(columns, store.classes), format, temperature) if columns else None


def distinct(plan: Plan, epochs: Iterable[int], filled: Filled | None = None) -> int:
    """Count the standard views that come up in some epochs and are not among the answers yet, from the tables."""
    known, everyone = _known_views(plan, filled or Filled()), np.arange(plan.samples)
    return sum(_learn(known, plan, epoch, everyone) for epoch in epochs)


def _known_views(plan: Plan, filled: Filled) -> np.ndarray:
    """Mark the standard views that are answered in any epoch of any view seed: bool (N V,)."""
    known = np.zeros(plan.samples * plan.standard_views, bool)
    known[plan.clean_keys()[filled.rows(CLEAN, plan.samples)]] = True
    for name in replayed(filled.tables, "standard"):
        _learn(known, replace(plan, seed=name.seed), name.epoch, np.flatnonzero(filled.rows(name.table, plan.samples)))
    return known


def _learn(known: np.ndarray | None, plan: Plan, epoch: int, positions: np.ndarray) -> int:
    """Mark the x of some positions, and count those that are new."""
    assert known is not None
    bare = replace(plan, mixes=())
    keys = np.unique(bare.standard_keys(bare.epoch(epoch), positions))
    new = keys[~known[keys]]
    known[new] = True
    return len(new)
