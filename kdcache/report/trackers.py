"""Experiment trackers: what ``--track`` records a training in, besides the run folder."""

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from kdcache import distributed
from kdcache.checked_files import read_json, write_json
from kdcache.choices import TRACKERS
from kdcache.config import StudentConfig
from kdcache.errors import KdcacheError, in_one_line
from kdcache.report.progress import Reporter
from kdcache.run.folder import EpochMetrics
from kdcache.run.writer import RunWriter
from kdcache.training import EpochProgress

__all__ = ["PROJECT", "Tracked", "Tracker", "flat", "labels_of"]

PROJECT = "kdcache"
"""Project or experiment of the trackers, where the user's environment names no other."""

log = logging.getLogger("kdcache")


class Tracker(ABC):
    """A run in an experiment tracker. What it raises ends the tracking, but not the training.

    Parameters
    ----------
    run : RunWriter
    recorded : mapping of str to str
        The `identity` that the run folder has of it; empty for a run that it does not know yet.

    Attributes
    ----------
    identity : dict of str to str
        What finds the run in the tracker when the training is resumed.
    place : str
        Where the user finds it.
    last_epoch : int
        The last epoch that it has already.
    """

    identity: dict[str, str]
    place: str
    last_epoch: int = 0

    @abstractmethod
    def __init__(self, run: RunWriter, recorded: Mapping[str, str]) -> None: ...

    @abstractmethod
    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Record the metrics of an epoch."""

    @abstractmethod
    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Record the summary; ``None`` for a training that ended before, which may be resumed."""


class Tracked(Reporter):
    """Records a training in the trackers of its settings; of several processes, the main one does.

    Parameters
    ----------
    run : RunWriter
    inner : Reporter
        Reporter that receives all calls too.
    """

    def __init__(self, run: RunWriter, inner: Reporter) -> None:
        self.run, self.inner = run, inner
        self._trackers: dict[str, Tracker] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._apart_from_training(name):
                tracker.finish(self.run.folder.read_summary() if kind is None else None)

    def begin(self, run: RunWriter, images: int, images_done: int) -> None:
        self.inner.begin(run, images, images_done)
        recorded = self._recorded()
        for name in run.config.track if distributed.is_main() else ():
            with self._apart_from_training(name):
                module, _, kind = TRACKERS[name].implementation.partition(":")
                tracker = getattr(importlib.import_module(module), kind)(run, recorded.get(name, {}))
                self._trackers[name] = tracker
                recorded[name] = tracker.identity
                write_json(run.folder.tracking_file, recorded)
                self.message(f"tracked by {name}: {tracker.place}")
        for metrics in run.metrics:
            self._log(metrics)

    def step(self, event: EpochProgress) -> None:
        self.inner.step(event)

    def end_epoch(self, metrics: EpochMetrics) -> None:
        self._log(metrics)
        self.inner.end_epoch(metrics)

    def precomputed(self, done: int, total: int) -> None:
        self.inner.precomputed(done, total)

    def message(self, line: str) -> None:
        self.inner.message(line)

    def _log(self, metrics: EpochMetrics) -> None:
        values = {name: value for name, value in vars(metrics).items() if isinstance(value, int | float)}
        values |= {f"loss_parts/{name}": value for name, value in metrics.loss_parts.items()}
        for name, tracker in list(self._trackers.items()):
            if metrics.epoch > tracker.last_epoch:
                with self._apart_from_training(name):
                    tracker.log(metrics.epoch, values)

    def _recorded(self) -> dict[str, dict[str, str]]:
        """Read how the trackers know a resumed run. Without the file they record it as another run."""
        with suppress(KdcacheError):
            return dict(read_json(self.run.folder.tracking_file))
        return {}

    @contextmanager
    def _apart_from_training(self, name: str) -> Iterator[None]:
        """Say that a tracker failed, and go on without it: a training is not lost for its record elsewhere."""
        try:
            yield
        except Exception as error:  # each library has its own
            self._trackers.pop(name, None)
            log.warning("--track %s failed, and the training goes on without it: %s", name, in_one_line(error))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables: ``{"environment": {"torch": ...}}`` becomes ``{"environment.torch": ...}``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def labels_of(run: RunWriter) -> dict[str, str]:
    """Name what runs are searched for by."""
    config = run.config
    labels = {"kind": config.table, "dataset": config.dataset, "model": config.model}
    if isinstance(config, StudentConfig):
        labels |= {"loss": config.loss, "aug": config.aug}
    return labels
