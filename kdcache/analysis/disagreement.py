"""How often the teacher disputes the label that a mix gives (Section 4.3 and Figure 5)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.config import StudentConfig
from kdcache.errors import UsageError, fault
from kdcache.oracle import Oracle
from kdcache.record import FinishedRun
from kdcache.resolve import load_data, teacher_and_store
from kdcache.store.replay import Replay
from kdcache.views import Plan, ViewMaker

__all__ = ["PAPER_PERCENT", "Disagreement", "MixedSamples", "Share", "Study", "collect", "count", "study"]

PAPER_PERCENT = 52.1
"""What the paper counted: CutMix samples of ImageNet, with ResNet34 of torchvision."""

BINS = 10


@dataclass(frozen=True)
class Share:
    """How many of how many.

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
        """Wilson's score interval at 95 %, in percent; ``None`` of nothing."""
        if not self.of:
            return None
        z, n, share = 1.959963984540054, self.of, self.count / self.of
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)

    def as_json(self) -> dict[str, Any]:
        """Percent, interval and counts, as plain data."""
        return {"percent": self.percent, "interval_95": self.interval, "count": self.count, "of": self.of}


@dataclass(frozen=True)
class MixedSamples:
    """Mixed views and what the teacher says of them, S rows each.

    Attributes
    ----------
    views : Tensor, shape (S, 3, H, W)
        Pixel values 0 to 255.
    teacher : Tensor of float32, shape (S, C)
        Logits of the views.
    labels, partner_labels, mixed_labels : Tensor of int64, shape (S,)
        Class of the sample, of its partner, and the one that the mix gives the larger share, a tie going to the lower
        class.
    kept : Tensor of float32, shape (S,)
        lambda: the share of the label, and exact share of the area, that stays with the sample.
    """

    views: Tensor
    teacher: Tensor
    labels: Tensor
    partner_labels: Tensor
    mixed_labels: Tensor
    kept: Tensor

    @property
    def disputed(self) -> Tensor:
        """Rows on which argmax of the teacher is not argmax of the mixed label, shape (S,) bool."""
        return self.teacher.argmax(1) != self.mixed_labels


def collect(maker: ViewMaker, oracle: Oracle, samples: int) -> MixedSamples:
    """Make mixed views and ask the teacher about them.

    Parameters
    ----------
    maker : ViewMaker
        Of a plan with one mixed view of each sample; as many epochs of it are drawn as it takes.
    oracle : Oracle
        Is asked about the mixed views only, unless it knows their answers.
    samples : int
        S, how many views.

    Returns
    -------
    MixedSamples
        On the CPU.
    """
    parts: list[MixedSamples] = []
    found, epoch = 0, 0
    while found < samples:
        for batch in maker.epoch(epoch):
            mixed = batch.mixed_views()
            tensors = (
                mixed,
                oracle.ask(batch, first=1),
                batch.labels,
                batch.partner_labels,
                batch.mixed_labels(),
                batch.kept,
            )
            parts.append(MixedSamples(*(tensor[: samples - found].cpu() for tensor in tensors)))
            found += len(parts[-1].labels)
            if found == samples:
                break
        epoch += 1
    return MixedSamples(*(torch.cat(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Disagreement:
    """Label disagreement: overall, by kind of pair, and by lambda.

    Attributes
    ----------
    overall, same_class, two_classes : Share
        Of all samples, of those whose two images share a class, and of the others.
    by_lambda : tuple of (low, high, Share)
        Of the samples with low <= lambda < high (the last bin includes 1).
    """

    overall: Share
    same_class: Share
    two_classes: Share
    by_lambda: tuple[tuple[float, float, Share], ...]

    def as_json(self) -> dict[str, Any]:
        """All figures, as plain data."""
        return {
            "disagreement": self.overall.as_json(),
            "pairs_of_one_class": self.same_class.as_json(),
            "pairs_of_two_classes": self.two_classes.as_json(),
            "by_lambda": [{"from": low, "to": high, **share.as_json()} for low, high, share in self.by_lambda],
            "paper_percent": PAPER_PERCENT,
        }


def count(samples: MixedSamples) -> Disagreement:
    """Count the samples on which teacher and mix hold a different view of the label.

    Parameters
    ----------
    samples : MixedSamples

    Returns
    -------
    Disagreement
    """
    disputed, same = samples.disputed, samples.labels == samples.partner_labels
    place = (samples.kept * BINS).long().clamp(max=BINS - 1)

    def share(rows: Tensor) -> Share:
        return Share(int(disputed[rows].sum()), int(rows.sum()))

    return Disagreement(
        overall=Share(int(disputed.sum()), len(disputed)),
        same_class=share(same),
        two_classes=share(~same),
        by_lambda=tuple((bin_ / BINS, (bin_ + 1) / BINS, share(place == bin_)) for bin_ in range(BINS)),
    )


@dataclass(frozen=True)
class Study:
    """Label disagreement of a teacher on CutMix samples of its training set.

    Attributes
    ----------
    teacher : Path
        Run folder of the teacher.
    class_names : tuple of str
    samples : MixedSamples
    disagreement : Disagreement
    clean_error : Share
        The teacher's errors on the clean images: a teacher that is wrong there disagrees for that reason too.
    """

    teacher: Path
    class_names: tuple[str, ...]
    samples: MixedSamples
    disagreement: Disagreement
    clean_error: Share

    def as_json(self) -> dict[str, Any]:
        """All figures, as plain data."""
        return {
            "teacher": str(self.teacher),
            **self.disagreement.as_json(),
            "clean_error": self.clean_error.as_json(),
        }


def study(run: FinishedRun, samples: int = 10_000, seed: int = 0, device: str = "auto") -> Study:
    """Count label disagreement on CutMix samples of the training set, as the paper does.

    Parameters
    ----------
    run : FinishedRun
        A teacher, or a student, whose teacher is then meant.
    samples : int
        How many CutMix samples.
    seed : int
        Seed of the views.
    device : str
        Where to compute.

    Returns
    -------
    Study

    Raises
    ------
    UsageError
        Where the run is a student that had no teacher, or the teacher does not fit its data any more.
    """
    path = run.config.teacher if isinstance(run.config, StudentConfig) else run.path
    if path is None:
        raise UsageError(fault(f"run {run.path}", allowed="a teacher, or a student that had one"))
    data = load_data(run.config)
    teacher, store = teacher_and_store(FinishedRun(path), data, device=device)
    plan = Plan(len(data.train), data.image_size, data.card.padding, crop_flip=True, mixes=("cutmix",), seed=seed)
    views = ViewMaker(data.train, plan, 256, teacher.compute.device)
    replay = Replay(store, seed, plan.kinds)  # what students left is used, nothing is written
    oracle = Oracle(teacher, views, store=store, replay=replay)
    mixed = collect(views, oracle, samples)
    wrong = sum(
        int((logits.argmax(1) != data.train.labels[rows.start : rows.stop]).sum()) for rows, logits in oracle.clean()
    )
    return Study(path, data.class_names, mixed, count(mixed), Share(wrong, len(data.train)))
