"""Label disagreement of a teacher on mixed views (Section 4.3 and Figure 5), with the most confident examples."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.analysis.disagreement_counts import TOP_K, LabelDisagreement, MixedSamples, count_disagreement
from kdcache.analysis.estimates import Proportion
from kdcache.analysis.inputs import AnalysisInputs
from kdcache.views import Batch, Views

__all__ = ["DisagreementReport", "Example", "measure_disagreement"]

MAX_EXAMPLES = 12


@dataclass(frozen=True, eq=False)
class Example:
    """A mixed view whose label the teacher disagrees with.

    Attributes
    ----------
    view : Tensor of uint8, shape (3, H, W)
    label : tuple of (str, float)
        Class names and their weights in the mixed label, the largest first.
    teacher : tuple of (str, float)
        The teacher's top-5 classes and their probabilities.
    """

    view: Tensor
    label: tuple[tuple[str, float], ...]
    teacher: tuple[tuple[str, float], ...]

    @property
    def confidence(self) -> float:
        """The teacher's largest probability."""
        return self.teacher[0][1]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data, without the image."""
        return {"label": dict(self.label), "teacher": dict(self.teacher)}


@dataclass(frozen=True, eq=False)
class DisagreementReport:
    """Label disagreement of a teacher on mixed views of a dataset.

    Attributes
    ----------
    teacher, dataset, split : str
    aug : str
        With the options that are not the default.
    seed : int
        View seed.
    class_names : tuple of str
    counts : LabelDisagreement
    clean_error : Proportion
        The teacher's errors on the clean images that the samples are made of, which cause disagreement too.
    examples : tuple of Example
        Samples on which the teacher disagrees with the largest confidence, in descending order.
    """

    teacher: str
    dataset: str
    split: str
    aug: str
    seed: int
    class_names: tuple[str, ...]
    counts: LabelDisagreement
    clean_error: Proportion
    examples: tuple[Example, ...]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            **{name: getattr(self, name) for name in ("teacher", "dataset", "split", "aug", "seed")},
            **self.counts.as_json(self.class_names),
            "clean_error": self.clean_error.as_json(),
            "examples": [example.as_json() for example in self.examples],
        }


def measure_disagreement(
    teacher: AnalysisInputs, samples: int = 10_000, seed: int = 0, aug: str = "cutmix", augs: Any = None
) -> DisagreementReport:
    """Measure label disagreement on mixed views, as the paper does on CutMix samples of the training set.

    Views and logits are dropped after each batch; only a few numbers are kept per sample.

    Parameters
    ----------
    teacher : AnalysisInputs
    samples : int
        Number of mixed views, from as many epochs as needed.
    seed : int
        View seed.
    aug : str
        ``cutmix`` or ``mixup``.
    augs : dict or sequence of str, optional
        Its options, as `StudentConfig` takes them.

    Returns
    -------
    DisagreementReport

    Raises
    ------
    UsageError
        If an option is unknown or invalid, or of another augmentation.
    """
    views, names = teacher.views(aug, seed, augs=augs), teacher.data.class_names
    cached_teacher = teacher.cached_teacher(views, epochs=-(-samples // len(teacher.images)))
    used = torch.zeros(len(teacher.images), dtype=torch.bool)
    collected, done = MixedSamples.allocate(samples), 0
    examples: list[Example] = []
    for batch in _batches(views):
        own, partners = batch.samples.cpu(), _partners(views, batch)
        logits = cached_teacher.logits(batch, first=1)
        both_correct = teacher.clean.correct(own) & teacher.clean.correct(partners)
        part = MixedSamples.of(batch, logits, both_correct).head(samples - done)
        collected.write(done, part)
        done += len(part.labels)
        used[own[: len(part.labels)]] = used[partners[: len(part.labels)]] = True
        examples = _most_confident([*examples, *_examples(batch, logits, part, names)])
        if done == samples:
            break
    images = used.nonzero().flatten()
    wrong = int((~teacher.clean.correct(images)).sum())
    return DisagreementReport(
        teacher=teacher.name,
        dataset=teacher.data.card.name,
        split=teacher.split,
        aug=views.plan.mixes[0],
        seed=seed,
        class_names=names,
        counts=count_disagreement(collected, len(names)),
        clean_error=Proportion(wrong, len(images)),
        examples=tuple(examples),
    )


def _batches(views: Views) -> Iterator[Batch]:
    """Make the batches of all epochs, without end."""
    epoch = 0
    while True:
        yield from views.epoch(epoch)
        epoch += 1


def _partners(views: Views, batch: Batch) -> Tensor:
    """Find the sample that each sample of a batch is mixed with."""
    table = views.table(batch.epoch)
    positions = np.arange(batch.positions.start, batch.positions.stop)
    return torch.from_numpy(table.order[table.slots[0].partner[positions]])


def _examples(batch: Batch, logits: Tensor, samples: MixedSamples, names: tuple[str, ...]) -> Iterator[Example]:
    """Select the samples of a batch on which the teacher disagrees with the largest confidence."""
    probabilities = logits[: len(samples.labels)].softmax(1).cpu()
    confidence = probabilities.amax(1).where(samples.disagrees, -1.0)
    for row in confidence.topk(min(MAX_EXAMPLES, len(confidence))).indices.tolist():
        if not samples.disagrees[row]:
            return
        lam, label, partner = float(samples.lam[row]), int(samples.labels[row]), int(samples.partner_labels[row])
        weights = {label: lam, partner: 1 - lam} if label != partner else {label: 1.0}
        top = probabilities[row].topk(min(TOP_K, len(names)))
        yield Example(
            batch.mixed_views()[row].round().to(torch.uint8).cpu(),
            tuple(sorted(((names[one], weight) for one, weight in weights.items()), key=lambda item: -item[1])),
            tuple((names[one], value) for one, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)),
        )


def _most_confident(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: -example.confidence)[:MAX_EXAMPLES]
