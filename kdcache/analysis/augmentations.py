"""Which augmentation suits a teacher: ranked by the teacher's answers alone, without training any student.

The ranking follows Wang, Lohit, Jones and Fu, "What Makes a 'Good' Data Augmentation in Knowledge Distillation"
(2022): an augmentation is the better, the less the teacher's mean probability varies from a group of views to the next.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.analysis.disagreement import Share
from kdcache.analysis.subject import Subject
from kdcache.choices import AUGMENTATIONS, MIXES
from kdcache.config import StudentConfig
from kdcache.errors import UsageError, problem
from kdcache.losses import entropy
from kdcache.views import Batch, ViewMaker

__all__ = ["WITHOUT_STUDENT", "Merits", "Tally", "merits", "rank", "spread_of_means"]

WITHOUT_STUDENT = (*(name for name, augmentation in AUGMENTATIONS.items() if augmentation.pick is None), *MIXES)
"""The augmentations whose views no student takes part in choosing; sums of the mixes are others."""

GROUP = 320
"""Samples whose views are averaged into one mean probability: five batches of 64, as in the authors' code."""

TRACKED = 2000
"""Images whose answers are compared from epoch to epoch: enough for a mean, few enough for the memory."""


CLASSES_AT_ONCE = 100
"""Classes whose groups are worked on together, so that no copy of all means is made."""


class Tally:
    """What the teacher's answers to one kind of view add up to; no answer is kept.

    Parameters
    ----------
    samples, classes : int
        N and C.
    tracked : Tensor of int64, shape (K,)
        The samples whose answers are compared with each other.
    groups : int
        G, how many whole groups there will be.

    Attributes
    ----------
    sums : Tensor of float32, shape (G, C)
        The sum of the probabilities of the views of each group. One block: many small ones that live long would keep
        the memory around them from being used again.
    rows : Tensor of int64, shape (G,)
        How many views that were.
    disputed, views : int
    entropy : float
        Sum of the entropies of the answers, in nats.
    """

    def __init__(self, samples: int, classes: int, tracked: Tensor, groups: int) -> None:
        self.sums, self.rows = torch.zeros(groups, classes), torch.zeros(groups, dtype=torch.int64)
        self.disputed = self.views = 0
        self.entropy = 0.0
        self._place = torch.full((samples,), -1)
        self._place[tracked] = torch.arange(len(tracked))
        self._mean = torch.zeros(len(tracked), classes)
        self._entropies, self._times = torch.zeros(len(tracked)), torch.zeros(len(tracked))

    def add(self, group: int | None, samples: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Add the answers to some views.

        Parameters
        ----------
        group : int or None
            Number of their group; ``None`` where there are too few samples for a whole one.
        samples, labels : Tensor of int64, shape (R,)
            The sample that each view is of, and the label that it is given.
        logits : Tensor, shape (R, C)
        """
        samples, labels, logits = samples.cpu(), labels.cpu(), logits.cpu()
        probabilities, entropies = logits.softmax(1), entropy(logits)
        if group is not None:
            self.sums[group] = probabilities.sum(0)
            self.rows[group] = len(logits)
        self.views += len(logits)
        self.disputed += int((logits.argmax(1) != labels).sum())
        self.entropy += float(entropies.sum())
        place = self._place[samples]
        there = place >= 0
        self._mean.index_add_(0, place[there], probabilities[there])
        self._entropies.index_add_(0, place[there], entropies[there])
        self._times.index_add_(0, place[there], torch.ones(int(there.sum())))

    def diversity(self) -> tuple[float | None, int]:
        """Mean Jensen-Shannon divergence, in nats, of the answers to each tracked image that came up twice or more.

        Returns
        -------
        divergence : float or None
            Entropy of an image's mean answer less the mean entropy of its answers: 0 where all are the same, at most
            the logarithm of their number.
        images : int
        """
        often = self._times >= 2
        times = self._times[often]
        if not len(times):
            return None, 0
        mean = self._mean[often] / times[:, None]
        of_mean = torch.special.entr(mean).sum(1)
        return float((of_mean - self._entropies[often] / times).clamp(min=0).mean()), len(times)


@dataclass(frozen=True, eq=False)
class Spread:
    """The standard deviation of the teacher's mean probability.

    Attributes
    ----------
    value : float
    left_out : ndarray, shape (G,)
        What it is without each of the groups in turn: the jackknife, which its standard error rests on.
    """

    value: float
    left_out: np.ndarray

    @property
    def error(self) -> float:
        """Standard error of the value."""
        return _jackknife_error(self.left_out)

    def error_beside(self, other: "Spread") -> float | None:
        """Standard error of the difference from another one of the same groups of samples, which vary together.

        ``None`` where the groups are not as many.
        """
        if len(self.left_out) != len(other.left_out):
            return None
        return _jackknife_error(self.left_out - other.left_out)


def _jackknife_error(left_out: np.ndarray) -> float:
    groups = len(left_out)
    return math.sqrt((groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum()))


def spread_of_means(means: np.ndarray) -> Spread | None:
    """Compute the standard deviation over groups of the teacher's mean probability, averaged over the classes.

    Parameters
    ----------
    means : ndarray, shape (G, C)
        Mean probability of each class in each group.

    Returns
    -------
    Spread or None
        ``None`` of fewer than three groups.
    """
    groups = len(means)
    if groups < 3:
        return None
    value, left_out = 0.0, np.zeros(groups)
    for block in np.array_split(means, math.ceil(means.shape[1] / CLASSES_AT_ONCE), axis=1):
        deviations = (block - block.mean(0, dtype=np.float64)) ** 2
        squares = deviations.sum(0)
        value += float(np.sqrt(squares / (groups - 1)).sum())
        # Without group g, the squares about the mean of the others sum up to G / (G - 1) times its own square less.
        without = np.maximum(squares - deviations * groups / (groups - 1), 0)
        left_out += np.sqrt(without / (groups - 2)).sum(1)
    return Spread(value / means.shape[1], left_out / means.shape[1])


@dataclass(frozen=True)
class Merits:
    """What a teacher says of the views of one augmentation.

    Attributes
    ----------
    aug : str
    spread : Spread or None
        The metric, lower being better: over groups of the student's views, x and x'.
    groups : int
    entropy : float
        Mean entropy of the answers to the views that the augmentation adds (x', or x where there is none), in nats.
    disagreement : Share
        Of these views, those whose label the teacher disputes.
    diversity : float or None
        How much the answers to one image differ from epoch to epoch, see `Tally.diversity`, in nats.
    images : int
        On how many images that rests.
    """

    aug: str
    spread: Spread | None
    groups: int
    entropy: float
    disagreement: Share
    diversity: float | None
    images: int

    def behind(self, best: "Merits") -> tuple[float, float] | None:
        """By how much the metric is above that of another augmentation, with the standard error of the difference."""
        if self is best or self.spread is None or best.spread is None:
            return None
        error = self.spread.error_beside(best.spread)
        return None if error is None else (self.spread.value - best.spread.value, error)

    def as_json(self) -> dict[str, Any]:
        """All figures, as plain data."""
        return {
            "aug": self.aug,
            "teacher_std": self.spread.value if self.spread else None,
            "teacher_std_error": self.spread.error if self.spread else None,
            "groups": self.groups,
            "entropy_nats": self.entropy,
            "disagreement": self.disagreement.as_json(),
            "diversity_nats": self.diversity,
            "diversity_images": self.images,
        }


def merits(aug: str, parts: Sequence[Tally]) -> Merits:
    """Sum up an augmentation.

    Parameters
    ----------
    aug : str
    parts : sequence of Tally
        Of x, and then of x' if there is one.
    """
    rows = torch.stack([part.rows for part in parts]).sum(0)
    means = torch.stack([part.sums for part in parts]).sum(0) / rows[:, None]
    added = parts[-1]
    diversity, images = added.diversity()
    return Merits(
        aug=aug,
        spread=spread_of_means(means.numpy()),
        groups=len(rows),
        entropy=added.entropy / added.views,
        disagreement=Share(added.disputed, added.views),
        diversity=diversity,
        images=images,
    )


def rank(
    subject: Subject,
    augmentations: Iterable[str] = WITHOUT_STUDENT,
    epochs: int = 3,
    samples: int = 10_000,
    seed: int = 0,
    group: int = GROUP,
) -> list[Merits]:
    """Rank augmentations for a teacher, the best first.

    Parameters
    ----------
    subject : Subject
        The teacher and the images.
    augmentations : iterable of str
        Words of ``--aug``.
    epochs : int
        Of each plan.
    samples : int
        At most so many samples of each epoch.
    seed : int
        Of the views.
    group : int
        Samples of a group.

    Returns
    -------
    list of Merits

    Raises
    ------
    UsageError
        Where there is no such augmentation, or a student takes part in choosing its views.
    """
    augmentations = list(dict.fromkeys(augmentations))
    for aug in augmentations:
        if StudentConfig.load(aug=aug).augmentation.pick is not None:
            raise UsageError(problem("--aug", expected="an augmentation whose views no student picks", got=aug))
    plain: dict[str, Tally] = {}  # x is the same whatever is made of it

    def tally_of_x(aug: str) -> Tally:
        if aug not in plain:
            plain[aug] = _tally(subject, subject.views(aug, seed, group), 0, epochs, samples)
        return plain[aug]

    found = []
    for aug in augmentations:
        views = subject.views(aug, seed, group)
        if views.plan.slots:
            parts = [tally_of_x("standard"), _tally(subject, views, 1, epochs, samples)]
        else:
            parts = [tally_of_x(aug)]
        found.append(merits(aug, parts))
    return sorted(found, key=lambda one: one.spread.value if one.spread else math.inf)


def _tally(subject: Subject, views: ViewMaker, first: int, epochs: int, samples: int) -> Tally:
    group = len(views.steps[0])
    tracked = torch.from_numpy(views.table(0).order[: min(TRACKED, samples)])
    cached_teacher = subject.cached_teacher(views, epochs)
    # Of an epoch, whose last batch may be too small for a group.
    whole = sum(len(step) >= group and step.start < samples for step in views.steps)
    tally = Tally(views.plan.samples, subject.data.num_classes, tracked, whole * epochs)
    for batch in _some(views, epochs, samples):
        labels = batch.mixed_labels() if first else batch.labels
        whose = batch.samples.repeat(batch.slots if first else 1)
        number = batch.epoch * whole + batch.step if batch.step < whole else None
        tally.add(number, whose, labels, cached_teacher.logits(batch, first))
    return tally


def _some(views: ViewMaker, epochs: int, samples: int) -> Iterator[Batch]:
    """Make the first batches of each epoch, up to so many samples."""
    for epoch in range(epochs):
        for batch in views.epoch(epoch):
            if batch.positions.start >= samples:
                break
            yield batch
