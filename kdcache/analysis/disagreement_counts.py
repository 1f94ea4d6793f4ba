"""On how many mixed views the teacher disagrees with the mixed label, and where that comes from."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kdcache.analysis.estimates import Proportion
from kdcache.views import Batch

__all__ = ["LabelDisagreement", "MixedSamples", "count_disagreement"]

PAPER_PERCENT = 52.1
"""The paper's figure: CutMix samples of ImageNet, torchvision's ResNet34 (Section 4.3)."""

LAMBDA_BINS = 10

TOP_K = 5


@dataclass(frozen=True)
class MixedSamples:
    """S mixed views and the teacher's predictions, on the CPU.

    Attributes
    ----------
    labels, partner_labels, mixed_labels : Tensor of int64, shape (S,)
        Class of the sample, class of its partner, and argmax of the mixed label; the lower class wins a tie.
    lam : Tensor of float32, shape (S,)
        lambda: weight of the sample in the mixed label, which is its exact share of the area.
    predictions : Tensor of int64, shape (S,)
        The teacher's class for the mixed view.
    in_top5 : Tensor of bool, shape (S,)
        Whether the mixed label is among the teacher's top-5 classes.
    both_correct : Tensor of bool, shape (S,)
        Whether the teacher classifies both clean images correctly.
    """

    labels: Tensor
    partner_labels: Tensor
    mixed_labels: Tensor
    lam: Tensor
    predictions: Tensor
    in_top5: Tensor
    both_correct: Tensor

    @classmethod
    def of(cls, batch: Batch, logits: Tensor, both_correct: Tensor) -> "MixedSamples":
        """Collect a batch with one mixed view per sample, and the teacher's logits (B, C) for these views."""
        mixed_labels = batch.mixed_labels()
        top = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
        in_top5 = (top == mixed_labels[:, None]).any(1)
        columns = (batch.labels, batch.partner_labels, mixed_labels, batch.lam, logits.argmax(1), in_top5, both_correct)
        return cls(*(column.cpu() for column in columns))

    @classmethod
    def allocate(cls, samples: int) -> "MixedSamples":
        """Allocate a block for all samples: many small ones would fragment the memory."""
        dtypes = (*[torch.int64] * 3, torch.float32, torch.int64, torch.bool, torch.bool)
        return cls(*(torch.empty(samples, dtype=dtype) for dtype in dtypes))

    def head(self, samples: int) -> "MixedSamples":
        """Take the first samples."""
        return MixedSamples(*(getattr(self, column.name)[:samples] for column in fields(self)))

    def write(self, start: int, part: "MixedSamples") -> None:
        """Overwrite the rows from `start` on."""
        for column in fields(self):
            getattr(self, column.name)[start : start + len(part.labels)] = getattr(part, column.name)

    @property
    def disagrees(self) -> Tensor:
        """Whether the teacher's class differs from the argmax of the mixed label, bool (S,)."""
        return self.predictions != self.mixed_labels

    @property
    def predicts_one_of_two(self) -> Tensor:
        """Whether the teacher's class is that of one of the two images, bool (S,)."""
        return (self.predictions == self.labels) | (self.predictions == self.partner_labels)


@dataclass(frozen=True)
class LabelDisagreement:
    """Label disagreement: proportions of mixed views on which the teacher's class is not the argmax of the mixed label.

    Attributes
    ----------
    overall : Proportion
        Disagreement on all samples.
    same_class, different_classes : Proportion
        Disagreement on pairs of images of one class, and of two classes.
    despite_both_images_correct : Proportion
        Disagreement although the teacher classifies both clean images correctly, among all samples.
    given_both_images_correct : Proportion
        The same, among the samples whose clean images are both classified correctly.
    one_of_two, one_of_two_given_disagreement : Proportion
        The teacher's class is that of one of the two images; among all samples, and where the teacher disagrees.
    in_top5, in_top5_given_disagreement : Proportion
        The mixed label is among the teacher's top-5 classes; among all samples, and where the teacher disagrees.
    by_lambda : tuple of (low, high, Proportion)
        Disagreement on samples with low <= lambda < high; the last bin includes 1.
    by_class : tuple of Proportion
        Disagreement on samples with each mixed label.
    """

    overall: Proportion
    same_class: Proportion
    different_classes: Proportion
    despite_both_images_correct: Proportion
    given_both_images_correct: Proportion
    one_of_two: Proportion
    one_of_two_given_disagreement: Proportion
    in_top5: Proportion
    in_top5_given_disagreement: Proportion
    by_lambda: tuple[tuple[float, float, Proportion], ...]
    by_class: tuple[Proportion, ...]

    def as_json(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Convert to plain data."""
        by_class = zip(class_names, self.by_class, strict=True)
        return {
            "disagreement": self.overall.as_json(),
            "same_class": self.same_class.as_json(),
            "different_classes": self.different_classes.as_json(),
            "despite_both_images_correct": self.despite_both_images_correct.as_json(),
            "given_both_images_correct": self.given_both_images_correct.as_json(),
            "predicts_one_of_the_two": self.one_of_two.as_json(),
            "predicts_one_of_the_two_given_disagreement": self.one_of_two_given_disagreement.as_json(),
            "label_in_top5": self.in_top5.as_json(),
            "label_in_top5_given_disagreement": self.in_top5_given_disagreement.as_json(),
            "by_lambda": [{"from": low, "to": high, **found.as_json()} for low, high, found in self.by_lambda],
            "by_class": {name: found.as_json() for name, found in by_class if found.total},
            "paper_percent": PAPER_PERCENT,
        }


def count_disagreement(samples: MixedSamples, classes: int) -> LabelDisagreement:
    """Count the samples on which the teacher disagrees with the mixed label.

    Parameters
    ----------
    samples : MixedSamples
    classes : int
        Number of classes.

    Returns
    -------
    LabelDisagreement
    """
    disagrees, same_class = samples.disagrees, samples.labels == samples.partner_labels
    everywhere = torch.ones_like(disagrees)
    bins = (samples.lam * LAMBDA_BINS).long().clamp(max=LAMBDA_BINS - 1)

    def proportion(true: Tensor, among: Tensor) -> Proportion:
        return Proportion(int(true[among].sum()), int(among.sum()))

    def disagreement_by(groups: Tensor, number: int) -> list[Proportion]:
        totals, counts = groups.bincount(minlength=number), groups[disagrees].bincount(minlength=number)
        return [Proportion(count, total) for count, total in zip(counts.tolist(), totals.tolist(), strict=True)]

    by_lambda = enumerate(disagreement_by(bins, LAMBDA_BINS))
    return LabelDisagreement(
        overall=proportion(disagrees, everywhere),
        same_class=proportion(disagrees, same_class),
        different_classes=proportion(disagrees, ~same_class),
        despite_both_images_correct=proportion(disagrees & samples.both_correct, everywhere),
        given_both_images_correct=proportion(disagrees, samples.both_correct),
        one_of_two=proportion(samples.predicts_one_of_two, everywhere),
        one_of_two_given_disagreement=proportion(samples.predicts_one_of_two, disagrees),
        in_top5=proportion(samples.in_top5, everywhere),
        in_top5_given_disagreement=proportion(samples.in_top5, disagrees),
        by_lambda=tuple((bin / LAMBDA_BINS, (bin + 1) / LAMBDA_BINS, found) for bin, found in by_lambda),
        by_class=tuple(disagreement_by(samples.mixed_labels, classes)),
    )
