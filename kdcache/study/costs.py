"""What a study costs, told before anything is trained: runs, teacher questions, bytes and hours."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from kdcache import models
from kdcache.answers.budget import Room, choose, expected_questions, tables_of
from kdcache.answers.codec import format_of
from kdcache.answers.store import CLEAN
from kdcache.answers.teacher import Teacher
from kdcache.choices import CRITERIA, FOLDER_PREFIX, HDF5_PREFIX
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.datasets import Card, card_of
from kdcache.losses import cross_entropy
from kdcache.models.external import trust
from kdcache.setup import load_data, plan_for, store_path
from kdcache.study.expand import Planned, TableCell, in_order, runs_of
from kdcache.views import Plan

__all__ = ["CellCost", "Shared", "Speed", "StudyCost", "hours", "study_cost"]

IMAGENET_CLASSES = 1000
"""Of the whole set; its card leaves the number open, since a folder may hold a part of it."""

TIMED_SECONDS = 1.0
"""For which each network is timed."""

ENDLESS = 2**63
"""Bytes of room that hold everything."""


class CellCost(NamedTuple):
    """What the runs of a cell cost: those that are not finished, and questions if nothing were remembered."""

    cell: TableCell
    left: int
    online: int


class Shared(NamedTuple):
    """What students that share the stores of their teachers cost.

    Attributes
    ----------
    questions : int
    stored_bytes : int
        Of these stores.
    """

    questions: int
    stored_bytes: int


@dataclass(frozen=True)
class StudyCost:
    """What a study costs, from its beginning.

    Attributes
    ----------
    cells : tuple of CellCost
    online : int
        TeacherCounts of all students, each asking for itself.
    alone : int
        TeacherCounts, among `online`, of students for which no store holds answers: their losses read the teacher's
        features, or they are told not to use one.
    shared : Shared
        Where the stores hold everything; `alone` are not in it.
    limited : Shared
        Likewise, within the room that ``--cache-limit`` gives.
    """

    cells: tuple[CellCost, ...]
    online: int
    alone: int
    shared: Shared
    limited: Shared


class _Facts(NamedTuple):
    """Sizes of a run's data, from the dataset's card, or from the data where the card leaves them open."""

    samples: int
    tests: int
    classes: int
    card: Card

    @classmethod
    def of(cls, run: Planned) -> "_Facts":
        config = run.config
        if config.dataset.startswith((FOLDER_PREFIX, HDF5_PREFIX)):
            return _read(run.data)
        card = card_of(config.dataset, config.image_size)
        assert card.counts is not None
        share = (1 - config.val_fraction) * config.train_fraction
        return cls(round(share * card.counts[0]), card.counts[1], card.classes or IMAGENET_CLASSES, card)

    def plan(self, config: StudentConfig) -> Plan:
        return plan_for(config, self.samples, self.card)


@cache  # many runs may read the same images, which may be many
def _read(config: TrainingConfig) -> _Facts:
    data = load_data(config)
    return _Facts(len(data.train), len(data.test), data.num_classes, data.card)


def study_cost(cells: Sequence[TableCell]) -> StudyCost:
    """Count the questions of a study.

    The number of standard views that come up is the expected one, V (1 - (1 - 1/V)^E) of each sample.
    """
    runs = runs_of(cells)
    lines = (
        CellCost(cell, sum(not run.finished for run in cell.runs), sum(map(_questions, cell.runs))) for cell in cells
    )
    return StudyCost(
        tuple(lines),
        online=sum(map(_questions, runs)),
        alone=sum(_questions(run) for run in runs if run.teacher is not None and _asks_alone(run)),
        shared=_shared(runs, ENDLESS),
        limited=_shared(runs),
    )


def _asks_alone(run: Planned) -> bool:
    """Whether a student that has a teacher asks it each question by itself."""
    return isinstance(run.config, StudentConfig) and (run.config.needs_features or run.config.cache == "off")


def _questions(run: Planned) -> int:
    """TeacherCounts of a run that remembers nothing; a teacher's run asks about the clean images."""
    facts = _Facts.of(run)
    if not isinstance(run.config, StudentConfig):
        return facts.samples
    if not run.config.needs_teacher:
        return 0
    return facts.samples * run.config.epochs * len(facts.plan(run.config).kinds)


class _Stores:
    """The stores of a study's teachers, as they fill.

    Parameters
    ----------
    limit : int, optional
        Bytes that each may take, by default what the runs say.
    fresh : bool
        Whether nothing is there yet but the answers to the clean images, or what is on the disk.
    """

    def __init__(self, limit: int | None, fresh: bool) -> None:
        self.limit, self.fresh = limit, fresh
        self.rooms: dict[Path, Room] = {}

    def ask(self, run: Planned) -> int:
        """Have a student ask, and keep what it keeps: its questions."""
        config, facts = run.config, _Facts.of(run)
        assert isinstance(config, StudentConfig)
        assert run.teacher is not None
        plan, format = facts.plan(config), format_of(config.store_dtype, config.topk)
        where = store_path(run.teacher.path, format)
        if (room := self.rooms.get(where)) is None:
            limit = config.cache_limit if self.limit is None else self.limit
            room = Room.at(where, facts.samples, facts.classes, format, limit)
            room = replace(room, tables=frozenset({CLEAN}) if self.fresh else room.tables | {CLEAN})
        choice = choose(config.cache, plan, config.epochs, room)
        kept = tables_of(plan, config.epochs) if choice.keep else set()
        self.rooms[where] = replace(room, tables=room.tables | kept)
        return round(facts.samples * expected_questions(plan, config.epochs, room, choice.indexed))

    @property
    def stored_bytes(self) -> int:
        return sum(len(room.tables - {CLEAN}) * room.table_bytes for room in self.rooms.values())


def _shared(runs: Iterable[Planned], limit: int | None = None) -> Shared:
    """Count the questions of students that share stores, in the order in which they are trained."""
    stores = _Stores(limit, fresh=True)
    asked = sum(stores.ask(run) for run in in_order(runs) if run.teacher is not None and not _asks_alone(run))
    return Shared(asked, stores.stored_bytes)


class Speed(NamedTuple):
    """Seconds an image: to answer, and to train on."""

    forward: float
    training: float


def hours(cells: Sequence[TableCell]) -> float:
    """Estimate how long the unfinished runs take on this device, one after the other, with the stores as they are.

    Each network is timed for a second on noise, in the batches of its training. The making of views, the losses and the
    reading of data are not in it.
    """
    seconds, stores = 0.0, _Stores(None, fresh=False)
    for run in in_order(run for run in runs_of(cells) if not run.finished):
        config, facts = run.config, _Facts.of(run)
        speed = _speed(config, facts)
        images = facts.samples * config.epochs
        tests = facts.tests * sum(map(config.evaluates_after, range(config.epochs)))
        if not isinstance(config, StudentConfig):
            seconds += facts.samples * _answering(config, facts)
            if run.command != "teacher-load":
                seconds += images * speed.training + tests * speed.forward
            continue
        views = config.augmentation
        slots = len(views.mixes)
        scored = slots if views.pick and CRITERIA[views.pick].student else 0
        trained = 1 + slots * (views.keep if views.pick else 1)
        seconds += images * (trained * speed.training + scored * speed.forward) + tests * speed.forward
        if run.teacher is not None:
            asked = _questions(run) if _asks_alone(run) else stores.ask(run)
            seconds += asked * _answering(run.teacher.config, facts)
    return seconds / 3600


class _Timed(NamedTuple):
    """A network, and on what and how it is timed."""

    model: str
    classes: int
    image_size: int
    device: str
    precision: str

    @classmethod
    def of(cls, config: TrainingConfig, facts: _Facts) -> "_Timed":
        return cls(config.model, facts.classes, facts.card.image_size, config.device, config.precision)

    def compute(self) -> Compute:
        return Compute.choose(self.device, self.precision)

    def network(self) -> models.Network:
        trust(self.model)
        return models.build(self.model, num_classes=self.classes, image_size=self.image_size, seed=0)

    def noise(self, images: int) -> torch.Tensor:
        generator, size = torch.Generator().manual_seed(0), self.image_size
        return torch.randint(0, 256, (images, 3, size, size), generator=generator).byte()


def _speed(config: TrainingConfig, facts: _Facts) -> Speed:
    return _trained(_Timed.of(config, facts), config.batch_size)


def _answering(config: TrainingConfig, facts: _Facts) -> float:
    return _answered(_Timed.of(config, facts))


@cache
def _trained(timed: _Timed, batch_size: int) -> Speed:
    compute = timed.compute()
    network = timed.network().to(compute.device)
    views = timed.noise(batch_size).to(compute.device)
    labels = torch.zeros(len(views), dtype=torch.int64, device=compute.device)

    def train() -> None:
        with compute.autocast():
            logits = network(views)
        cross_entropy(logits.float(), labels).backward()

    def forward() -> None:
        with torch.no_grad(), compute.autocast():
            network(views)

    return Speed(_seconds(forward, compute) / len(views), _seconds(train, compute) / len(views))


@cache
def _answered(timed: _Timed) -> float:
    compute = timed.compute()
    teacher = Teacher(timed.network(), compute)
    views = timed.noise(2 * teacher.rows).to(compute.device)
    return _seconds(lambda: teacher(views), compute) / len(views)


def _seconds(work: Callable[[], object], compute: Compute) -> float:
    """Seconds that some work takes, the first time apart."""
    wait = torch.cuda.synchronize if compute.device.type == "cuda" else lambda: None
    work()
    wait()
    began, times = time.perf_counter(), 0
    while times < 2 or time.perf_counter() - began < TIMED_SECONDS:
        work()
        wait()
        times += 1
    return (time.perf_counter() - began) / times
