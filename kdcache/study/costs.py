"""What a study costs, told before anything is trained: runs, teacher questions, bytes and hours."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from kdcache import models
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.datasets import Card, card_of
from kdcache.losses import cross_entropy
from kdcache.models.external import trust
from kdcache.resolve import load_data, plan_for
from kdcache.store.answers import CLEAN, table_bytes
from kdcache.store.formats import format_of
from kdcache.store.policy import GAIN, distinct_views, fits_an_index
from kdcache.study.spread import Cell, Planned, runs_of
from kdcache.teacher import Teacher
from kdcache.views import Plan
from kdcache.words import CRITERIA, FOLDER, PACKED

__all__ = ["CellCost", "Speed", "StudyCost", "hours", "study_cost"]

IMAGENET_CLASSES = 1000
"""Of the whole set; its card leaves the number open, since a folder may hold a part of it."""

TIMED_SECONDS = 1.0
"""For which each network is timed."""


class CellCost(NamedTuple):
    """What the runs of a cell cost: those that are not finished, and questions if nothing were remembered."""

    cell: Cell
    left: int
    online: int


@dataclass(frozen=True)
class StudyCost:
    """What a study costs.

    Attributes
    ----------
    cells : tuple of CellCost
    online : int
        Questions of all students, each asking for itself.
    shared : int
        Questions where all answers go to one store for each teacher.
    features : int
        Questions of students whose losses read the teacher's features, which no store holds; among `online`, and not
        in `shared`.
    stored_bytes : int
        Of these stores.
    """

    cells: tuple[CellCost, ...]
    online: int
    shared: int
    features: int
    stored_bytes: int


class _Facts(NamedTuple):
    """Sizes of a run's data, from the dataset's card, or from the data where the card leaves them open."""

    samples: int
    classes: int
    card: Card

    @classmethod
    def of(cls, run: Planned) -> "_Facts":
        config = run.config
        if config.dataset.startswith((FOLDER, PACKED)):
            return _read(run.data)
        card = card_of(config.dataset, config.image_size)
        assert card.counts is not None
        share = (1 - config.val_fraction) * config.train_fraction
        return cls(round(share * card.counts[0]), card.classes or IMAGENET_CLASSES, card)

    def plan(self, config: StudentConfig) -> Plan:
        return plan_for(config, self.samples, self.card)


@cache  # many runs may read the same images, which may be many
def _read(config: TrainingConfig) -> _Facts:
    data = load_data(config)
    return _Facts(len(data.train), data.num_classes, data.card)


def study_cost(cells: Sequence[Cell]) -> StudyCost:
    """Count the questions of a study.

    The number of standard views that come up is the expected one, V (1 - (1 - 1/V)^E) of each sample.
    """
    runs = runs_of(cells)
    online = sum(map(_questions, runs))
    features = sum(_questions(run) for run in runs if _reads_features(run))
    shared = size = 0
    for sharing in _sharing(runs):
        asked, stored = _shared(sharing)
        shared, size = shared + asked, size + stored
    lines = (
        CellCost(cell, sum(not run.finished for run in cell.runs), sum(map(_questions, cell.runs))) for cell in cells
    )
    return StudyCost(tuple(lines), online, shared, features, size)


def _reads_features(run: Planned) -> bool:
    return isinstance(run.config, StudentConfig) and run.config.needs_features


def _questions(run: Planned) -> int:
    """Questions of a run that remembers nothing; a teacher's run asks about the clean images."""
    facts = _Facts.of(run)
    if not isinstance(run.config, StudentConfig):
        return facts.samples
    if not run.config.needs_teacher:
        return 0
    return facts.samples * run.config.epochs * len(facts.plan(run.config).kinds)


def _sharing(runs: Iterable[Planned]) -> Collection[list[Planned]]:
    """Put the students of a teacher together whose answers come from its store."""
    found: dict[Path, list[Planned]] = {}
    for run in runs:
        if run.teacher is not None and not _reads_features(run):
            found.setdefault(run.teacher.path, []).append(run)
    return found.values()


def _shared(runs: list[Planned]) -> tuple[int, int]:
    """Count the questions of students of one teacher, and the bytes of the answers: each view is asked once."""
    facts = _Facts.of(runs[0])
    tables: dict[tuple[int, str], int] = {}  # of each view seed and kind: one an epoch, of clean views one in all
    for run in runs:
        assert isinstance(run.config, StudentConfig)
        for kind in facts.plan(run.config).kinds:
            key = (run.config.views_seed, kind)
            tables[key] = max(tables.get(key, 0), 1 if kind == CLEAN else run.config.epochs)
    config = runs[0].config
    assert isinstance(config, StudentConfig)
    plan = facts.plan(config)
    # x is recognised in whichever epoch it comes up, where that saves enough.
    of_x = sum(epochs for (_, kind), epochs in tables.items() if kind == "standard")
    distinct = distinct_views(plan, of_x) if of_x and fits_an_index(plan) else of_x
    saved = of_x - distinct if distinct and of_x / distinct >= GAIN else 0
    size = table_bytes(facts.samples, facts.classes, format_of(config.store_dtype, config.topk))
    return round(facts.samples * (sum(tables.values()) - saved)), sum(tables.values()) * size


class Speed(NamedTuple):
    """Seconds an image: to answer, and to train on."""

    forward: float
    training: float


def hours(cells: Sequence[Cell]) -> float:
    """Estimate how long the unfinished runs take on this device with the stores, one after the other.

    Each network is timed for a second on noise, in the batches of its training. The making of views, the losses and the
    reading of data are not in it.
    """
    left = [run for run in runs_of(cells) if not run.finished]
    seconds = 0.0
    for run in left:
        config, facts = run.config, _Facts.of(run)
        speed = _speed(config, facts)
        images = facts.samples * config.epochs
        if not isinstance(config, StudentConfig):
            seconds += 0 if run.command == "teacher-load" else images * speed.training
            seconds += facts.samples * _answering(config, facts)
            continue
        views = config.augmentation
        slots = len(views.mixes)
        scored = slots if views.pick and CRITERIA[views.pick].student else 0
        trained = 1 + slots * (views.keep if views.pick else 1)
        seconds += images * (trained * speed.training + scored * speed.forward)
        if run.teacher is not None and config.needs_features:
            seconds += _questions(run) * _answering(run.teacher.config, facts)
    for runs in _sharing(left):
        teacher = runs[0].teacher
        assert teacher is not None
        seconds += _shared(runs)[0] * _answering(teacher.config, _Facts.of(runs[0]))
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
