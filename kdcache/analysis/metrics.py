"""Figures from predictions: accuracy by class, confused classes, calibration, and agreement with a teacher."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcache.analysis.estimates import Proportion
from kdcache.losses.logits import kl_divergence, log_softmax

__all__ = [
    "CALIBRATION_BINS",
    "Agreement",
    "Calibration",
    "CalibrationBin",
    "ClassPair",
    "Mistake",
    "Predictions",
    "Quality",
    "count_pairs",
    "find_mistakes",
    "measure_agreement",
    "measure_calibration",
    "measure_quality",
]

CALIBRATION_BINS = 15
"""Bins of equal width in which confidence is compared with accuracy, as in Guo et al. (2017)."""

TOP_K = 5

MAX_MISTAKES = 12


class Predictions(NamedTuple):
    """What a network says about N images.

    Attributes
    ----------
    classes : Tensor of int64, shape (N,)
        The most probable class.
    confidence : Tensor of float32, shape (N,)
        Its probability.
    in_top5 : Tensor of bool, shape (N,)
        Whether the label is among the five most probable classes.
    losses : Tensor of float32, shape (N,)
        Cross-entropy with the label, in nats.
    divergence : Tensor of float32, shape (N,)
        Kullback-Leibler divergence from the teacher's probabilities at temperature 1, in nats; NaN without a teacher.
    """

    classes: Tensor
    confidence: Tensor
    in_top5: Tensor
    losses: Tensor
    divergence: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> "Predictions":
        """Summarize logits (N, C), and those of a teacher, on any device; the result is on the CPU."""
        labels = labels.to(logits.device)
        log_probabilities = log_softmax(logits)
        top = logits.float().topk(min(TOP_K, logits.shape[1]), dim=1).indices
        best, known = (log_probabilities.gather(1, chosen[:, None])[:, 0] for chosen in (top[:, 0], labels))
        divergence = torch.full_like(best, torch.nan)
        if teacher is not None:
            divergence = kl_divergence(logits, teacher.to(logits.device), 1.0)
        parts = (top[:, 0], best.exp(), (top == labels[:, None]).any(1), -known, divergence)
        return cls(*(part.cpu() for part in parts))

    def said(self, place: int) -> "Said":
        """What the network says about one image."""
        return Said(int(self.classes[place]), float(self.confidence[place]))


class ClassPair(NamedTuple):
    """Two classes by label, and the number of images that have the first by one account and the second by another."""

    first: int
    second: int
    images: int


class Said(NamedTuple):
    """The class that a network predicts for an image, by label, and its probability."""

    predicted: int
    confidence: float


class Mistake(NamedTuple):
    """An image that a network takes for another class.

    Attributes
    ----------
    place : int
        Of the image among those of the predictions.
    label : int
    loss : float
        Cross-entropy with the label, in nats.
    said : Said
    teacher : Said or None
        What the teacher says, if there is one.
    """

    place: int
    label: int
    loss: float
    said: Said
    teacher: Said | None


class CalibrationBin(NamedTuple):
    """The images whose confidence is above `low` and at most `high`.

    Attributes
    ----------
    low, high : float
    images : int
    confidence, accuracy : float or None
        Means over these images, as shares; ``None`` without images.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


class Calibration(NamedTuple):
    """How well the probability of the predicted class, the confidence, tells how often the prediction is correct.

    Attributes
    ----------
    error : float
        Expected calibration error (ECE) in percent: the mean over the images of the difference, in their bin, between
        mean confidence and accuracy.
    bins : tuple of CalibrationBin
    """

    error: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class Quality:
    """How good the predictions of a network are.

    Attributes
    ----------
    top1, top5 : Proportion
    mean_over_classes : float
        Mean of the accuracies of the classes that have images, in percent.
    loss : float
        Mean cross-entropy, in nats.
    by_class : tuple of Proportion
        Accuracy on the images of each class.
    confusion : tuple of ClassPair
        The label and the predicted class, the most frequent pair first; correct predictions are pairs too.
    calibration : Calibration
    """

    top1: Proportion
    top5: Proportion
    mean_over_classes: float
    loss: float
    by_class: tuple[Proportion, ...]
    confusion: tuple[ClassPair, ...]
    calibration: Calibration

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            "top1": self.top1.as_json(),
            "top5": self.top5.as_json(),
            "mean_over_classes_percent": self.mean_over_classes,
            "cross_entropy_nats": self.loss,
            "by_class": [accuracy.as_json() for accuracy in self.by_class],
            "confusion": [list(pair) for pair in self.confusion],
            "calibration": {
                "ece_percent": self.calibration.error,
                "bins": [bin._asdict() for bin in self.calibration.bins],
            },
        }


@dataclass(frozen=True)
class Agreement:
    """A student beside its teacher, on the same images.

    Attributes
    ----------
    same : Proportion
        Both predict the same class.
    divergence : float
        Mean Kullback-Leibler divergence of the student's probabilities from the teacher's at temperature 1, in nats.
    teacher_alone_correct, student_alone_correct, both_wrong : Proportion
        What they disagree on, among all images.
    pairs : tuple of ClassPair
        The teacher's class and the student's where they differ, the most frequent pair first.
    """

    same: Proportion
    divergence: float
    teacher_alone_correct: Proportion
    student_alone_correct: Proportion
    both_wrong: Proportion
    pairs: tuple[ClassPair, ...]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            "same_class": self.same.as_json(),
            "mean_kl_nats": self.divergence,
            "teacher_alone_correct": self.teacher_alone_correct.as_json(),
            "student_alone_correct": self.student_alone_correct.as_json(),
            "both_wrong": self.both_wrong.as_json(),
            "disagreements": [list(pair) for pair in self.pairs],
        }


def measure_quality(predictions: Predictions, labels: Tensor, num_classes: int) -> Quality:
    """Compare predictions with the labels (N,), of which there is at least one."""
    correct = predictions.classes == labels
    by_class = accuracy_by_class(labels, correct, num_classes)
    return Quality(
        _share(correct),
        _share(predictions.in_top5),
        fmean(accuracy.percent for accuracy in by_class if accuracy.percent is not None),
        float(predictions.losses.double().mean()),
        by_class,
        count_pairs(labels, predictions.classes, num_classes),
        measure_calibration(predictions.confidence, correct),
    )


def measure_agreement(teacher: Predictions, student: Predictions, labels: Tensor, num_classes: int) -> Agreement:
    """Compare a student with its teacher."""
    differ = teacher.classes != student.classes
    by_teacher, by_student = (differ & (each.classes == labels) for each in (teacher, student))
    return Agreement(
        _share(~differ),
        float(student.divergence.double().mean()),
        _share(by_teacher),
        _share(by_student),
        _share(differ & ~by_teacher & ~by_student),
        count_pairs(teacher.classes[differ], student.classes[differ], num_classes),
    )


def find_mistakes(
    predictions: Predictions, labels: Tensor, teacher: Predictions | None, limit: int = MAX_MISTAKES
) -> tuple[Mistake, ...]:
    """Find the images of another class than predicted, those with the largest loss first."""
    order = predictions.losses.argsort(descending=True, stable=True)
    wrong = order[(predictions.classes != labels)[order]][:limit].tolist()

    def mistake(place: int) -> Mistake:
        loss, said = float(predictions.losses[place]), predictions.said(place)
        return Mistake(place, int(labels[place]), loss, said, teacher and teacher.said(place))

    return tuple(map(mistake, wrong))


def accuracy_by_class(labels: Tensor, correct: Tensor, num_classes: int) -> tuple[Proportion, ...]:
    """Accuracy on the images of each class."""
    counts, totals = (torch.bincount(part, minlength=num_classes).tolist() for part in (labels[correct], labels))
    return tuple(map(Proportion, counts, totals))


def count_pairs(first: Tensor, second: Tensor, num_classes: int) -> tuple[ClassPair, ...]:
    """Count the pairs of classes in two tensors of labels (N,), the most frequent first, and then by label."""
    codes, counts = torch.unique(first * num_classes + second, return_counts=True)
    columns = (codes // num_classes, codes % num_classes, counts)
    pairs = map(ClassPair, *(column.tolist() for column in columns))
    return tuple(sorted(pairs, key=lambda pair: (-pair.images, pair)))


def measure_calibration(confidence: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> Calibration:
    """Compare the confidence (N,) in predictions with whether they are correct (N,), in bins of equal width."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    places = torch.bucketize(confidence.double(), edges[1:-1])
    counts = torch.bincount(places, minlength=bins)
    sums = [torch.bincount(places, weights=values.double(), minlength=bins) for values in (confidence, correct)]
    error = 100 * float((sums[0] - sums[1]).abs().sum()) / len(confidence)
    means = [(part / counts).tolist() for part in sums]  # NaN for an empty bin
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), *means, strict=True)
    return Calibration(error, tuple(_calibration_bin(*row) for row in rows))


def _calibration_bin(low: float, high: float, images: int, confidence: float, accuracy: float) -> CalibrationBin:
    return CalibrationBin(low, high, images, *((confidence, accuracy) if images else (None, None)))


def _share(chosen: Tensor) -> Proportion:
    return Proportion(int(chosen.sum()), len(chosen))
