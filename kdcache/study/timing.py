"""How long a study takes on this device, estimated by timing each of its networks on random images."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch

from kdcache import models
from kdcache.answers.teacher import Teacher
from kdcache.choices import CRITERIA
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.losses import cross_entropy
from kdcache.setup import DataSize, with_epochs
from kdcache.study.cost import SharedStores, run_forwards, run_size, uses_store
from kdcache.study.planned import StudyCell, list_runs, sort_by_seed

__all__ = ["estimate_hours"]

SECONDS_PER_NETWORK = 1.0
"""Duration of timing a network."""


def estimate_hours(cells: Sequence[StudyCell]) -> float:
    """Estimate how long the unfinished runs take, one after the other, with the stores as they are.

    Views, losses and reading data are not included.
    """
    seconds, stores = 0.0, SharedStores(None, empty=False)
    for run in sort_by_seed(run for run in list_runs(cells) if not run.finished):
        size = run_size(run)
        config = with_epochs(run.config, size.samples)
        step = _time_step(_Network.of(config, size), config.batch_size)
        images = size.samples * config.epochs
        test_images = size.test_samples * sum(map(config.evaluates_after, range(config.epochs)))
        if not isinstance(config, StudentConfig):
            seconds += size.samples * _time_teacher(_Network.of(config, size))
            if run.command != "teacher-load":
                seconds += images * step.training + test_images * step.forward
            continue
        augmentation = config.augmentation
        slots = len(augmentation.mixes)
        scored = slots if augmentation.pick and CRITERIA[augmentation.pick].student else 0
        trained = 1 + slots * (augmentation.keep if augmentation.pick else 1)
        seconds += images * (trained * step.training + scored * step.forward) + test_images * step.forward
        if run.teacher is not None:
            forwards = stores.train(run) if uses_store(run) else run_forwards(run)
            seconds += forwards * _time_teacher(_Network.of(run.teacher.config, run_size(run.teacher)))
    return seconds / 3600


class _Seconds(NamedTuple):
    """Seconds per image of a forward, and of a forward and backward."""

    forward: float
    training: float


class _Network(NamedTuple):
    """A network to time, its input size, and where it runs."""

    model: str
    classes: int
    image_size: int
    device: str
    precision: str

    @classmethod
    def of(cls, config: TrainingConfig, size: DataSize) -> "_Network":
        return cls(config.model, size.classes, size.card.image_size, config.device, config.precision)

    def compute(self) -> Compute:
        return Compute.choose(self.device, self.precision)

    def build(self) -> models.Network:
        return models.build(self.model, num_classes=self.classes, image_size=self.image_size, seed=0)

    def random_images(self, count: int) -> torch.Tensor:
        generator, size = torch.Generator().manual_seed(0), self.image_size
        return torch.randint(0, 256, (count, 3, size, size), generator=generator).byte()


@cache
def _time_step(network: _Network, batch_size: int) -> _Seconds:
    compute = network.compute()
    student = network.build().to(compute.device)
    images = network.random_images(batch_size).to(compute.device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=compute.device)

    def train() -> None:
        with compute.autocast():
            logits = student(images)
        cross_entropy(logits.float(), labels).backward()

    def forward() -> None:
        with torch.no_grad(), compute.autocast():
            student(images)

    return _Seconds(_time(forward, compute) / len(images), _time(train, compute) / len(images))


@cache
def _time_teacher(network: _Network) -> float:
    compute = network.compute()
    teacher = Teacher(network.build(), compute)
    images = network.random_images(2 * teacher.rows).to(compute.device)
    return _time(lambda: teacher(images), compute) / len(images)


def _time(work: Callable[[], object], compute: Compute) -> float:
    """Mean seconds of a call, after one call to warm up."""
    wait = torch.cuda.synchronize if compute.device.type == "cuda" else lambda: None
    work()
    wait()
    started, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - started < SECONDS_PER_NETWORK:
        work()
        wait()
        calls += 1
    return (time.perf_counter() - started) / calls
