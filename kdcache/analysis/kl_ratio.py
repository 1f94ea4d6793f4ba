"""The KL ratio r (Equation 3) over the iterations of runs, as in Figure 4."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.analysis.runs import Figure, Group, RunRecord
from kdcache.errors import KdcacheError

__all__ = ["BINS", "RatioCurve", "ratio_curve", "ratio_curves"]

BINS = 50
"""Points of a curve, each the mean over its part of the normalised iterations."""


@dataclass(frozen=True)
class RatioCurve:
    """r over the iterations of the runs of one group, these being normalised to 0 to 1.

    Attributes
    ----------
    name : str
        Of the group.
    at : tuple of float
        Middle of each bin that has steps.
    mean, std : tuple of float
        Over the steps of all runs that fall into the bin; std is the population's, 0 where all are equal.
    overall : Figure
        Mean of r over the steps of a run; mean and standard deviation over the runs.
    steps : int
        On which the curve rests.
    """

    name: str
    at: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    overall: Figure
    steps: int

    def as_json(self) -> dict[str, Any]:
        """The curve as plain data."""
        return {
            "name": self.name,
            "overall": self.overall.as_json(),
            "steps": self.steps,
            "iteration": self.at,
            "mean": self.mean,
            "std": self.std,
        }


def ratio_curve(name: str, runs: Iterable[np.ndarray], bins: int = BINS) -> RatioCurve | None:
    """Summarise r over the steps of some runs.

    Parameters
    ----------
    name : str
    runs : iterable of ndarray, shape (T,)
        r of each step of a run, NaN where there is none. Their numbers of steps may differ.
    bins : int

    Returns
    -------
    RatioCurve or None
        ``None`` where no step has one.
    """
    means: list[float | None] = []
    count, total, squares = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for steps in runs:
        known = np.isfinite(steps)
        values = steps[known].astype(np.float64)
        place = (np.flatnonzero(known) + 0.5) / max(1, len(steps)) * bins
        for sums, weights in ((count, np.ones_like(values)), (total, values), (squares, values**2)):
            sums += np.bincount(place.astype(int), weights, bins)
        means.append(float(values.mean()) if len(values) else None)
    there = count > 0
    if not there.any():
        return None
    mean = total[there] / count[there]
    std = np.sqrt(np.maximum(squares[there] / count[there] - mean**2, 0))
    return RatioCurve(
        name,
        at=tuple(((np.flatnonzero(there) + 0.5) / bins).tolist()),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        overall=Figure.of(means),
        steps=int(count.sum()),
    )


def ratio_curves(groups: Iterable[Group]) -> tuple[list[RatioCurve], list[str]]:
    """Read r of each group of runs.

    Returns
    -------
    curves : list of RatioCurve
        Of the groups that have one.
    problems : list of str
        A line for each run whose statistics could not be read.
    """
    curves, problems = [], []
    for group in groups:
        series = []
        for run in group.runs:
            try:
                series.append(_steps(run))
            except KdcacheError as error:
                problems += str(error).splitlines()
        curve = ratio_curve(group.name, series)
        if curve is not None:
            curves.append(curve)
    return curves, problems


def _steps(run: RunRecord) -> np.ndarray:
    """Read r of every step of a run; those of epochs that were not written yet are unknown."""
    reader = run.statistics()
    epochs = [epoch.kl_ratio for epoch in reader]
    if not epochs:
        return np.empty(0, np.float32)
    missing = max(0, run.config.epochs - len(epochs)) * len(epochs[0])
    return np.concatenate([*epochs, np.full(missing, np.nan, np.float32)])
