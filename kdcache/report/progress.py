"""Progress of a training: an epoch bar on a terminal, a plain line per epoch elsewhere."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kdcache.run.folder import EpochMetrics
from kdcache.training import StepEvent

__all__ = ["Bar", "Lines", "Reporter", "counting", "terminal"]


class Reporter:
    """Hears what a training does. This one says nothing; it is what Python callers get by default."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, title: str, epochs: int, images: int, folder: Path) -> None:
        """Hear that a training of `epochs` passes over `images` samples begins, and writes to a run folder."""

    def step(self, event: StepEvent) -> None:
        """Hear that steps were taken."""

    def end_epoch(self, metrics: EpochMetrics) -> None:
        """Hear that an epoch ended."""

    def filled(self, done: int, total: int) -> None:
        """Hear that so many of all answers are in the store."""

    def say(self, line: str) -> None:
        """Hear a line for the user."""


class Lines(Reporter):
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self.epochs = self.tenths = 0

    def begin(self, title: str, epochs: int, images: int, folder: Path) -> None:
        self.epochs = epochs
        self.say(title)

    def end_epoch(self, metrics: EpochMetrics) -> None:
        left = metrics.seconds * (self.epochs - metrics.epoch)
        self.say(
            f"epoch {metrics.epoch}/{self.epochs}  {_figures(metrics)}  {metrics.images_per_second:.0f} images/s  "
            f"{left:.0f} s left"
        )

    def filled(self, done: int, total: int) -> None:
        if 10 * done // total > self.tenths:
            self.tenths = 10 * done // total
            self.say(f"{done} of {total} answers")

    def say(self, line: str) -> None:
        print(line, flush=True)


class Bar(Reporter):
    """A bar over all epochs with loss, accuracy, images per second and the time left."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  top-1 {task.fields[top1]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self.epoch = self.epochs = self.images = 0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, title: str, epochs: int, images: int, folder: Path) -> None:
        self.say(title)
        self.epoch, self.epochs, self.images = 0, epochs, images
        for old in self.progress.task_ids:
            self.progress.remove_task(old)
        self.task = self.progress.add_task(f"epoch 1/{epochs}", total=epochs * images, loss="-", top1="-", speed="-")

    def step(self, event: StepEvent) -> None:
        done = self.epoch * self.images + event.images
        self.progress.update(self.task, completed=done, loss=f"{event.loss:.3f}")

    def end_epoch(self, metrics: EpochMetrics) -> None:
        self.epoch = metrics.epoch
        self.progress.update(
            self.task,
            description=f"epoch {min(metrics.epoch + 1, self.epochs)}/{self.epochs}",
            speed=f"{metrics.images_per_second:.0f}",
        )
        if metrics.test_top1 is not None:
            self.progress.update(self.task, top1=f"{metrics.test_top1:.2f} %")

    def filled(self, done: int, total: int) -> None:
        if not self.progress.task_ids:
            self.task = self.progress.add_task("answers", total=total, loss="-", top1="-", speed="-")
        self.progress.update(self.task, completed=done)

    def say(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


def terminal() -> Reporter:
    """Make the reporter that fits the standard output; of the processes of torchrun, only the first one talks."""
    if os.environ.get("RANK", "0") != "0":
        return Reporter()
    return Bar(Console()) if sys.stdout.isatty() else Lines()


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far some work has come: a bar on a terminal, nothing elsewhere. Yields what hears done and total."""
    columns, quiet = (TextColumn(what), BarColumn(), TimeRemainingColumn()), not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _figures(metrics: EpochMetrics) -> str:
    figures = f"loss {metrics.train_loss:.3f}"
    if metrics.test_top1 is not None:
        figures += f"  top-1 {metrics.test_top1:.2f} %"
    if metrics.kl_ratio is not None:
        figures += f"  r {metrics.kl_ratio:.2f}"
    shares = {"data": metrics.data_share, "teacher": metrics.teacher_share}
    figures += "".join(f"  {name} {share:.0%}" for name, share in shares.items() if share is not None)
    if metrics.teacher_forwards or metrics.cache_hits:
        figures += f"  asked {metrics.teacher_forwards}  answered {metrics.cache_hits}"
    return figures
