"""A straightforward CutMix-pick step to compare with, written as the paper's authors run it, on the same networks.

NCHW, by default in float32 on a CPU; the workers of a DataLoader augment PIL images one by one. For a batch of B the
teacher has 4B forwards: x, two candidates, and the picks again. The student has a forward each for x, for the
candidates in order to score them, and for the picks. It is not slower than that requires: scoring and the teacher run
without gradient, and there is a worker for each core.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from kdcache import models
from kdcache.compute import Compute, Stopwatch
from kdcache.datasets import Split

__all__ = ["CORES", "ReferenceProcess", "load_batches", "seconds_per_batch"]

CORES = len(os.sched_getaffinity(0))
FLOAT32_ON_CPU = Compute(torch.device("cpu"), "float32")

PREFETCH = 2
"""Batches that each worker prefetches."""

PAUSE_SECONDS = 0.5
"""After which idle workers have prefetched their batches, and do not disturb the next measurement."""


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """Images that are cropped, flipped and normalized one at a time."""

    def __init__(self, split: Split) -> None:
        import torchvision.transforms as tv

        assert split.images is not None
        self.images, self.labels = split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist()
        crop_flip = [tv.RandomCrop(32, padding=4), tv.RandomHorizontalFlip()]
        self.transform = tv.Compose([*crop_flip, tv.ToTensor(), tv.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        from PIL import Image

        image: Tensor = self.transform(Image.fromarray(self.images[sample]))
        return image, self.labels[sample]


def load_batches(split: Split, batch_size: int, pin: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Load batches without end."""
    batches = DataLoader(
        AugmentedImages(split),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=CORES,
        prefetch_factor=PREFETCH,
        persistent_workers=True,
        pin_memory=pin,
    )
    while True:
        yield from batches


def skip_prefetched(batches: Iterator[object]) -> None:
    """Skip the batches that workers have prefetched while nothing was measured."""
    for _ in range(PREFETCH * CORES + 1):
        next(batches)


def seconds_per_batch(batches: Iterator[tuple[Tensor, Tensor]], count: int) -> float:
    """Measure the loading of some batches."""
    skip_prefetched(batches)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    taken = time.perf_counter() - started
    time.sleep(PAUSE_SECONDS)
    return taken / count


class Reference:
    """Teacher, student and optimizer of the reference step.

    Parameters
    ----------
    teacher, student : str
        Names of networks.
    split : Split
    batch_size, classes : int
    compute : Compute
    """

    def __init__(
        self, teacher: str, student: str, split: Split, batch_size: int, classes: int, compute: Compute = FLOAT32_ON_CPU
    ) -> None:
        self.teacher, self.student = (
            models.build(name, num_classes=classes, seed=0)
            .body.to(compute.device)
            .to(memory_format=torch.contiguous_format)
            for name in (teacher, student)
        )
        self.compute = compute
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "float16")
        self.teacher.eval()
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.batches = load_batches(split, batch_size, pin=compute.device.type == "cuda")

    def run(self, steps: int) -> float:
        """Take some steps: seconds per step."""
        skip_prefetched(self.batches)
        watch = Stopwatch(self.compute.device)
        with watch.running(), self.compute.float32_products():
            for _ in range(steps):
                self.step(*(part.to(self.compute.device, non_blocking=True) for part in next(self.batches)))
        taken = watch.pop()
        time.sleep(PAUSE_SECONDS)
        return taken / steps

    def logits(self, network: nn.Module, x: Tensor) -> Tensor:
        """Forward a network, in an autocast of its own: a shared one would reuse weights converted without gradient."""
        with self.compute.autocast():
            return network(x).float()

    def step(self, x: Tensor, labels: Tensor) -> None:
        """Take one step; Equations 1 and 2 with tau 4 and alpha 0.9."""
        with torch.no_grad():
            teacher_x = self.logits(self.teacher, x)
            candidates = [cutmix(x) for _ in range(2)]
            d = [divergence(self.logits(self.teacher, mixed), self.logits(self.student, mixed)) for mixed in candidates]
            picked = torch.cat(candidates)[torch.cat(d).topk(len(x)).indices]
            teacher_picked = self.logits(self.teacher, picked)
        student_x, student_picked = self.logits(self.student, x), self.logits(self.student, picked)
        loss = 0.1 * functional.cross_entropy(student_x, labels)
        for teacher, student in ((teacher_x, student_x), (teacher_picked, student_picked)):
            loss = loss + 0.9 * 16 * divergence(teacher, student).mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def load(self, steps: int) -> float:
        """Load the images of some steps: seconds per step."""
        return seconds_per_batch(self.batches, steps)

    def run_networks(self, steps: int) -> float:
        """Do only the forwards and backwards of some steps, on loaded images: seconds per step."""
        batches = [next(self.batches)[0] for _ in range(steps)]
        time.sleep(PAUSE_SECONDS)
        started = time.perf_counter()
        for x in batches:
            with torch.no_grad():
                for _ in range(4):
                    self.logits(self.teacher, x)
                for _ in range(2):
                    self.logits(self.student, x)
            outputs = [self.logits(self.student, x) for _ in range(2)]
            self.optimizer.zero_grad()
            torch.autograd.backward(outputs, [torch.full_like(logits, 1e-4) for logits in outputs])
        return (time.perf_counter() - started) / steps


class ReferenceProcess:
    """The reference in a process of its own, which kdcache's settings of the C library's allocator do not affect.

    Parameters
    ----------
    threads : int
        Of its operations.
    arguments : object
        Of `Reference`.
    """

    def __init__(self, threads: int, *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(
            1, context, partial(_make_reference, threads, time.perf_counter, *arguments)
        )

    def __enter__(self) -> "ReferenceProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def measure(self, method: str, steps: int) -> float:
        """Call a method of the reference while this process waits: seconds per step."""
        return self._process.submit(_call_reference, method, steps).result()


_reference: Reference


def _make_reference(threads: int, clock: Callable[[], float], *arguments: Any) -> None:
    global _reference
    time.perf_counter = clock
    torch.set_num_threads(threads)
    _reference = Reference(*arguments)


def _call_reference(method: str, steps: int) -> float:
    seconds: float = getattr(_reference, method)(steps)
    return seconds


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Compute d of Equation 2 for each row."""
    log_q, p = functional.log_softmax(student / 4, 1), functional.softmax(teacher / 4, 1)
    return functional.kl_div(log_q, p, reduction="none").sum(1)


def cutmix(x: Tensor) -> Tensor:
    """Mix each image of a batch with another one, with one box for the whole batch."""
    size = x.shape[-1]
    side = (1 - torch.rand(()).item()) ** 0.5
    top, left = torch.randint(size, (2,)).tolist()
    half = int(size * side) // 2
    rows, columns = (slice(max(0, edge - half), min(size, edge + half)) for edge in (top, left))
    mixed, partner = x.clone(), torch.randperm(len(x), device=x.device)
    mixed[:, :, rows, columns] = x[partner][:, :, rows, columns]
    return mixed
