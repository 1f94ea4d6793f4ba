"""Confidence intervals of means, by Student's t (one sample) and Welch's t (two samples)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Interval", "mean_difference_interval", "mean_interval"]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes
    ----------
    n : int
        Number of values.
    mean, low, high : float
    confidence_level : float
    p : float
        p-value of the two-sided test that the mean is 0.
    """

    n: int
    mean: float
    low: float
    high: float
    confidence_level: float
    p: float

    def as_json(self) -> dict[str, Any]:
        """Return the interval as plain data."""
        return dict(vars(self))


def mean_interval(values: Sequence[float], confidence_level: float = 0.95) -> Interval | None:
    """Estimate the mean of a sample (Student's t); ``None`` for fewer than two values.

    Applied to differences of pairs, this is the paired t-test.
    """
    from scipy import stats  # importing it takes half a second

    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    if statistics.stdev(values) == 0:
        return _exact(len(values), mean, confidence_level)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(confidence_level)
    return Interval(len(values), mean, float(low), float(high), confidence_level, float(test.pvalue))


def mean_difference_interval(
    left: Sequence[float], right: Sequence[float], confidence_level: float = 0.95
) -> Interval | None:
    """Estimate the mean of `left` minus that of `right`, two independent samples (Welch's t).

    ``None`` if either sample has fewer than two values.
    """
    from scipy import stats

    if min(len(left), len(right)) < 2:
        return None
    n, mean = len(left) + len(right), statistics.fmean(left) - statistics.fmean(right)
    if statistics.stdev(left) == statistics.stdev(right) == 0:
        return _exact(n, mean, confidence_level)
    test = stats.ttest_ind(left, right, equal_var=False)
    low, high = test.confidence_interval(confidence_level)
    return Interval(n, mean, float(low), float(high), confidence_level, float(test.pvalue))


def _exact(n: int, mean: float, confidence_level: float) -> Interval:
    """Return the interval of a sample without variance, for which scipy has no p-value."""
    return Interval(n, mean, mean, mean, confidence_level, float(mean == 0))
