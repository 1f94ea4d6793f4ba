"""How often the teacher disputes the label that a mix gives (Section 4.3 and Figure 5)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.analysis.subject import Subject
from kdcache.views import Batch, ViewMaker

__all__ = ["PAPER_PERCENT", "Disagreement", "Example", "MixedSamples", "Share", "Study", "count", "study"]

PAPER_PERCENT = 52.1
"""What the paper counted: CutMix samples of ImageNet, with ResNet34 of torchvision."""

BINS = 10

TOP = 5

SHOWN = 12
"""Examples that are kept to be shown: those of which the teacher is surest."""


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
    """Mixed views and what the teacher says of them, S rows each, on the CPU.

    Attributes
    ----------
    labels, partner_labels, mixed_labels : Tensor of int64, shape (S,)
        Class of the sample, of its partner, and the one that the mix gives the larger share, a tie going to the lower
        class.
    lam : Tensor of float32, shape (S,)
        lambda: the share of the label, and exact share of the area, that stays with the sample.
    answers : Tensor of int64, shape (S,)
        The teacher's class.
    in_top5 : Tensor of bool, shape (S,)
        Whether the mixed label is among the five classes that the teacher finds likeliest.
    right : Tensor of bool, shape (S,)
        Whether the teacher is right on both images when it sees them clean.
    """

    labels: Tensor
    partner_labels: Tensor
    mixed_labels: Tensor
    lam: Tensor
    answers: Tensor
    in_top5: Tensor
    right: Tensor

    @classmethod
    def of(cls, batch: Batch, logits: Tensor, right: Tensor) -> "MixedSamples":
        """Gather the figures of a batch with one mixed view of each sample, and the answers (B, C) to these."""
        mixed_labels = batch.mixed_labels()
        top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        in_top5 = (top == mixed_labels[:, None]).any(1)
        columns = (batch.labels, batch.partner_labels, mixed_labels, batch.lam, logits.argmax(1), in_top5, right)
        return cls(*(column.cpu() for column in columns))

    @classmethod
    def empty(cls, samples: int) -> "MixedSamples":
        """Make room for so many samples, in one block each: many small ones would leave the memory in pieces."""
        dtypes = (*[torch.int64] * 3, torch.float32, torch.int64, torch.bool, torch.bool)
        return cls(*(torch.empty(samples, dtype=dtype) for dtype in dtypes))

    def first(self, samples: int) -> "MixedSamples":
        """Take the first samples, at most so many."""
        return MixedSamples(*(getattr(self, one.name)[:samples] for one in fields(self)))

    def put(self, start: int, part: "MixedSamples") -> None:
        """Put samples in, from a row on."""
        for one in fields(self):
            getattr(self, one.name)[start : start + len(part.labels)] = getattr(part, one.name)

    @property
    def disputed(self) -> Tensor:
        """Rows on which argmax of the teacher is not argmax of the mixed label, shape (S,) bool."""
        return self.answers != self.mixed_labels

    @property
    def one_of_two(self) -> Tensor:
        """Rows on which the teacher's class is that of one of the two images, shape (S,) bool."""
        return (self.answers == self.labels) | (self.answers == self.partner_labels)


@dataclass(frozen=True)
class Disagreement:
    """Label disagreement: overall, and in parts that say where it comes from.

    Attributes
    ----------
    overall, same_class, two_classes : Share
        Disputed labels of all samples, of those whose two images share a class, and of the others.
    although_right : Share
        Samples that are disputed although the teacher is right on both images, of all.
    where_right : Share
        The same, of the samples on both of whose images it is right.
    one_of_two, disputed_one_of_two : Share
        Samples of which the teacher gives the class of one of the two images; of all, and of the disputed ones.
    in_top5, disputed_in_top5 : Share
        Samples whose mixed label is among the teacher's five likeliest classes; of all, and of the disputed ones.
    by_lambda : tuple of (low, high, Share)
        Of the samples with low <= lambda < high (the last bin includes 1).
    by_class : tuple of Share
        Of the samples whose mixed label is each class.
    """

    overall: Share
    same_class: Share
    two_classes: Share
    although_right: Share
    where_right: Share
    one_of_two: Share
    disputed_one_of_two: Share
    in_top5: Share
    disputed_in_top5: Share
    by_lambda: tuple[tuple[float, float, Share], ...]
    by_class: tuple[Share, ...]

    def as_json(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """All figures, as plain data."""
        by_class = {name: share.as_json() for name, share in zip(class_names, self.by_class, strict=True) if share.of}
        return {
            "disagreement": self.overall.as_json(),
            "pairs_of_one_class": self.same_class.as_json(),
            "pairs_of_two_classes": self.two_classes.as_json(),
            "although_right_on_both_images": self.although_right.as_json(),
            "where_right_on_both_images": self.where_right.as_json(),
            "answer_is_one_of_the_two": self.one_of_two.as_json(),
            "answer_is_one_of_the_two_where_disputed": self.disputed_one_of_two.as_json(),
            "label_in_top5": self.in_top5.as_json(),
            "label_in_top5_where_disputed": self.disputed_in_top5.as_json(),
            "by_lambda": [{"from": low, "to": high, **share.as_json()} for low, high, share in self.by_lambda],
            "by_class": by_class,
            "paper_percent": PAPER_PERCENT,
        }


def count(samples: MixedSamples, classes: int) -> Disagreement:
    """Count the samples on which teacher and mix hold a different view of the label.

    Parameters
    ----------
    samples : MixedSamples
    classes : int
        How many classes there are.

    Returns
    -------
    Disagreement
    """
    disputed, same = samples.disputed, samples.labels == samples.partner_labels
    everything = torch.ones_like(disputed)
    place = (samples.lam * BINS).long().clamp(max=BINS - 1)

    def share(found: Tensor, rows: Tensor) -> Share:
        return Share(int(found[rows].sum()), int(rows.sum()))

    def shares(groups: Tensor, number: int) -> tuple[Share, ...]:
        """Count the disputed samples of each group in one pass, however many groups there are."""
        of, found = groups.bincount(minlength=number), groups[disputed].bincount(minlength=number)
        return tuple(Share(*both) for both in zip(found.tolist(), of.tolist(), strict=True))

    return Disagreement(
        overall=share(disputed, everything),
        same_class=share(disputed, same),
        two_classes=share(disputed, ~same),
        although_right=share(disputed & samples.right, everything),
        where_right=share(disputed, samples.right),
        one_of_two=share(samples.one_of_two, everything),
        disputed_one_of_two=share(samples.one_of_two, disputed),
        in_top5=share(samples.in_top5, everything),
        disputed_in_top5=share(samples.in_top5, disputed),
        by_lambda=tuple((at / BINS, (at + 1) / BINS, one) for at, one in enumerate(shares(place, BINS))),
        by_class=shares(samples.mixed_labels, classes),
    )


@dataclass(frozen=True, eq=False)
class Example:
    """A mixed image whose label the teacher disputes.

    Attributes
    ----------
    view : Tensor of uint8, shape (3, H, W)
    label : tuple of (str, float)
        Class names and their shares of the mixed label, the largest first.
    teacher : tuple of (str, float)
        The five likeliest classes and their probabilities.
    """

    view: Tensor
    label: tuple[tuple[str, float], ...]
    teacher: tuple[tuple[str, float], ...]

    def as_json(self) -> dict[str, Any]:
        """All but the picture, as plain data."""
        return {"label": dict(self.label), "teacher": dict(self.teacher)}


@dataclass(frozen=True, eq=False)
class Study:
    """Label disagreement of a teacher on mixed views of some images.

    Attributes
    ----------
    teacher, dataset, split, aug : str
    seed : int
        Of the views.
    class_names : tuple of str
    disagreement : Disagreement
    clean_error : Share
        The teacher's errors on the clean images that the samples are made of: where it is wrong, it disagrees for that
        reason too.
    examples : tuple of Example
        The disputed samples of which the teacher is surest, the surest first.
    """

    teacher: str
    dataset: str
    split: str
    aug: str
    seed: int
    class_names: tuple[str, ...]
    disagreement: Disagreement
    clean_error: Share
    examples: tuple[Example, ...]

    def as_json(self) -> dict[str, Any]:
        """All figures, as plain data."""
        return {
            **{name: getattr(self, name) for name in ("teacher", "dataset", "split", "aug", "seed")},
            **self.disagreement.as_json(self.class_names),
            "clean_error": self.clean_error.as_json(),
            "examples": [example.as_json() for example in self.examples],
        }


def study(subject: Subject, samples: int = 10_000, seed: int = 0, aug: str = "cutmix") -> Study:
    """Count label disagreement on mixed views, as the paper does for CutMix samples of the training set.

    Views and answers are dropped batch by batch; what is kept of a sample is a few numbers.

    Parameters
    ----------
    subject : Subject
        The teacher and the images.
    samples : int
        How many mixed views; as many epochs are drawn as it takes.
    seed : int
        Seed of the views.
    aug : str
        ``cutmix`` or ``mixup``.

    Returns
    -------
    Study
    """
    views, names = subject.views(aug, seed), subject.data.class_names
    cached_teacher = subject.cached_teacher(views, epochs=-(-samples // len(subject.images)))
    seen = torch.zeros(len(subject.images), dtype=torch.bool)
    found, done = MixedSamples.empty(samples), 0
    examples: list[Example] = []
    for batch in _batches(views):
        own, partners = batch.samples.cpu(), _partners(views, batch)
        logits = cached_teacher.logits(batch, first=1)
        right = subject.clean.right(own) & subject.clean.right(partners)
        part = MixedSamples.of(batch, logits, right).first(samples - done)
        found.put(done, part)
        done += len(part.labels)
        seen[own[: len(part.labels)]] = seen[partners[: len(part.labels)]] = True
        examples = _surest([*examples, *_examples(batch, logits, part, names)])
        if done == samples:
            break
    images = seen.nonzero().flatten()
    wrong = int((~subject.clean.right(images)).sum())
    figures, error = count(found, len(names)), Share(wrong, len(images))
    card = subject.data.card.name
    return Study(subject.name, card, subject.split, aug, seed, names, figures, error, tuple(examples))


def _batches(views: ViewMaker) -> Iterator[Batch]:
    """Make the batches of one epoch after the other, without end."""
    epoch = 0
    while True:
        yield from views.epoch(epoch)
        epoch += 1


def _partners(views: ViewMaker, batch: Batch) -> Tensor:
    """Find the sample that each sample of a batch is mixed with."""
    table = views.table(batch.epoch)
    positions = np.arange(batch.positions.start, batch.positions.stop)
    return torch.from_numpy(table.order[table.slots[0].partner[positions]])


def _examples(batch: Batch, logits: Tensor, samples: MixedSamples, names: tuple[str, ...]) -> Iterator[Example]:
    """Keep the disputed samples of a batch of which the teacher is surest."""
    probabilities = logits[: len(samples.labels)].softmax(1).cpu()
    sure = probabilities.amax(1).where(samples.disputed, -1.0)
    for row in sure.topk(min(SHOWN, len(sure))).indices.tolist():
        if not samples.disputed[row]:
            return
        lam, label = float(samples.lam[row]), int(samples.labels[row])
        partner = int(samples.partner_labels[row])
        shares = {label: lam, partner: 1 - lam} if label != partner else {label: 1.0}
        top = probabilities[row].topk(min(TOP, len(names)))
        yield Example(
            batch.mixed_views()[row].round().to(torch.uint8).cpu(),
            tuple(sorted(((names[one], share) for one, share in shares.items()), key=lambda item: -item[1])),
            tuple((names[one], share) for one, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)),
        )


def _surest(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: -example.teacher[0][1])[:SHOWN]
