"""How often the teacher disputes the label that a mix gives (Section 4.3 and Figure 5)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.datasets import Split
from kdcache.oracle import Oracle
from kdcache.views import Plan, ViewMaker

__all__ = ["PAPER_PERCENT", "Disagreement", "Share", "Study", "disagreement", "study"]

PAPER_PERCENT = 52.1
"""What the paper counted: CutMix samples of ImageNet, ResNet34 of torchvision."""

BINS = 10


@dataclass(frozen=True)
class Share:
    """How many of how many, with Wilson's 95 % interval.

    Attributes
    ----------
    count, of : int
    """

    count: int
    of: int

    @property
    def percent(self) -> float | None:
        """The share in percent; ``None`` of nothing."""
        return 100 * self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's score interval at 95 %, in percent."""
        if not self.of:
            return None
        z = 1.959963984540054
        share, n = self.count / self.of, self.of
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)

    def as_json(self) -> dict[str, Any]:
        """Percent, interval and counts."""
        return {"percent": self.percent, "interval_95": self.interval, "count": self.count, "of": self.of}


@dataclass(frozen=True)
class Study:
    """Mixed samples and what the teacher says of them; every array has S rows.

    Attributes
    ----------
    teacher : Tensor of float32, shape (S, C)
        Logits of x'.
    labels, partner_labels, mixed_labels : Tensor of int64, shape (S,)
        The class of the sample, of its partner, and the one to which the mix gives the larger share (a tie goes to the
        lower class).
    kept : Tensor of float32, shape (S,)
        Share of the label that stays with the sample: the exact share of its area.
    epochs, positions : Tensor of int64, shape (S,)
        Where the views stand in the plan, to make them again.
    """

    teacher: Tensor
    labels: Tensor
    partner_labels: Tensor
    mixed_labels: Tensor
    kept: Tensor
    epochs: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Disagreement:
    """The outcome of a study.

    Attributes
    ----------
    overall : Share
        Samples on which argmax of the teacher is not argmax of the mixed label.
    same_class, two_classes : Share
        The same, of the pairs of one class, and of the pairs of two.
    by_kept : list of (low, high, Share)
        The same, by the share of the label that the larger part has, from 1/2 to 1.
    """

    overall: Share
    same_class: Share
    two_classes: Share
    by_kept: list[tuple[float, float, Share]]

    def as_json(self) -> dict[str, Any]:
        """All figures, as plain data."""
        return {
            "disagreement": self.overall.as_json(),
            "pairs_of_one_class": self.same_class.as_json(),
            "pairs_of_two_classes": self.two_classes.as_json(),
            "by_lambda": [{"from": low, "to": high, **share.as_json()} for low, high, share in self.by_kept],
            "paper_percent": PAPER_PERCENT,
        }


def disagreement(study: Study) -> Disagreement:
    """Count the samples on which teacher and mix hold a different view of the label.

    Parameters
    ----------
    study : Study

    Returns
    -------
    Disagreement
    """
    disputed = study.teacher.argmax(1) != study.mixed_labels
    same = study.labels == study.partner_labels

    def share(rows: Tensor) -> Share:
        return Share(int(disputed[rows].sum()), int(rows.sum()))

    place = (study.kept * BINS).long().clamp(max=BINS - 1)
    return Disagreement(
        overall=share(torch.ones_like(same)),
        same_class=share(same),
        two_classes=share(~same),
        by_kept=[(bin_ / BINS, (bin_ + 1) / BINS, share(place == bin_)) for bin_ in range(BINS)],
    )
