"""The KL ratio r (Equation 3) over the iterations (Figure 4)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.analysis.estimates import MeanStd
from kdcache.analysis.groups import RunGroup
from kdcache.checked_files import kind_of
from kdcache.errors import KdcacheError
from kdcache.run.records import RunRecord
from kdcache.run.statistics_store import StatisticsReader

__all__ = ["BINS", "KLRatioCurve", "ratio_curve", "ratio_curves"]

BINS = 50
"""Points of a curve; each is the mean over the steps in its part of the training."""


@dataclass(frozen=True)
class KLRatioCurve:
    """r over the iterations of a group of runs; iterations are scaled to [0, 1].

    Attributes
    ----------
    name : str
        Of the group.
    at : tuple of float
        Center of each bin that has steps.
    mean, std : tuple of float
        Over the steps of all runs in the bin; std with n in the denominator.
    overall : MeanStd
        Over the runs, of the mean r of each run.
    steps : int
        Number of steps in all bins.
    """

    name: str
    at: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    overall: MeanStd
    steps: int

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            "name": self.name,
            "overall": self.overall.as_json(),
            "steps": self.steps,
            "iteration": self.at,
            "mean": self.mean,
            "std": self.std,
        }


def ratio_curve(name: str, runs: Iterable[np.ndarray], bins: int = BINS) -> KLRatioCurve | None:
    """Summarize r over the steps of a group of runs.

    Parameters
    ----------
    name : str
    runs : iterable of ndarray, shape (T,)
        r of each step of a run, NaN where it is unknown. T may differ between runs.
    bins : int

    Returns
    -------
    KLRatioCurve or None
        ``None`` if r is unknown in all steps.
    """
    means: list[float | None] = []
    count, total, squares = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for ratios in runs:
        known = np.isfinite(ratios)
        values = ratios[known].astype(np.float64)
        position = (np.flatnonzero(known) + 0.5) / max(1, len(ratios)) * bins
        for sums, weights in ((count, np.ones_like(values)), (total, values), (squares, values**2)):
            sums += np.bincount(position.astype(int), weights, bins)
        means.append(float(values.mean()) if len(values) else None)
    filled = count > 0
    if not filled.any():
        return None
    mean = total[filled] / count[filled]
    std = np.sqrt(np.maximum(squares[filled] / count[filled] - mean**2, 0))
    return KLRatioCurve(
        name,
        at=tuple(((np.flatnonzero(filled) + 0.5) / bins).tolist()),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        overall=MeanStd.of(means),
        steps=int(count.sum()),
    )


def ratio_curves(groups: Iterable[RunGroup]) -> tuple[list[KLRatioCurve], list[str]]:
    """Compute the curve of each group of runs that has one.

    Returns
    -------
    curves : list of KLRatioCurve
    damaged : list of str
        Messages about statistics that could not be read. Their groups have no curve: without these runs it would be
        another one.
    """
    curves, damaged = [], list[str]()
    for group in groups:
        ratios, unread = [], list[str]()
        for run in group.runs:
            if kind_of(run.folder.statistics_store) is None:  # as `load_runs` says
                continue
            if run.metrics and all(line.kl_ratio is None for line in run.metrics):  # it does not pick, or not by d
                continue
            try:
                ratios.append(_ratios(run))
            except KdcacheError as error:
                unread += [f"no KL ratio of {group.name}: {line}" for line in str(error).splitlines()]
        damaged += unread
        curve = None if unread else ratio_curve(group.name, ratios)
        if curve is not None:
            curves.append(curve)
    return curves, damaged


def _ratios(run: RunRecord) -> np.ndarray:
    """Read r of every step of a run, NaN in the epochs that are still to come."""
    epochs = [epoch.kl_ratio for epoch in StatisticsReader.open(run.folder.statistics_store)]
    if not epochs:
        return np.empty(0, np.float32)
    missing = max(0, run.config.epochs - len(epochs)) * len(epochs[0])
    return np.concatenate([*epochs, np.full(missing, np.nan, np.float32)])
