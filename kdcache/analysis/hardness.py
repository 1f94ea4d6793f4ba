"""Which images stay hard for a student, and which it forgets: d of x (Equation 2) over the epochs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.analysis.estimates import Proportion
from kdcache.run.statistics_store import StoredEpoch

__all__ = ["HARD_SHARE", "Hardness", "measure_hardness"]

HARD_SHARE = 0.1
"""Share of the images that count as hard in an epoch: those with the largest d."""

EXTREME_SAMPLES = 8
"""Samples listed at each end."""


@dataclass(frozen=True)
class Hardness:
    """How d of x develops over the epochs.

    An image is *hard* in an epoch if its d is among the largest tenth of the known ones.

    Attributes
    ----------
    epochs : tuple of int
        Epochs with known d, counted from 0.
    median, low, high : tuple of float
        Of d over the images in each of these epochs, in nats; `low` and `high` are the 10th and 90th percentile.
    stayed_hard : tuple of Proportion
        For each epoch after the first: images that are hard, among those that were hard in the epoch before. A tenth
        is chance.
    became_hard : tuple of Proportion
        For each epoch after the first: images that are hard, among those that were not hard in the epoch before.
    always_hard : Proportion
        Images that are hard in every epoch, among all.
    highest, lowest : tuple of (int, float)
        Samples with the largest and the smallest mean d over the epochs, and this mean; the extreme first.
    most_forgotten : tuple of (int, int)
        Samples that became hard most often, and how often.
    """

    epochs: tuple[int, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    stayed_hard: tuple[Proportion, ...]
    became_hard: tuple[Proportion, ...]
    always_hard: Proportion
    highest: tuple[tuple[int, float], ...]
    lowest: tuple[tuple[int, float], ...]
    most_forgotten: tuple[tuple[int, int], ...]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        by_epoch: list[dict[str, Any]] = [
            {"epoch": epoch + 1, "d_10": low, "d_median": median, "d_90": high}
            for epoch, low, median, high in zip(self.epochs, self.low, self.median, self.high, strict=True)
        ]
        for line, stayed, became in zip(by_epoch[1:], self.stayed_hard, self.became_hard, strict=True):
            line |= {"stayed_hard": stayed.as_json(), "became_hard": became.as_json()}
        return {
            "by_epoch": by_epoch,
            "hard_in_every_epoch": self.always_hard.as_json(),
            "highest": [{"sample": sample, "mean_d": d} for sample, d in self.highest],
            "lowest": [{"sample": sample, "mean_d": d} for sample, d in self.lowest],
            "most_forgotten": [{"sample": sample, "times": times} for sample, times in self.most_forgotten],
        }


def measure_hardness(epochs: Iterable[StoredEpoch], extremes: int = EXTREME_SAMPLES) -> Hardness | None:
    """Follow d of x over the epochs of a run. Only one epoch is in memory at a time.

    Parameters
    ----------
    epochs : iterable of StoredEpoch
    extremes : int
        Samples to list at each end.

    Returns
    -------
    Hardness or None
        ``None`` if d is unknown in all epochs, as for a student without a teacher.
    """
    known: list[int] = []
    percentiles: list[np.ndarray] = []
    stayed, became = [], []
    sums: _SampleSums | None = None
    for epoch in epochs:
        finite = np.isfinite(epoch.d_x)
        if not finite.any():
            continue
        hard = _hard(epoch.d_x, finite)
        if sums is None:
            sums = _SampleSums.zeros(len(hard))
        else:
            stayed.append(Proportion(int((hard & sums.was_hard).sum()), int(sums.was_hard.sum())))
            became.append(Proportion(int((hard & ~sums.was_hard).sum()), int((~sums.was_hard).sum())))
            sums.times_became_hard += hard & ~sums.was_hard
        sums.d[finite] += epoch.d_x[finite]
        sums.times_known += finite
        sums.times_hard += hard
        sums.was_hard = hard
        known.append(epoch.epoch)
        percentiles.append(np.percentile(epoch.d_x[finite], (10, 50, 90)))
    if sums is None:
        return None
    seen = sums.times_known > 0
    mean = np.where(seen, sums.d / np.maximum(sums.times_known, 1), np.nan)
    ascending = np.argsort(mean, kind="stable")[: int(seen.sum())]  # NaN sorts last
    low, median, high = (tuple(column.tolist()) for column in np.array(percentiles).T)
    most_forgotten = np.argsort(-sums.times_became_hard, kind="stable")[:extremes]
    return Hardness(
        epochs=tuple(known),
        median=median,
        low=low,
        high=high,
        stayed_hard=tuple(stayed),
        became_hard=tuple(became),
        always_hard=Proportion(int((sums.times_hard == len(known)).sum()), len(mean)),
        highest=tuple((int(sample), float(mean[sample])) for sample in ascending[::-1][:extremes]),
        lowest=tuple((int(sample), float(mean[sample])) for sample in ascending[:extremes]),
        most_forgotten=tuple(
            (int(sample), times) for sample in most_forgotten if (times := int(sums.times_became_hard[sample]))
        ),
    )


@dataclass
class _SampleSums:
    """Sums over the epochs so far, shape (N,) each, and which samples were hard in the last one."""

    d: np.ndarray
    times_known: np.ndarray
    times_hard: np.ndarray
    times_became_hard: np.ndarray
    was_hard: np.ndarray

    @classmethod
    def zeros(cls, samples: int) -> "_SampleSums":
        known, hard, became_hard = (np.zeros(samples, np.int32) for _ in range(3))
        return cls(np.zeros(samples), known, hard, became_hard, was_hard=np.zeros(samples, bool))


def _hard(d: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Find the samples with the largest d: bool (N,). The lower index wins a tie."""
    count = max(1, round(HARD_SHARE * int(finite.sum())))
    hardest = np.argsort(np.where(finite, -d, np.inf), kind="stable")[:count]
    hard = np.zeros(len(d), bool)
    hard[hardest] = True
    return hard
