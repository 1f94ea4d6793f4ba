"""The standard deviation of a teacher's mean probability, and its standard error."""

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["TeacherStd", "std_of_mean_probability"]

CLASSES_PER_BLOCK = 100
"""Classes computed together, to avoid a copy of all means."""


@dataclass(frozen=True, eq=False)
class TeacherStd:
    """The standard deviation over groups of samples of the teacher's mean probability, averaged over the classes.

    Attributes
    ----------
    value : float
    jackknife : ndarray, shape (G,)
        The value without each of the groups in turn.
    """

    value: float
    jackknife: np.ndarray

    @property
    def error(self) -> float:
        """Standard error of the value."""
        return _jackknife_error(self.jackknife)

    def error_of_difference(self, other: "TeacherStd") -> float | None:
        """Standard error of the difference from another value on the same groups of samples, which vary together.

        ``None`` if the numbers of groups differ.
        """
        if len(self.jackknife) != len(other.jackknife):
            return None
        return _jackknife_error(self.jackknife - other.jackknife)


def _jackknife_error(values: np.ndarray) -> float:
    groups = len(values)
    return math.sqrt((groups - 1) / groups * float(((values - values.mean()) ** 2).sum()))


def std_of_mean_probability(means: np.ndarray) -> TeacherStd | None:
    """Compute the standard deviation of the mean probability.

    Parameters
    ----------
    means : ndarray, shape (G, C)
        Mean probability of each class in each group.

    Returns
    -------
    TeacherStd or None
        ``None`` with fewer than three groups.
    """
    groups, classes = means.shape
    if groups < 3:
        return None
    value, jackknife = 0.0, np.zeros(groups)
    for block in np.array_split(means, math.ceil(classes / CLASSES_PER_BLOCK), axis=1):
        squares = (block - block.mean(0, dtype=np.float64)) ** 2
        total = squares.sum(0)
        value += float(np.sqrt(total / (groups - 1)).sum())
        # Without group g, the squares about the new mean sum to G / (G - 1) times the square of g less.
        total_without = np.maximum(total - squares * groups / (groups - 1), 0)
        jackknife += np.sqrt(total_without / (groups - 2)).sum(1)
    return TeacherStd(value / classes, jackknife / classes)
