"""Teachers, stores and cached teachers for the tests, for random images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.encoding import DEFAULT_ENCODING, AnswerEncoding
from kdcache.answers.find import Answers, open_store
from kdcache.answers.open import make_cached_teacher
from kdcache.answers.store import AnswerStore
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Card, Dataset, Split
from kdcache.run.find import stores_of
from kdcache.run.folder import FinishedRun
from kdcache.run.recorder import StudentRecorder
from kdcache.run.statistics import EpochStatistics, StatisticsShape
from kdcache.run.statistics_store import StatisticsStore
from kdcache.views import ViewPlan, Views
from tests.stubs import stub

CPU = torch.device("cpu")
CLASSES = 4


def teacher(seed: int = 0, precision: str = "float32") -> Teacher:
    return Teacher(stub(seed), Compute(CPU, precision))


def dataset(split: Split, padding: int = 4) -> Dataset:
    card = Card("noise", CLASSES, 32, padding, (0.5,) * 3, (0.25,) * 3, "a generator", "none")
    return Dataset(card, tuple("abcd"), split, split)


def store(
    where: Path | str, of: Teacher, split: Split, encoding: AnswerEncoding = DEFAULT_ENCODING, padding: int = 4
) -> AnswerStore:
    return open_store(where, of, dataset(split, padding), encoding)


def opened(where: Path | str, of: Teacher, split: Split) -> Answers:
    return Answers.of_store(of, dataset(split), store(where, of, split))


def views(split: Split, aug: str = "cutmix-pick", seed: int = 0, batch_size: int = 64) -> Views:
    chosen = StudentConfig(aug=aug).augmentation
    plan = ViewPlan(len(split), 32, 4, crop_flip=chosen.crop_flip, seed=seed, mixes=chosen.mixes)
    return Views(split, plan, batch_size, CPU)


def cached_teacher(
    where: Path | str, split: Split, maker: Views, cache: str = "replay", epochs: int = 1, limit: int | None = None
) -> CachedTeacher:
    """A cached teacher of the same teacher each time."""
    of = teacher()
    return make_cached_teacher(opened(where, of, split), maker, cache, epochs, limit)


def stored(teacher: Path) -> Path:
    """The store that the training of a teacher filled."""
    run = FinishedRun(teacher)
    expected = (run.config.image_settings, DEFAULT_ENCODING, run.read_environment()["precision"])
    found = {(str(one.image_settings), one.encoding, one.precision): one for one in stores_of(teacher).open()}
    return Path(found[str(expected[0]), *expected[1:]].location.where)


class LateStore:
    """A statistics store that is created when an epoch is written, which takes longer than the few steps before."""

    def __init__(self, *settings: Any) -> None:
        self.settings = settings

    def write(self, epoch: int, statistics: EpochStatistics) -> str:
        return StatisticsStore(*self.settings).write(epoch, statistics)


def recorder(where: Path, maker: Views, losses: tuple[str, ...], of: CachedTeacher | None) -> StudentRecorder:
    shape = StatisticsShape(maker.plan.samples, maker.plan.slots, len(maker.steps), losses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.run.recorder.StatisticsStore", LateStore)
        return StudentRecorder(where, 1, shape, of, maker.device)


def all_logits(of: CachedTeacher, epochs: int) -> dict[tuple[int, str, int], bytes]:
    """Logits of every view of some epochs, by epoch, kind and position."""
    found = {}
    for epoch in range(epochs):
        for batch in of.views.epoch(epoch):
            logits = of.logits(batch).numpy()
            for row, values in enumerate(logits):
                slot, index = divmod(row, len(batch))
                found[epoch, of.views.plan.kinds[slot], batch.positions[index]] = values.tobytes()
    return found
