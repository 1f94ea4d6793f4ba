"""Metrics for TensorBoard, an optional dependency: ``pip install 'kdcache[tensorboard]'``."""

from types import TracebackType
from typing import Any, Self

from kdcache.checked_files import FOLDER, require_kind
from kdcache.errors import UsageError, problem
from kdcache.report.progress import Reporter
from kdcache.run.folder import EpochMetrics
from kdcache.run.writer import RunWriter
from kdcache.training import EpochProgress

__all__ = ["EVENTS", "TensorBoard"]

EVENTS = "tensorboard"
"""Folder of the event files within the run folder."""


class TensorBoard(Reporter):
    """Writes the metrics of each epoch into the run folder as TensorBoard events.

    Parameters
    ----------
    inner : Reporter
        Reporter that receives all calls too.

    Raises
    ------
    UsageError
        If TensorBoard is not installed.
    """

    def __init__(self, inner: Reporter) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            remedy = "Run pip install 'kdcache[tensorboard]'."
            raise UsageError(problem("--tensorboard: TensorBoard is not installed", remedy=remedy)) from None
        self.inner, self._make_writer = inner, SummaryWriter
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

    def begin(self, run: RunWriter, images: int, images_done: int) -> None:
        if self._writer is not None:
            self._writer.close()
        require_kind(run.path / EVENTS, FOLDER)
        self._writer = self._make_writer(str(run.path / EVENTS))
        self.inner.begin(run, images, images_done)

    def step(self, event: EpochProgress) -> None:
        self.inner.step(event)

    def end_epoch(self, metrics: EpochMetrics) -> None:
        values = {name: value for name, value in vars(metrics).items() if isinstance(value, int | float)}
        values |= {f"loss_parts/{name}": value for name, value in metrics.loss_parts.items()}
        epoch = int(values.pop("epoch"))
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
        self.inner.end_epoch(metrics)

    def precomputed(self, done: int, total: int) -> None:
        self.inner.precomputed(done, total)

    def message(self, line: str) -> None:
        self.inner.message(line)
