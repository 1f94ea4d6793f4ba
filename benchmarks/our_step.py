"""Our step in its loop on random images, and how long its parts take. A part of `speed.py`."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from kdcache.stages.student import StudentStep
from torch import Tensor

from kdcache import models, training
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.find import Answers, open_store
from kdcache.answers.open import make_cached_teacher
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Card, Dataset, Split
from kdcache.forwards import WithFeatures
from kdcache.losses import build_objective
from kdcache.optimization import Update
from kdcache.run.checkpoint import TrainingState
from kdcache.run.recorder import StudentRecorder
from kdcache.run.statistics import StatisticsShape
from kdcache.setup import make_plan
from kdcache.views import Views

__all__ = ["BATCH", "CLASSES", "OurSteps", "noise_dataset"]

BATCH, CLASSES = 64, 100


def noise_dataset(batches: int) -> Dataset:
    """Make a dataset of random images."""
    generator, samples = torch.Generator().manual_seed(0), BATCH * batches
    images = torch.randint(0, 256, (samples, 3, 32, 32), generator=generator).byte()
    split = Split(images, torch.arange(samples) % CLASSES)
    card = Card("noise", CLASSES, 32, 4, (0.5,) * 3, (0.25,) * 3, "a generator", "none")
    return Dataset(card, tuple(map(str, range(CLASSES))), split, split)


class OurSteps:
    """Our step in its loop, with the teacher online and with a store that has all logits of two epochs.

    Parameters
    ----------
    pair : str
        TEACHER:STUDENT.
    count : int
        Steps of an epoch.
    folder : Path
        For the store and the statistics.
    compute : Compute
    """

    def __init__(self, pair: str, count: int, folder: Path, compute: Compute) -> None:
        teacher_name, student_name = pair.split(":")
        data, self.compute, self.epoch = noise_dataset(count), compute, 0
        config = StudentConfig(aug="cutmix-pick", epochs=2, batch_size=BATCH)
        self.views = Views(data.train, make_plan(config, data), BATCH, self.compute.device)
        self.student = models.build(student_name, num_classes=CLASSES, seed=0).to(compute.device)
        teacher = Teacher(models.build(teacher_name, num_classes=CLASSES, seed=0), self.compute)
        self.teacher, self.data = teacher, data
        store = open_store(folder / "answers.zarr", teacher, data)
        cached = make_cached_teacher(Answers.of_store(teacher, data, store), self.views, "replay", 2)
        for _ in cached.precompute(2):
            pass

        def make_step(name: str, cached_teacher: CachedTeacher) -> StudentStep:
            objective = build_objective(config, self.student, teacher.network, data.train.labels).to(compute.device)
            shape = StatisticsShape(len(data.train), self.views.plan.slots, count, objective.names)
            recorder = StudentRecorder(folder / name, 2, shape, cached_teacher, self.compute.device)
            return StudentStep(
                config,
                WithFeatures(self.student),
                cached_teacher,
                objective,
                Update(config, self.compute, self.student, objective),
                self.compute,
                recorder,
            )

        online = CachedTeacher(teacher, self.views)
        self.steps = {"online": make_step("online", online), "cached": make_step("cached", cached)}

    def run(self, name: str) -> float:
        """Train for an epoch: seconds per step."""
        return self.train(name).seconds / len(self.views.steps)

    def train(self, name: str) -> training.EpochProgress:
        """Train for an epoch."""
        return self._train(self.steps[name])

    def _train(self, step: StudentStep) -> training.EpochProgress:
        self.epoch = 1 - self.epoch  # the epoch before is still in memory
        step.recorder.begin_epoch(TrainingState())
        *_, last = training.train_epoch(self.views.epoch(self.epoch), step, self.compute)
        return last

    def run_networks(self) -> float:
        """Do only the work of the student's networks, on views that are there: seconds per step."""
        step, compute = self.steps["cached"], self.compute
        batches = [batch.views for batch in self.views.epoch(0)]
        started = time.perf_counter()
        for views in batches:
            with torch.no_grad(), step.scoring_statistics, compute.autocast():
                self.student(views[BATCH:])
            with compute.autocast():
                logits = self.student(views[: 2 * BATCH]).float()
            step.update((1e-4 * logits).sum())
        return (time.perf_counter() - started) / len(batches)

    def parts(self, name: str) -> dict[str, float]:
        """Train for an epoch: seconds of each part of all steps."""
        step = self.steps[name]
        with ExitStack() as stack:
            seconds: dict[str, float] = defaultdict(float)
            for part, owner, method in (
                ("teacher's logits", step.teacher, "outputs"),
                ("forward", self.student, "forward"),
                ("losses", step.objective, "forward"),
                ("backward", Tensor, "backward"),
                ("optimizer", step.update.optimizer, "step"),
                ("record", step.recorder, "record"),
            ):
                stack.enter_context(timed(owner, method, part, seconds))
            event = self._train(step)
        seconds["views"] = event.waited
        seconds["the rest"] = event.seconds - sum(seconds.values())
        return seconds


@contextmanager
def timed(owner: Any, method: str, part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of a method's calls; the forward that scores is the one without gradients."""
    function = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            kind = "" if part != "forward" else "training " if torch.is_grad_enabled() else "scoring "
            seconds[kind + part] += time.perf_counter() - started

    with mock.patch.object(owner, method, call):
        yield
