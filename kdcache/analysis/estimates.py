"""Numbers with their uncertainty: means over runs, and proportions of samples."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["DAMAGED", "MeanStd", "Proportion"]


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over runs.

    Attributes
    ----------
    n : int
        Number of values.
    mean : float or None
        ``None`` without values.
    std : float or None
        With n - 1 in the denominator; ``None`` with fewer than two values.
    damaged : bool
        Whether a file that a value comes from is damaged: the mean of the others would be another figure.
    """

    n: int
    mean: float | None
    std: float | None
    damaged: bool = False

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "MeanStd":
        """Summarize the values that are known and finite."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        mean = statistics.fmean(known) if known else None
        return cls(len(known), mean, statistics.stdev(known) if len(known) > 1 else None)

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {"n": self.n, "mean": self.mean, "std": self.std} | ({"damaged": True} if self.damaged else {})


DAMAGED = MeanStd(0, None, None, damaged=True)
"""Stands for a figure that a damaged file would change."""


@dataclass(frozen=True)
class Proportion:
    """A number of samples with some property among all samples.

    Attributes
    ----------
    count, total : int
    """

    count: int
    total: int

    @property
    def percent(self) -> float | None:
        """The proportion in percent; ``None`` without samples."""
        return 100 * self.count / self.total if self.total else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's score interval (1927) at 95 %, in percent; ``None`` without samples."""
        from scipy.stats import binomtest  # takes half a second to import

        if not self.total:
            return None
        found = binomtest(self.count, self.total).proportion_ci(0.95, method="wilson")
        return 100 * float(found.low), 100 * float(found.high)

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {"percent": self.percent, "interval_95": self.interval, "count": self.count, "of": self.total}
