"""Which augmentation suits a teacher: ranked by the teacher's predictions alone, without training a student.

The metric is that of Wang, Lohit, Jones and Fu, "What Makes a 'Good' Data Augmentation in Knowledge Distillation - A
Statistical Perspective" (2022, arXiv:2012.02909): the less the teacher's mean probability varies between groups of
views, the better the augmentation.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.analysis.estimates import Proportion
from kdcache.analysis.inputs import AnalysisInputs
from kdcache.analysis.teacher_std import TeacherStd, std_of_mean_probability
from kdcache.choices import AUGMENTATIONS, MIXES
from kdcache.config import StudentConfig
from kdcache.errors import UsageError, problem
from kdcache.losses import entropy
from kdcache.views import Batch, Views

__all__ = ["STUDENT_FREE", "AugmentationScore", "RunningStatistics", "rank_augmentations", "score_augmentation"]

STUDENT_FREE = (*(name for name, augmentation in AUGMENTATIONS.items() if augmentation.pick is None), *MIXES)
"""Augmentations whose views do not depend on a student; sums of mixes are not listed."""

GROUP_SIZE = 320
"""Samples per group: five batches of 64, as in the authors' code."""

TRACKED_SAMPLES = 2000
"""Samples whose predictions are compared between epochs: enough for a mean, few enough for the memory."""


class RunningStatistics:
    """Running statistics of the teacher's predictions for one kind of view.

    Parameters
    ----------
    samples, classes : int
        N and C.
    tracked : Tensor of int64, shape (K,)
        Samples whose predictions are compared between epochs.
    groups : int
        G, the number of complete groups to come.

    Attributes
    ----------
    sums : Tensor of float32, shape (G, C)
        Sum of the probabilities in each group.
    rows : Tensor of int64, shape (G,)
        Views in each group.
    disagreements, views : int
        Views whose label the teacher disagrees with, and all views.
    entropy : float
        Sum of the entropies of the predictions, in nats.
    """

    def __init__(self, samples: int, classes: int, tracked: Tensor, groups: int) -> None:
        self.sums, self.rows = torch.zeros(groups, classes), torch.zeros(groups, dtype=torch.int64)
        self.disagreements = self.views = 0
        self.entropy = 0.0
        self._slot = torch.full((samples,), -1)
        self._slot[tracked] = torch.arange(len(tracked))
        self._tracked_sums = torch.zeros(len(tracked), classes)
        self._tracked_entropies, self._tracked_views = torch.zeros(len(tracked)), torch.zeros(len(tracked))

    def add(self, group: int | None, samples: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Add the predictions for some views.

        Parameters
        ----------
        group : int or None
            Their group; ``None`` if they are too few for a complete one.
        samples, labels : Tensor of int64, shape (R,)
            Sample and label of each view.
        logits : Tensor, shape (R, C)
        """
        samples, labels, logits = samples.cpu(), labels.cpu(), logits.cpu()
        probabilities, entropies = logits.softmax(1), entropy(logits)
        if group is not None:
            self.sums[group] = probabilities.sum(0)
            self.rows[group] = len(logits)
        self.views += len(logits)
        self.disagreements += int((logits.argmax(1) != labels).sum())
        self.entropy += float(entropies.sum())
        slot = self._slot[samples]
        tracked = slot >= 0
        self._tracked_sums.index_add_(0, slot[tracked], probabilities[tracked])
        self._tracked_entropies.index_add_(0, slot[tracked], entropies[tracked])
        self._tracked_views.index_add_(0, slot[tracked], torch.ones(int(tracked.sum())))

    def diversity(self) -> tuple[float | None, int]:
        """Mean Jensen-Shannon divergence between the predictions for the views of one tracked image.

        Returns
        -------
        divergence : float or None
            Entropy of the mean prediction minus the mean entropy, in nats: 0 if all predictions are the same, at most
            the logarithm of their number.
        images : int
            Number of images with at least two views.
        """
        repeated = self._tracked_views >= 2
        views = self._tracked_views[repeated]
        if not len(views):
            return None, 0
        mean = self._tracked_sums[repeated] / views[:, None]
        entropy_of_mean = torch.special.entr(mean).sum(1)
        divergence = entropy_of_mean - self._tracked_entropies[repeated] / views
        return float(divergence.clamp(min=0).mean()), len(views)


@dataclass(frozen=True)
class AugmentationScore:
    """The score of an augmentation for a teacher.

    Attributes
    ----------
    aug : str
        With the options that are not the default.
    std : TeacherStd or None
        The metric, lower is better: over groups of the student's views, x and x'. ``None`` with too few groups.
    groups : int
    entropy : float
        Mean entropy of the predictions for the views that the augmentation adds (x', or x if there is none), in nats.
    disagreement : Proportion
        Of these views, those whose label the teacher disagrees with.
    diversity : float or None
        How much the predictions for one image differ between epochs, see `RunningStatistics.diversity`, in nats.
    images : int
        Number of images in the diversity.
    """

    aug: str
    std: TeacherStd | None
    groups: int
    entropy: float
    disagreement: Proportion
    diversity: float | None
    images: int

    def gap_to(self, best: "AugmentationScore") -> tuple[float, float] | None:
        """Difference of the metric from that of the best augmentation, and the standard error of the difference."""
        if self is best or self.std is None or best.std is None:
            return None
        error = self.std.error_of_difference(best.std)
        return None if error is None else (self.std.value - best.std.value, error)

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            "aug": self.aug,
            "teacher_std": self.std.value if self.std else None,
            "teacher_std_error": self.std.error if self.std else None,
            "groups": self.groups,
            "entropy_nats": self.entropy,
            "disagreement": self.disagreement.as_json(),
            "diversity_nats": self.diversity,
            "diversity_images": self.images,
        }


def score_augmentation(aug: str, parts: Sequence[RunningStatistics]) -> AugmentationScore:
    """Score an augmentation.

    Parameters
    ----------
    aug : str
    parts : sequence of RunningStatistics
        Of x, followed by those of x' if there is one.
    """
    rows = torch.stack([part.rows for part in parts]).sum(0)
    means = torch.stack([part.sums for part in parts]).sum(0) / rows[:, None]
    added = parts[-1]
    diversity, images = added.diversity()
    return AugmentationScore(
        aug=aug,
        std=std_of_mean_probability(means.numpy()),
        groups=len(rows),
        entropy=added.entropy / added.views,
        disagreement=Proportion(added.disagreements, added.views),
        diversity=diversity,
        images=images,
    )


def rank_augmentations(
    teacher: AnalysisInputs,
    augmentations: Iterable[str] = STUDENT_FREE,
    epochs: int = 3,
    samples: int = 10_000,
    seed: int = 0,
    group_size: int = GROUP_SIZE,
    augs: Any = None,
) -> list[AugmentationScore]:
    """Rank augmentations for a teacher, the best first.

    Parameters
    ----------
    teacher : AnalysisInputs
    augmentations : iterable of str
        Values of ``--aug``.
    epochs : int
    samples : int
        Maximum number of samples per epoch.
    seed : int
        View seed.
    group_size : int
        Samples per group.
    augs : dict or sequence of str, optional
        Options of the augmentations, as `StudentConfig` takes them; each counts in all `augmentations` that it is of.

    Returns
    -------
    list of AugmentationScore

    Raises
    ------
    UsageError
        If an augmentation is unknown, or its views depend on a student, or an option is of none of them.
    """
    configs = [StudentConfig.load(aug=aug) for aug in dict.fromkeys(augmentations)]
    for config in configs:
        if config.augmentation.pick is not None:
            raise UsageError(problem("--aug", expected="an augmentation whose views no student picks", got=config.aug))
    options = _options(configs, augs, StudentConfig.load(dataset=teacher.data.card.name).batch_size)
    of_x: dict[str, RunningStatistics] = {}  # all mixes share their x

    def statistics_of_x(aug: str) -> RunningStatistics:
        if aug not in of_x:
            of_x[aug] = _collect(teacher, teacher.views(aug, seed, group_size), 0, epochs, samples)
        return of_x[aug]

    scores = []
    for config in configs:
        own = {name: options[name] for name in config.augmentation.mixes if name in options}
        views = teacher.views(config.aug, seed, group_size, own)
        if views.plan.slots:
            parts = [statistics_of_x("standard"), _collect(teacher, views, 1, epochs, samples)]
        else:
            parts = [statistics_of_x(config.aug)]
        scores.append(score_augmentation(StudentConfig.load(aug=config.aug, augs=own).views, parts))
    return sorted(scores, key=lambda score: score.std.value if score.std else math.inf)


def _options(configs: Sequence[StudentConfig], given: Any, batch_size: int) -> dict[str, dict[str, Any]]:
    """Check options as those of one sum of all mixes, and return the options of each mix that has some.

    The mode of a mix states the size of its batches, on which the views depend.
    """
    mixes = dict.fromkeys(mix for config in configs for mix in config.augmentation.mixes)
    options = StudentConfig.load(aug="+".join(mixes) or "standard", augs=given).augs
    tables: dict[str, dict[str, Any]] = options.model_dump(exclude_none=True)
    for table in tables.values():
        if table.get("mode") == "batch":
            table["mode"] = f"batch{batch_size}"
    return tables


def _collect(teacher: AnalysisInputs, views: Views, first_slot: int, epochs: int, samples: int) -> RunningStatistics:
    """Collect the statistics of x (`first_slot` 0 of a plan without mixes) or of the mixed views (1)."""
    group_size = len(views.steps[0])
    tracked = torch.from_numpy(views.table(0).order[: min(TRACKED_SAMPLES, samples)])
    cached_teacher = teacher.cached_teacher(views, epochs)
    # The last batch of an epoch may be too small for a group.
    groups_per_epoch = sum(len(step) >= group_size and step.start < samples for step in views.steps)
    statistics = RunningStatistics(views.plan.samples, teacher.data.num_classes, tracked, groups_per_epoch * epochs)
    for batch in _batches(views, epochs, samples):
        labels = batch.mixed_labels() if first_slot else batch.labels
        owners = batch.samples.repeat(batch.slots if first_slot else 1)
        group = batch.epoch * groups_per_epoch + batch.step if batch.step < groups_per_epoch else None
        statistics.add(group, owners, labels, cached_teacher.logits(batch, first_slot))
    return statistics


def _batches(views: Views, epochs: int, samples: int) -> Iterator[Batch]:
    """Make the first batches of each epoch, up to a number of samples."""
    for epoch in range(epochs):
        for batch in views.epoch(epoch):
            if batch.positions.start >= samples:
                break
            yield batch
