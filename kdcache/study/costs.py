"""What a study costs, told before anything is trained: runs, teacher questions, bytes and hours."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kdcache import models
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.datasets import Card, card_of
from kdcache.losses import cross_entropy
from kdcache.models.external import trust
from kdcache.resolve import load_data
from kdcache.store.answers import table_bytes
from kdcache.store.formats import format_of
from kdcache.store.policy import GAIN, distinct_views, fits_an_index
from kdcache.study.spread import Cell, Planned
from kdcache.teacher import Teacher
from kdcache.views import Plan
from kdcache.words import CRITERIA

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


@dataclass(frozen=True)
class _Facts:
    """Sizes of a run's data, from the dataset's card, or from the data where the card leaves them open."""

    samples: int
    classes: int
    card: Card

    @classmethod
    def of(cls, config: TrainingConfig) -> "_Facts":
        if config.dataset.startswith(("folder:", "hdf5:")):
            data = load_data(config)
            return cls(len(data.train), data.num_classes, data.card)
        card = card_of(config.dataset, config.image_size)
        assert card.counts is not None
        share = (1 - config.val_fraction) * config.train_fraction
        return cls(round(share * card.counts[0]), card.classes or IMAGENET_CLASSES, card)

    def plan(self, config: StudentConfig) -> Plan:
        augmentation = config.augmentation
        return Plan(
            samples=self.samples,
            image_size=self.card.image_size,
            padding=self.card.padding,
            crop_flip=augmentation.crop_flip,
            mixes=augmentation.mixes,
            seed=config.views_seed,
        )


def study_cost(cells: Sequence[Cell]) -> StudyCost:
    """Count the questions of a study.

    The number of standard views that come up is the expected one, V (1 - (1 - 1/V)^E) of each sample.
    """
    counted = {run.path: run for cell in cells for run in cell.runs}
    online = sum(map(_questions, counted.values()))
    features = sum(_questions(run) for run in counted.values() if _reads_features(run))
    shared = size = 0
    for runs in _sharing(counted.values()):
        asked, stored = _shared(runs)
        shared, size = shared + asked, size + stored
    lines = (
        CellCost(cell, sum(not run.finished for run in cell.runs), sum(map(_questions, cell.runs))) for cell in cells
    )
    return StudyCost(tuple(lines), online, shared, features, size)


def _reads_features(run: Planned) -> bool:
    return isinstance(run.config, StudentConfig) and run.config.needs_features


def _questions(run: Planned) -> int:
    """Questions of a run that remembers nothing; a teacher's run asks about the clean images."""
    facts = _Facts.of(run.config)
    if not isinstance(run.config, StudentConfig):
        return facts.samples
    if not run.config.needs_teacher:
        return 0
    return facts.samples * run.config.epochs * len(facts.plan(run.config).kinds)


def _sharing(runs: Iterable[Planned]) -> Iterator[list[Planned]]:
    """Put the students of a teacher together whose answers come from its store."""
    found: dict[object, list[Planned]] = {}
    for run in runs:
        if run.teacher is not None and not _reads_features(run):
            found.setdefault(run.teacher.path, []).append(run)
    yield from found.values()


def _shared(runs: list[Planned]) -> tuple[int, int]:
    """Count the questions of students of one teacher, and the bytes of the answers: each view is asked once."""
    facts = _Facts.of(runs[0].config)
    kinds: dict[tuple[int, str], int] = {}  # how many epochs of a view seed and kind come up
    for run in runs:
        assert isinstance(run.config, StudentConfig)
        for kind in facts.plan(run.config).kinds:
            key = (run.config.views_seed, kind)
            kinds[key] = max(kinds.get(key, 0), run.config.epochs)
    config = runs[0].config
    assert isinstance(config, StudentConfig)
    plan = facts.plan(config)
    asked = 0.0
    epochs_of_x = sum(epochs for (_, kind), epochs in kinds.items() if kind == "standard")
    for (_, kind), epochs in kinds.items():
        asked += facts.samples * (0 if kind == "standard" else 1 if kind == "clean" else epochs)
    if epochs_of_x:
        known = distinct_views(plan, epochs_of_x) if fits_an_index(plan) else epochs_of_x
        asked += facts.samples * (known if epochs_of_x / known >= GAIN else epochs_of_x)
    tables = sum(1 if kind == "clean" else epochs for (_, kind), epochs in kinds.items())
    size = table_bytes(facts.samples, facts.classes, format_of(config.store_dtype, config.topk))
    return round(asked), tables * size


class Speed(NamedTuple):
    """Seconds an image: to answer, and to train on."""

    forward: float
    training: float


def hours(cells: Sequence[Cell], shared: bool = True) -> float:
    """Estimate how long the unfinished runs take on this device, one after the other.

    Each network is timed for a second on noise, in the batches of its training. The making of views, the losses and the
    reading of data are not in it.
    """
    left = {run.path: run for cell in cells for run in cell.runs if not run.finished}
    timer = _Timer()
    seconds = 0.0
    for run in left.values():
        config, facts = run.config, _Facts.of(run.config)
        speed = timer.speed(config, facts)
        images = facts.samples * config.epochs
        if not isinstance(config, StudentConfig):
            seconds += 0 if run.command == "teacher-load" else images * speed.training
            seconds += facts.samples * timer.answering(config, facts)
            continue
        views = config.augmentation
        slots = len(views.mixes)
        scored = slots if views.pick and CRITERIA[views.pick].student else 0
        trained = 1 + slots * (views.keep if views.pick else 1)
        seconds += images * (trained * speed.training + scored * speed.forward)
        if run.teacher is not None and (not shared or config.needs_features):
            seconds += _questions(run) * timer.answering(run.teacher.config, facts)
    for runs in _sharing(left.values()) if shared else ():
        teacher = runs[0].teacher
        assert teacher is not None
        seconds += _shared(runs)[0] * timer.answering(teacher.config, _Facts.of(runs[0].config))
    return seconds / 3600


class _Timer:
    """Times each network once."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Speed] = {}
        self._answers: dict[tuple[object, ...], float] = {}

    def speed(self, config: TrainingConfig, facts: _Facts) -> Speed:
        key = (config.model, config.batch_size, config.device, config.precision, facts.classes, facts.card.image_size)
        if key not in self._found:
            self._found[key] = _trained(config, facts)
        return self._found[key]

    def answering(self, config: TrainingConfig, facts: _Facts) -> float:
        key = (config.model, config.device, config.precision, facts.classes, facts.card.image_size)
        if key not in self._answers:
            self._answers[key] = _answered(config, facts)
        return self._answers[key]


def _network(config: TrainingConfig, facts: _Facts) -> models.Network:
    trust(config.model)
    return models.build(config.model, num_classes=facts.classes, image_size=facts.card.image_size, seed=0)


def _noise(images: int, facts: _Facts) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = facts.card.image_size
    return torch.randint(0, 256, (images, 3, size, size), generator=generator).byte()


def _trained(config: TrainingConfig, facts: _Facts) -> Speed:
    compute = Compute.choose(config.device, config.precision)
    network = _network(config, facts).to(compute.device)
    views = _noise(config.batch_size, facts).to(compute.device)
    labels = torch.zeros(len(views), dtype=torch.int64, device=compute.device)

    def train() -> None:
        with compute.autocast():
            logits = network(views)
        cross_entropy(logits.float(), labels).backward()

    def forward() -> None:
        with torch.no_grad(), compute.autocast():
            network(views)

    return Speed(_timed(forward, compute) / len(views), _timed(train, compute) / len(views))


def _answered(config: TrainingConfig, facts: _Facts) -> float:
    compute = Compute.choose(config.device, config.precision)
    teacher = Teacher(_network(config, facts), compute)
    views = _noise(2 * teacher.rows, facts).to(compute.device)
    return _timed(lambda: teacher(views), compute) / len(views)


def _timed(work: Callable[[], object], compute: Compute) -> float:
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
