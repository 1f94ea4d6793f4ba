"""Which images stay hard for a student, and which it forgets: d of Equation 2, sample by sample, over the epochs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.analysis.disagreement import Share
from kdcache.run.statistics import StoredEpoch

__all__ = ["HARDEST", "Hardness", "hardness"]

HARDEST = 0.1
"""Share of the images that counts as hard in an epoch: those with the largest d."""

SHOWN = 8


@dataclass(frozen=True)
class Hardness:
    """How d of x of the images develops over the epochs.

    An image is *hard* in an epoch if its d of x is among the largest tenth of the images of which d is known.

    Attributes
    ----------
    epochs : tuple of int
        Those in which d is known, counted from 0.
    median, low, high : tuple of float
        Of d over the images in each of these epochs, in nats; `low` and `high` are the 10th and 90th percentile.
    stayed : tuple of Share
        For each epoch but the first: the images that are hard, of those that were so in the epoch before. By chance
        it would be a tenth.
    forgotten : tuple of Share
        For each epoch but the first: the images that have become hard, of those that were not so before.
    always : Share
        Images that are hard in every epoch, of all.
    highest, lowest : tuple of (int, float)
        The samples with the largest and the smallest mean d over the epochs, with it, the extreme first.
    most_forgotten : tuple of (int, int)
        The samples that became hard again most often, with how often.
    """

    epochs: tuple[int, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    stayed: tuple[Share, ...]
    forgotten: tuple[Share, ...]
    always: Share
    highest: tuple[tuple[int, float], ...]
    lowest: tuple[tuple[int, float], ...]
    most_forgotten: tuple[tuple[int, int], ...]

    def as_json(self) -> dict[str, Any]:
        """All figures, as plain data."""
        by_epoch: list[dict[str, Any]] = [
            {"epoch": epoch + 1, "d_10": low, "d_median": median, "d_90": high}
            for epoch, low, median, high in zip(self.epochs, self.low, self.median, self.high, strict=True)
        ]
        for line, stayed, forgotten in zip(by_epoch[1:], self.stayed, self.forgotten, strict=True):
            line |= {"stayed_hard": stayed.as_json(), "became_hard": forgotten.as_json()}
        return {
            "by_epoch": by_epoch,
            "hard_in_every_epoch": self.always.as_json(),
            "highest": [{"sample": sample, "mean_d": d} for sample, d in self.highest],
            "lowest": [{"sample": sample, "mean_d": d} for sample, d in self.lowest],
            "most_forgotten": [{"sample": sample, "times": times} for sample, times in self.most_forgotten],
        }


def hardness(epochs: Iterable[StoredEpoch], shown: int = SHOWN) -> Hardness | None:
    """Follow d of x over the epochs of a run. One epoch is held at a time, and a few numbers of each sample.

    Parameters
    ----------
    epochs : iterable of StoredEpoch
    shown : int
        How many samples are named at each end.

    Returns
    -------
    Hardness or None
        ``None`` where no d is known, as of a student without a teacher.
    """
    known: list[int] = []
    spread: list[np.ndarray] = []
    stayed, forgotten = [], []
    sums: _PerSample | None = None
    for epoch in epochs:
        there = np.isfinite(epoch.d_x)
        if not there.any():
            continue
        hard = _hard(epoch.d_x, there)
        if sums is None:
            sums = _PerSample.empty(len(hard))
        else:
            stayed.append(Share(int((hard & sums.before).sum()), int(sums.before.sum())))
            forgotten.append(Share(int((hard & ~sums.before).sum()), int((~sums.before).sum())))
            sums.lapses += hard & ~sums.before
        sums.total[there] += epoch.d_x[there]
        sums.times += there
        sums.hard += hard
        sums.before = hard
        known.append(epoch.epoch)
        spread.append(np.percentile(epoch.d_x[there], (10, 50, 90)))
    if sums is None:
        return None
    mean = np.where(sums.times > 0, sums.total / np.maximum(sums.times, 1), np.nan)
    order = np.argsort(mean, kind="stable")[: int((sums.times > 0).sum())]  # the unknown come last
    low, median, high = (tuple(column.tolist()) for column in np.array(spread).T)
    often = np.argsort(-sums.lapses, kind="stable")[:shown]
    return Hardness(
        epochs=tuple(known),
        median=median,
        low=low,
        high=high,
        stayed=tuple(stayed),
        forgotten=tuple(forgotten),
        always=Share(int((sums.hard == len(known)).sum()), len(mean)),
        highest=tuple((int(sample), float(mean[sample])) for sample in order[::-1][:shown]),
        lowest=tuple((int(sample), float(mean[sample])) for sample in order[:shown]),
        most_forgotten=tuple((int(sample), int(sums.lapses[sample])) for sample in often if sums.lapses[sample]),
    )


@dataclass
class _PerSample:
    """What the epochs so far add up to for each sample."""

    total: np.ndarray
    times: np.ndarray
    hard: np.ndarray
    lapses: np.ndarray
    before: np.ndarray
    """Which samples were hard in the epoch before."""

    @classmethod
    def empty(cls, samples: int) -> "_PerSample":
        times, hard, lapses = (np.zeros(samples, np.int32) for _ in range(3))
        return cls(np.zeros(samples), times, hard, lapses, before=np.zeros(samples, bool))


def _hard(d: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Tell which samples have the largest d, ties going to the lower index: bool (N,)."""
    count = max(1, round(HARDEST * int(there.sum())))
    order = np.argsort(np.where(there, -d, np.inf), kind="stable")[:count]
    hard = np.zeros(len(d), bool)
    hard[order] = True
    return hard
