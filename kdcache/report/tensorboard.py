"""Progress for TensorBoard, which is an extra: ``pip install 'kdcache[tensorboard]'``."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdcache.errors import UsageError, problem
from kdcache.report.progress import Reporter
from kdcache.run.folder import EpochMetrics
from kdcache.training import StepEvent

__all__ = ["FOLDER_PREFIX", "TensorBoard"]

FOLDER_PREFIX = "tensorboard"
"""Where a run keeps its event files."""


class TensorBoard(Reporter):
    """Writes the metrics of every epoch as events into the run folder, and passes on what it hears.

    Parameters
    ----------
    inner : Reporter
        Hears everything too.

    Raises
    ------
    UsageError
        Where TensorBoard is not installed.
    """

    def __init__(self, inner: Reporter) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise UsageError(problem("--tensorboard", expected="after pip install 'kdcache[tensorboard]'")) from None
        self.inner, self._make = inner, SummaryWriter
        self._writer: Any = None

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        self.inner.__exit__(kind, error, trace)

    def begin(self, title: str, epochs: int, images: int, folder: Path) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._make(str(folder / FOLDER_PREFIX))
        self.inner.begin(title, epochs, images, folder)

    def step(self, event: StepEvent) -> None:
        self.inner.step(event)

    def end_epoch(self, metrics: EpochMetrics) -> None:
        values = {name: value for name, value in vars(metrics).items() if isinstance(value, int | float)}
        values |= {f"loss_parts/{name}": value for name, value in metrics.loss_parts.items()}
        epoch = int(values.pop("epoch"))
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
        self.inner.end_epoch(metrics)

    def filled(self, done: int, total: int) -> None:
        self.inner.filled(done, total)

    def say(self, line: str) -> None:
        self.inner.say(line)
