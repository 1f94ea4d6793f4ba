"""Progress of a work: a progress bar on a terminal; elsewhere a line per epoch of a training."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from kdcache.report.time_left import TimeLeft
from kdcache.run.contents import best_epoch
from kdcache.run.folder import EpochMetrics
from kdcache.run.writer import RunWriter
from kdcache.training import EpochProgress

__all__ = ["Bar", "Lines", "Reporter", "progress_bar", "terminal_reporter"]

SECONDS_BETWEEN_LINES = 10.0
"""Time between lines about logits that are precomputed."""


class Reporter:
    """Callbacks of a training. This base class ignores them and is the default for Python callers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, run: RunWriter, images: int, images_done: int) -> None:
        """Start a training with `images` samples an epoch, or resume it after some of them in the current epoch."""

    def step(self, event: EpochProgress) -> None:
        """Report one or more optimizer steps."""

    def end_epoch(self, metrics: EpochMetrics) -> None:
        """Report the end of an epoch."""

    def precomputed(self, done: int, total: int) -> None:
        """Report how many of the logits to precompute are stored."""

    def message(self, line: str) -> None:
        """Print a line for the user."""


class PersonReporter(Reporter):
    """A reporter for people: it knows how far the work is, and how long it will still take."""

    def __init__(self) -> None:
        self.precomputing = TimeLeft(0)

    def begin(self, run: RunWriter, images: int, images_done: int) -> None:
        self.message(f"{run.config.table} {run.config.model} on {run.config.dataset} in {run.compute} -> {run.path}")
        self.run, self.images = run, images
        self.training = TimeLeft(run.config.epochs * images, len(run.metrics) * images + images_done)

    def end_epoch(self, metrics: EpochMetrics) -> None:
        self.training.done = metrics.epoch * self.images
        self.training.end_part()

    def precomputed(self, done: int, total: int) -> None:
        self.precomputing.update(done, total)
        self.precomputing.end_part()

    def figures(
        self,
        loss: float | None,
        top1: float | None,
        lr: float | None,
        speed: float | None,
        evaluated: EpochMetrics | None,
    ) -> str:
        """Write the figures of an epoch, those of an evaluation, and the best so far if that was in an epoch before."""
        accuracies = {"training": top1}
        if evaluated is not None:
            accuracies |= {"validation": evaluated.val_top1, "test": evaluated.test_top1}
        shown = [f"{name} {value:.2f} %" for name, value in accuracies.items() if value is not None]
        best = best_epoch(self.run.metrics)
        if evaluated is not None and best is not None and best.epoch < evaluated.epoch:
            value = best.test_top1 if best.val_top1 is None else best.val_top1
            shown.append(f"best {value:.2f} % in epoch {best.epoch}")
        known = f"top-1 {', '.join(shown)}" if shown else ""
        return joined(f"loss {loss:.3f}", known, f"lr {lr:.3g}", f"{speed:.0f} images/s")


class Lines(PersonReporter):
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        super().__init__()
        self._precomputed_at = time.monotonic()

    def end_epoch(self, metrics: EpochMetrics) -> None:
        super().end_epoch(metrics)
        found = metrics.train_loss, metrics.train_top1, metrics.lr, metrics.images_per_second
        figures = self.figures(*found, evaluated=None if metrics.test_top1 is None else metrics)
        self.message(joined(f"epoch {metrics.epoch}/{self.run.config.epochs}", figures, str(self.training)))

    def precomputed(self, done: int, total: int) -> None:
        super().precomputed(done, total)
        if time.monotonic() - self._precomputed_at >= SECONDS_BETWEEN_LINES:
            self._precomputed_at = time.monotonic()
            stored = f"logits of {done} of {total} views are stored"
            self.message(joined(stored, self.precomputing.speed("views"), str(self.precomputing)))

    def message(self, line: str) -> None:
        print(line, flush=True)


class BarAndFigures(Progress):
    """A progress bar, and below it a line of figures, which a narrow terminal breaks."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Get what is shown."""
        yield from super().get_renderables()
        yield Text(self.figures)


class Bar(PersonReporter):
    """A progress bar over all epochs, and the figures of the current one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.progress = BarAndFigures(*columns(), console=console)
        self.task = self.progress.add_task("", visible=False, left="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, run: RunWriter, images: int, images_done: int) -> None:
        super().begin(run, images, images_done)
        self._show_epoch("")

    def step(self, event: EpochProgress) -> None:
        epoch = len(self.run.metrics)
        self.training.done = epoch * self.images + event.samples_done
        lr, speed = self.run.config.learning_rate(epoch), event.images_per_second
        self._show_epoch(self.figures(event.loss, event.top1, lr, speed, self._evaluated))

    def end_epoch(self, metrics: EpochMetrics) -> None:
        super().end_epoch(metrics)
        found = metrics.train_loss, metrics.train_top1, metrics.lr, metrics.images_per_second
        self._show_epoch(self.figures(*found, self._evaluated))

    def precomputed(self, done: int, total: int) -> None:
        super().precomputed(done, total)
        self._show("logits", self.precomputing, self.precomputing.speed("views"))

    def message(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @property
    def _evaluated(self) -> EpochMetrics | None:
        """The latest evaluation."""
        return next((line for line in reversed(self.run.metrics) if line.test_top1 is not None), None)

    def _show_epoch(self, figures: str) -> None:
        epochs = self.run.config.epochs
        self._show(f"epoch {min(len(self.run.metrics) + 1, epochs)}/{epochs}", self.training, figures)

    def _show(self, what: str, progress: TimeLeft, figures: str) -> None:
        self.progress.figures = figures
        total, done, left = progress.total, progress.done, str(progress)
        self.progress.update(self.task, visible=True, description=what, total=total, completed=done, left=left)


def terminal_reporter() -> Reporter:
    """Make the reporter for the standard output; under torchrun only the main process prints."""
    if os.environ.get("RANK", "0") != "0":
        return Reporter()
    return Bar(Console()) if sys.stdout.isatty() else Lines()


@contextmanager
def progress_bar(title: str, unit: str = "images", disable: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, on standard error, and nothing elsewhere or if `disable`.

    Parameters
    ----------
    title : str
    unit : str
        What is counted.
    disable : bool

    Yields
    ------
    callable
        Updates the bar; takes the number of finished items and the total.
    """
    if disable or not sys.stderr.isatty():  # a disabled bar of rich before 14.3 prints an empty line
        yield lambda done, total: None
        return
    # What a command prints meanwhile stays on standard output: rich would move it above the bar.
    with Progress(*columns(), console=Console(stderr=True), redirect_stdout=False) as progress:
        task, time_left = progress.add_task(title, total=None, left=""), TimeLeft(0)

        def update(done: int, total: int) -> None:
            time_left.update(done, total)
            left = joined(f"{done}/{total}", time_left.speed(unit), str(time_left))
            progress.update(task, completed=done, total=total, left=left)

        yield update


def columns() -> tuple[TextColumn, BarColumn, TextColumn]:
    """Make the columns of a bar: what is done, the bar, the time left."""
    return TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[left]}", markup=False)


def joined(*parts: str) -> str:
    """Put the figures of a line beside each other."""
    return "  ".join(filter(None, parts))
