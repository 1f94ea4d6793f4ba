"""Is one side better than the other? Means with intervals, and what would make a comparison unfair."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.analysis.estimates import MeanStd
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.errors import UsageError, problem
from kdcache.run.records import RunRecord

__all__ = ["Comparison", "Interval", "compare", "interval_of_mean"]

FAIR = ("dataset", "train_fraction", "val_fraction", "image_size", "epochs", "batch_size", "views")
"""In which two sides should not differ unless that is what is compared: data, epochs and augmentation."""


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies.

    Attributes
    ----------
    n : int
    mean, low, high : float
    level : float
        How often an interval made so covers the true mean.
    p : float
        Of a two-sided test that the mean is 0.
    """

    n: int
    mean: float
    low: float
    high: float
    level: float
    p: float

    def as_json(self) -> dict[str, Any]:
        """The interval as plain data."""
        return dict(vars(self))


def interval_of_mean(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Estimate a mean by Student's t; ``None`` of fewer than two values."""
    from scipy import stats  # takes half a second

    n = len(values)
    if n < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(n)
    if error == 0:  # all values are alike, as repeated runs of one seed are
        return Interval(n, mean, mean, mean, level, float(mean == 0))
    reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    p = float(stats.ttest_1samp(values, 0.0).pvalue)
    return Interval(n, mean, mean - reach, mean + reach, level, p)


@dataclass(frozen=True)
class Comparison:
    """One side against the other, in points of top-1 accuracy after the last epoch.

    Attributes
    ----------
    left, right : MeanStd
        Mean and spread of each side.
    difference : Interval or None
        Left minus right, the sides taken as independent (Welch's t-test); ``None`` where a side has one run.
    paired : Interval or None
        Left minus right over the seeds that both sides have (paired t-test); ``None`` of fewer than two.
    unfair : tuple of str
        In which of `FAIR` the sides differ, or the runs of one, for people.
    """

    left: MeanStd
    right: MeanStd
    difference: Interval | None
    paired: Interval | None
    unfair: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain data."""
        intervals = {"difference": self.difference, "paired": self.paired}
        return {
            "left": self.left.as_json(),
            "right": self.right.as_json(),
            **{name: found.as_json() if found else None for name, found in intervals.items()},
            "unfair": list(self.unfair),
        }


def compare(left: Sequence[RunRecord], right: Sequence[RunRecord], level: float = 0.95) -> Comparison:
    """Compare finished runs.

    Parameters
    ----------
    left, right : sequence of RunRecord
    level : float
        Of the intervals.

    Raises
    ------
    UsageError
        Where a side has no finished run.
    """
    sides = {name: [run for run in runs if run.finished] for name, runs in (("left", left), ("right", right))}
    if empty := [name for name, runs in sides.items() if not runs]:
        raise UsageError(*(problem(f"{name} side", expected="at least one finished run", got="none") for name in empty))
    a, b = ([_accuracy(run) for run in runs] for runs in sides.values())
    seeds = [{run.config.seed: _accuracy(run) for run in runs} for runs in sides.values()]
    alone = all(len(by_seed) == len(runs) for by_seed, runs in zip(seeds, sides.values(), strict=True))
    both = sorted(seeds[0].keys() & seeds[1].keys()) if alone else []
    paired = interval_of_mean([seeds[0][seed] - seeds[1][seed] for seed in both], level)
    return Comparison(MeanStd.of(a), MeanStd.of(b), _welch(a, b, level), paired, tuple(_unfair(sides)))


def _accuracy(run: RunRecord) -> float:
    value = run.result("last_top1")
    assert value is not None
    return value


def _welch(left: Sequence[float], right: Sequence[float], level: float) -> Interval | None:
    from scipy import stats

    if min(len(left), len(right)) < 2:
        return None
    mean = statistics.fmean(left) - statistics.fmean(right)
    n = len(left) + len(right)
    if statistics.stdev(left) == statistics.stdev(right) == 0:
        return Interval(n, mean, mean, mean, level, float(mean == 0))
    found = stats.ttest_ind(left, right, equal_var=False)
    low, high = found.confidence_interval(level)
    return Interval(n, mean, float(low), float(high), level, float(found.pvalue))


def _unfair(sides: dict[str, list[RunRecord]]) -> list[str]:
    """Name what of `FAIR` is not the same in all runs."""
    lines = []
    for name in FAIR:
        values = [sorted({_said(run.config, name) for run in runs}) for runs in sides.values()]
        if values[0] != values[1] or len(values[0]) > 1:
            given = " against ".join(" and ".join(side) for side in values)
            lines.append(f"{name.replace('_', ' ')}: {given}")
    return lines


def _said(config: TrainingConfig, name: str) -> str:
    if name != "views":
        return str(getattr(config, name))
    if not isinstance(config, StudentConfig):
        return "standard"
    views = config.augmentation  # with what is in force where nothing was said
    return f"{config.aug}, {views.keep:g} of {len(views.mixes)} by {views.pick}" if views.pick else config.aug
