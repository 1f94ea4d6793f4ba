"""Test error against the total number of epochs (Figures 1 and 3)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.analysis.estimates import DAMAGED, MeanStd
from kdcache.analysis.groups import group_runs
from kdcache.config import StudentConfig
from kdcache.run.records import RunRecord

__all__ = ["ErrorCurve", "ErrorPoint", "error_curves", "lowest_first"]


@dataclass(frozen=True)
class ErrorPoint:
    """The test error of runs with the same number of epochs.

    Attributes
    ----------
    epochs : int
    last, best : MeanStd
        Test error in percent, after the last epoch and after the best one.
    """

    epochs: int
    last: MeanStd
    best: MeanStd


@dataclass(frozen=True)
class ErrorCurve:
    """Test error against the number of epochs, of runs that differ only in the epochs and the seed.

    Attributes
    ----------
    name : str
    loss : str or None
        ``None`` for teachers.
    is_augmented : bool
        Whether the views change from epoch to epoch.
    points : tuple of ErrorPoint
        By increasing number of epochs.
    """

    name: str
    loss: str | None
    is_augmented: bool
    points: tuple[ErrorPoint, ...]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        points = [
            {"epochs": point.epochs, "last_error": point.last.as_json(), "best_error": point.best.as_json()}
            for point in self.points
        ]
        return {"name": self.name, "loss": self.loss, "augmented": self.is_augmented, "points": points}


def error_curves(runs: Iterable[RunRecord]) -> list[ErrorCurve]:
    """Compute an error curve for each group of runs.

    Parameters
    ----------
    runs : iterable of RunRecord
        Unfinished runs and teachers that were loaded instead of trained are skipped.

    Returns
    -------
    list of ErrorCurve
    """
    trained = [run for run in runs if run.summary_damaged or run.config.epochs == run.result("epochs")]
    curves = []
    for group in group_runs(trained, ignoring=("epochs", "steps")):
        points = []
        for epochs in sorted({run.config.epochs for run in group.runs}):
            same = [run for run in group.runs if run.config.epochs == epochs]
            last, best = (_mean_error(same, name) for name in ("last_top1", "best_top1"))
            points.append(ErrorPoint(epochs, last, best))
        student = group.config if isinstance(group.config, StudentConfig) else None
        augmented = student is None or student.aug != "none"
        curves.append(ErrorCurve(group.name, student.loss if student else None, augmented, tuple(points)))
    return curves


def lowest_first(curves: Iterable[ErrorCurve]) -> list[ErrorCurve]:
    """Sort curves by their lowest error, those without a known one last."""
    return sorted(
        curves, key=lambda curve: min(100.0 if (e := point.last.mean) is None else e for point in curve.points)
    )


def _mean_error(runs: Sequence[RunRecord], name: str) -> MeanStd:
    if any(run.summary_damaged for run in runs):
        return DAMAGED
    return MeanStd.of(_error(run, name) for run in runs)


def _error(run: RunRecord, name: str) -> float | None:
    accuracy = run.result(name)
    return None if accuracy is None else 100 - accuracy
