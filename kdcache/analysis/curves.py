"""Error against the total number of epochs, as in Figures 1 and 3."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdcache.analysis.runs import Figure, RunRecord, group
from kdcache.config import StudentConfig

__all__ = ["ErrorCurve", "ErrorPoint", "error_curves"]


@dataclass(frozen=True)
class ErrorPoint:
    """The outcome of runs of one length.

    Attributes
    ----------
    epochs : int
        Of each run in all.
    last, best : Figure
        Test error in percent, after the last epoch and in the best one.
    """

    epochs: int
    last: Figure
    best: Figure


@dataclass(frozen=True)
class ErrorCurve:
    """Test error against the total number of epochs of runs that differ in nothing else but the seed.

    Attributes
    ----------
    name : str
    loss : str or None
        ``None`` of teachers.
    augmented : bool
        Whether the views change from epoch to epoch.
    points : tuple of ErrorPoint
        By rising number of epochs.
    """

    name: str
    loss: str | None
    augmented: bool
    points: tuple[ErrorPoint, ...]

    def as_json(self) -> dict[str, Any]:
        """The curve as plain data."""
        points = [
            {"epochs": point.epochs, "last_error": point.last.as_json(), "best_error": point.best.as_json()}
            for point in self.points
        ]
        return {"name": self.name, "loss": self.loss, "augmented": self.augmented, "points": points}


def error_curves(runs: Iterable[RunRecord]) -> list[ErrorCurve]:
    """Put finished runs of different lengths together.

    Parameters
    ----------
    runs : iterable of RunRecord
        Unfinished ones are passed over: what they reached is no outcome of so many epochs.

    Returns
    -------
    list of ErrorCurve
    """
    finished = [run for run in runs if run.finished and run.config.epochs == run.outcome("epochs")]
    curves = []
    for series in group(finished, apart_from=("epochs",)):
        lengths = sorted({run.config.epochs for run in series.runs})
        points = []
        for epochs in lengths:
            alike = [run for run in series.runs if run.config.epochs == epochs]
            last, best = (Figure.of(_error(run, name) for run in alike) for name in ("last_top1", "best_top1"))
            points.append(ErrorPoint(epochs, last, best))
        student = series.config if isinstance(series.config, StudentConfig) else None
        augmented = student is None or student.aug != "none"
        curves.append(ErrorCurve(series.name, student.loss if student else None, augmented, tuple(points)))
    return curves


def _error(run: RunRecord, name: str) -> float | None:
    accuracy = run.outcome(name)
    return None if accuracy is None else 100 - accuracy
