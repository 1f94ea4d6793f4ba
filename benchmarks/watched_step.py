"""Our step in its loop, on images that nothing can be learnt from, with a watch over where its time goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from kdcache.stages.student import Step, make_objective
from torch import Tensor

from kdcache import models, training
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.open import make_cached_teacher, open_store
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Card, Dataset, Split
from kdcache.run.statistics import EpochStatistics, StatisticsShape
from kdcache.setup import plan_of
from kdcache.views import Batch, ViewMaker

__all__ = ["BATCH", "CLASSES", "NETWORKS", "Ours", "Watch", "bare_step", "noise"]

BATCH, CLASSES = 64, 100

NETWORKS = ("scoring forward", "training forward", "backward")
"""Where the time goes that a student's networks need; all else is ours to lose."""


def noise(batches: int) -> Dataset:
    """Make images that nothing can be learnt from: here only the time counts."""
    generator, samples = torch.Generator().manual_seed(0), BATCH * batches
    images = torch.randint(0, 256, (samples, 3, 32, 32), generator=generator).byte()
    split = Split(images, torch.arange(samples) % CLASSES)
    card = Card("noise", CLASSES, 32, 4, (0.5,) * 3, (0.25,) * 3, "a generator", "none")
    return Dataset(card, tuple(map(str, range(CLASSES))), split, split)


class Watch:
    """Adds up the seconds that are spent in named places; a place inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def enter(self, name: str) -> None:
        """Come to a place."""
        self._turn()
        self._open.append(name)

    def leave(self) -> None:
        """Return to where the place was entered from."""
        self._turn()
        self._open.pop()

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Be at a place."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def over(self, name: str | Callable[[], str], work: Callable[..., Any]) -> Callable[..., Any]:
        """Watch a function."""

        def watched(*given: Any, **named: Any) -> Any:
            with self.at(name if isinstance(name, str) else name()):
                return work(*given, **named)

        return watched

    def each(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        """Watch what makes items one after the other."""
        while True:
            with self.at(name):
                item = next(items, None)
            if item is None:
                return
            yield item


class Ours:
    """Our step in its loop, with a teacher to ask and with a store that knows everything.

    Parameters
    ----------
    pair : str
        TEACHER:STUDENT.
    count : int
        Steps of an epoch.
    store : Path
        Where the answers to two epochs are, or will be.
    """

    def __init__(self, pair: str, count: int, store: Path) -> None:
        teacher, student = pair.split(":")
        self.data, self.compute = noise(count), Compute.choose("cpu")
        self.config = StudentConfig(aug="cutmix-pick", epochs=2, batch_size=BATCH)
        self.views = ViewMaker(self.data.train, plan_of(self.config, self.data), BATCH, self.compute.device)
        self.student = models.build(student, num_classes=CLASSES, seed=0)
        self.optimiser = training.sgd(self.student, 0.05, 0.9, 5e-4)
        self.teacher = Teacher(models.build(teacher, num_classes=CLASSES, seed=0), self.compute)
        self.online = CachedTeacher(self.teacher, self.views)
        answers = open_store(store, self.teacher, self.data)
        self.free = make_cached_teacher(self.teacher, self.views, answers, "replay", 2)
        self.epoch = 0

    def fill(self) -> None:
        """Precompute both epochs."""
        for _ in self.free.precompute(2):
            pass

    def run(self, cached_teacher: CachedTeacher, watch: Watch | None = None) -> float:
        """Train for an epoch: seconds of each step."""
        objective = make_objective(self.config, self.student, cached_teacher, self.data)
        step = Step(self.config, self.student, objective, cached_teacher, self.compute)
        batches: Iterator[Batch] = self.views.epoch(self.epoch)
        if watch:
            batches = watch.each("views", batches)
        self.epoch = 1 - self.epoch  # the other one, or nothing would be read again
        count = len(self.views.steps)
        shape = StatisticsShape(len(self.data.train), self.views.plan.slots, count, step.losses)
        step.begin(EpochStatistics.empty(shape, self.compute.device))
        with self._watched(watch, step) if watch else nullcontext():
            started = time.perf_counter()
            for _ in training.train_epoch(self.optimiser, batches, step, self.compute):
                pass
            return (time.perf_counter() - started) / count

    @contextmanager
    def _watched(self, watch: Watch, step: Step) -> Iterator[None]:
        """Have a watch over the parts of a step, and over the loop as what is left."""
        optimiser, student = self.optimiser, self.student
        plain = (student.forward, optimiser.step, optimiser.zero_grad)
        student.forward = watch.over(  # type: ignore[method-assign]
            lambda: NETWORKS[torch.is_grad_enabled()], student.forward
        )
        step._ask = watch.over("store", step._ask)  # type: ignore[method-assign]
        step._pick = watch.over("scores and picks", step._pick)  # type: ignore[method-assign]
        step._record = watch.over("record", step._record)  # type: ignore[method-assign]
        step._losses_of = watch.over("losses", step._losses_of)  # type: ignore[assignment]

        def zero_grad(set_to_none: bool = True) -> None:
            plain[2](set_to_none)
            watch.enter("backward")  # which is all that the loop does before the optimiser's step

        def take() -> None:
            watch.leave()
            with watch.at("optimiser"):
                plain[1]()

        optimiser.zero_grad, optimiser.step = zero_grad, take  # type: ignore[method-assign, assignment]
        try:
            with watch.at("the rest"):
                yield
        finally:
            student.forward = plain[0]  # type: ignore[method-assign]
            optimiser.step, optimiser.zero_grad = plain[1:]  # type: ignore[method-assign]

    def bare(self) -> float:
        """Do what a teacher-free step needs of the networks, and nothing else, on views that are there: seconds."""
        made = [batch.views for batch in self.views.epoch(0)]
        unchanged = training.FrozenRunningStats(self.student)
        started = time.perf_counter()
        for batch in made:
            bare_step(self.student, self.optimiser, unchanged, self.compute, batch[BATCH:], batch[: 2 * BATCH])
        return (time.perf_counter() - started) / len(made)


def bare_step(
    network: models.Network,
    optimiser: torch.optim.Optimizer,
    unchanged: training.FrozenRunningStats,
    compute: Compute,
    scored: Tensor,
    trained: Tensor,
) -> None:
    """Do what a step needs of the student: score some views, and train on others, without a loss."""
    with torch.no_grad(), unchanged, compute.autocast():
        network(scored)
    with compute.autocast():
        logits = network(trained)
    optimiser.zero_grad()
    logits.float().backward(torch.full_like(logits, 1e-4, dtype=torch.float32))
    optimiser.step()
