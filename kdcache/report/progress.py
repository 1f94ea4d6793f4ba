"""Progress of a training: a progress bar on a terminal, one line per epoch elsewhere."""

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
from kdcache.training import EpochProgress

__all__ = ["Bar", "Lines", "Reporter", "progress_bar", "terminal_reporter"]


class Reporter:
    """Callbacks of a training. This base class ignores them and is the default for Python callers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, title: str, epochs: int, images: int, folder: Path) -> None:
        """Start a training of `epochs` over `images` samples that writes to a run folder."""

    def step(self, event: EpochProgress) -> None:
        """Report one or more optimizer steps."""

    def end_epoch(self, metrics: EpochMetrics) -> None:
        """Report the end of an epoch."""

    def precomputed(self, done: int, total: int) -> None:
        """Report how many of the logits to precompute are stored."""

    def message(self, line: str) -> None:
        """Print a line for the user."""


class Lines(Reporter):
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self.epochs = self.tenths = 0

    def begin(self, title: str, epochs: int, images: int, folder: Path) -> None:
        self.epochs = epochs
        self.message(title)

    def end_epoch(self, metrics: EpochMetrics) -> None:
        seconds_left = metrics.seconds * (self.epochs - metrics.epoch)
        self.message(
            f"epoch {metrics.epoch}/{self.epochs}  {_format_metrics(metrics)}  "
            f"{metrics.images_per_second:.0f} images/s  {seconds_left:.0f} s left"
        )

    def precomputed(self, done: int, total: int) -> None:
        if 10 * done // total > self.tenths:
            self.tenths = 10 * done // total
            self.message(f"{done} of {total} views precomputed")

    def message(self, line: str) -> None:
        print(line, flush=True)


class Bar(Reporter):
    """A progress bar over all epochs, with loss, accuracy, speed and remaining time."""

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
        self.message(title)
        self.epoch, self.epochs, self.images = 0, epochs, images
        for previous in self.progress.task_ids:
            self.progress.remove_task(previous)
        self.task = self.progress.add_task(f"epoch 1/{epochs}", total=epochs * images, loss="-", top1="-", speed="-")

    def step(self, event: EpochProgress) -> None:
        done = self.epoch * self.images + event.samples_done
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

    def precomputed(self, done: int, total: int) -> None:
        if not self.progress.task_ids:
            self.task = self.progress.add_task("logits", total=total, loss="-", top1="-", speed="-")
        self.progress.update(self.task, completed=done)

    def message(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


def terminal_reporter() -> Reporter:
    """Make the reporter for the standard output; under torchrun only the main process prints."""
    if os.environ.get("RANK", "0") != "0":
        return Reporter()
    return Bar(Console()) if sys.stdout.isatty() else Lines()


@contextmanager
def progress_bar(title: str, disable: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, on standard error, and nothing elsewhere or if `disable`.

    Yields
    ------
    callable
        Updates the bar; takes the number of finished items and the total.
    """
    columns = TextColumn(title), BarColumn(), TimeRemainingColumn()
    hidden = disable or not sys.stderr.isatty()
    # What a command prints meanwhile stays on standard output: rich would move it above the bar.
    with Progress(*columns, console=Console(stderr=True), disable=hidden, redirect_stdout=False) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _format_metrics(metrics: EpochMetrics) -> str:
    text = f"loss {metrics.train_loss:.3f}"
    if metrics.test_top1 is not None:
        text += f"  top-1 {metrics.test_top1:.2f} %"
    if metrics.kl_ratio is not None:
        text += f"  r {metrics.kl_ratio:.2f}"
    shares = {"data": metrics.data_share, "teacher": metrics.teacher_share}
    text += "".join(f"  {name} {share:.0%}" for name, share in shares.items() if share is not None)
    if metrics.teacher_forwards or metrics.cache_hits:
        text += f"  teacher forwards {metrics.teacher_forwards}  cache hits {metrics.cache_hits}"
    return text
