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
    """Estimate the mean of a sample (Student's t), for differences of pairs the paired t-test.

    ``None`` for fewer than two values, and for equal ones: without variance there is no estimate of the error.
    """
    from scipy import stats  # importing it takes half a second

    if len(values) < 2 or _are_equal(values):
        return None
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(confidence_level)
    return Interval(
        len(values), statistics.fmean(values), float(low), float(high), confidence_level, float(test.pvalue)
    )


def mean_difference_interval(
    left: Sequence[float], right: Sequence[float], confidence_level: float = 0.95
) -> Interval | None:
    """Estimate the mean of `left` minus that of `right`, two independent samples (Welch's t).

    ``None`` if either sample has fewer than two values, or neither has any variance.
    """
    from scipy import stats

    if min(len(left), len(right)) < 2 or (_are_equal(left) and _are_equal(right)):
        return None
    n, mean = len(left) + len(right), statistics.fmean(left) - statistics.fmean(right)
    test = stats.ttest_ind(left, right, equal_var=False)
    low, high = test.confidence_interval(confidence_level)
    return Interval(n, mean, float(low), float(high), confidence_level, float(test.pvalue))


def _are_equal(values: Sequence[float]) -> bool:
    """Whether values are equal but for the rounding of differences of percentages."""
    return max(values) - min(values) < 1e-9
