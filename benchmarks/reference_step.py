"""The step to measure ours against: CutMix-pick as the paper's authors run it, on the same networks.

Float32, NCHW, images augmented one at a time by PIL in the workers of a DataLoader. The teacher answers 4B images for a
batch of B: x, two candidates, and the picks once more. The student takes each in a forward of its own: x, the two
candidates in training mode to score them, and the picks. Nothing in it is slower than it needs to be for that: scoring
and the teacher run without gradient, and there is a worker for each core.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from kdcache import models
from kdcache.datasets import Split

__all__ = ["CORES", "Apart", "Reference", "loader", "seconds_each"]

CORES = len(os.sched_getaffinity(0))
AHEAD = 2
"""Batches that a worker makes ahead."""

REST = 0.5
"""Seconds after which workers that nobody asks have made these, and no longer disturb what is measured next."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images that are cropped, flipped and normalised one at a time."""

    def __init__(self, split: Split) -> None:
        import torchvision.transforms as tv  # by those alone whose memory is to hold it

        self.images, self.labels = split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist()
        self.transform = tv.Compose(
            [
                tv.RandomCrop(32, padding=4),
                tv.RandomHorizontalFlip(),
                tv.ToTensor(),
                tv.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[sample])), self.labels[sample]


def loader(split: Split, batch_size: int, workers: int = CORES) -> Iterator[tuple[Tensor, Tensor]]:
    """Load batches without end; what the workers made ahead while nobody asked is passed over by `seconds_each`."""
    batches = DataLoader(
        Pictures(split),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        prefetch_factor=AHEAD,
        persistent_workers=True,
    )
    while True:
        yield from batches


def seconds_each(batches: Iterator[tuple[Tensor, Tensor]], count: int) -> float:
    """Load some batches: seconds of each."""
    for _ in range(AHEAD * CORES + 1):
        next(batches)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    taken = time.perf_counter() - started
    time.sleep(REST)
    return taken / count


class Reference:
    """Teacher, student and optimiser of the reference step.

    Parameters
    ----------
    teacher, student : str
        Names of networks.
    split : Split
    batch_size, classes : int
    """

    def __init__(self, teacher: str, student: str, split: Split, batch_size: int, classes: int) -> None:
        self.teacher, self.student = (
            models.build(name, num_classes=classes, seed=0).body.to(memory_format=torch.contiguous_format)
            for name in (teacher, student)
        )
        self.teacher.eval()
        self.optimiser = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.batches = loader(split, batch_size)

    def run(self, steps: int) -> float:
        """Take some steps: seconds of each. The batches that were made beforehand are used up first."""
        for _ in range(AHEAD * CORES + 1):
            self.step(*next(self.batches))
        started = time.perf_counter()
        for _ in range(steps):
            self.step(*next(self.batches))
        taken = time.perf_counter() - started
        time.sleep(REST)
        return taken / steps

    def step(self, x: Tensor, labels: Tensor) -> None:
        """Take one step; Equations 1 and 2 with tau 4 and alpha 0.9."""
        with torch.no_grad():
            teacher_x = self.teacher(x)
            candidates = [cutmix(x) for _ in range(2)]
            d = [divergence(self.teacher(mixed), self.student(mixed)) for mixed in candidates]
            picked = torch.cat(candidates)[torch.cat(d).topk(len(x)).indices]
            teacher_picked = self.teacher(picked)
        student_x, student_picked = self.student(x), self.student(picked)
        loss = 0.1 * functional.cross_entropy(student_x, labels)
        for teacher, student in ((teacher_x, student_x), (teacher_picked, student_picked)):
            loss = loss + 0.9 * 16 * divergence(teacher, student).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def load(self, steps: int) -> float:
        """Load the images of some steps: seconds of each."""
        return seconds_each(self.batches, steps)

    def bare(self, steps: int) -> float:
        """Do only the forwards and backwards of some steps on images that are there: seconds of each."""
        batches = [next(self.batches)[0] for _ in range(steps)]
        time.sleep(REST)
        started = time.perf_counter()
        for x in batches:
            with torch.no_grad():
                for _ in range(4):
                    self.teacher(x)
                for _ in range(2):
                    self.student(x)
            found = [self.student(x) for _ in range(2)]
            self.optimiser.zero_grad()
            torch.autograd.backward(found, [torch.full_like(logits, 1e-4) for logits in found])
        return (time.perf_counter() - started) / steps


class Apart:
    """The reference in a process of its own, where nothing that we resolve_run for ours is in force.

    Parameters
    ----------
    threads : int
        Of its operations.
    given : tuple
        What `Reference` is made of.
    """

    def __init__(self, threads: int, *given: object) -> None:
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (threads, *given))

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def seconds(self, work: str, steps: int) -> float:
        """Call a method of the reference, while this process waits: seconds of each step."""
        return self._process.submit(_do, work, steps).result()


def _begin(threads: int, *given: Any) -> None:
    global _reference
    torch.set_num_threads(threads)
    _reference = Reference(*given)


def _do(work: str, steps: int) -> float:
    seconds: float = getattr(_reference, work)(steps)
    return seconds


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Compute d of Equation 2 of each row."""
    log_q, p = functional.log_softmax(student / 4, 1), functional.softmax(teacher / 4, 1)
    return functional.kl_div(log_q, p, reduction="none").sum(1)


def cutmix(x: Tensor) -> Tensor:
    """Mix each image of a batch with another one of it: one box for the whole batch."""
    size = x.shape[-1]
    side = (1 - torch.rand(()).item()) ** 0.5
    top, left = torch.randint(size, (2,)).tolist()
    half = int(size * side) // 2
    rows, columns = (slice(max(0, edge - half), min(size, edge + half)) for edge in (top, left))
    mixed, partner = x.clone(), torch.randperm(len(x))
    mixed[:, :, rows, columns] = x[partner][:, :, rows, columns]
    return mixed
