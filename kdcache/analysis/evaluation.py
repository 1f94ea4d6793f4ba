"""Networks evaluated side by side: each picture is decoded once, and goes through all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.analysis.cost import Cost, measure_cost
from kdcache.analysis.evaluation_inputs import EvaluationInputs, LoadedNetwork
from kdcache.analysis.metrics import (
    Agreement,
    Mistake,
    Predictions,
    Quality,
    find_mistakes,
    measure_agreement,
    measure_quality,
)
from kdcache.cards import Rendering
from kdcache.datasets import Split
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import KdcacheError, UsageError, problem

__all__ = ["Evaluation", "EvaluationReport", "evaluate_networks"]

BATCH_SIZE = 250
"""Images in a forward, as in the evaluation after an epoch: in forwards of other sizes, logits round in another way."""

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network can do, and what it costs.

    Attributes
    ----------
    name : str
        Run folder or file.
    file : Path
    epoch : int or None
    model : str
    image_size : int
    quality : Quality
    cost : Cost
    teacher : str or None
        Name of the teacher, if it was evaluated too.
    agreement : Agreement or None
        With the teacher.
    mistakes : tuple of Mistake
        The worst ones; their `place` is that in the split.
    views : Tensor of uint8, shape (M, 3, S, S)
        The image of each mistake.
    pictures : tuple of str or None
        The file of each, if they are files.
    """

    name: str
    file: Path
    epoch: int | None
    model: str
    image_size: int
    quality: Quality
    cost: Cost
    teacher: str | None
    agreement: Agreement | None
    mistakes: tuple[Mistake, ...]
    views: Tensor
    pictures: tuple[str | None, ...]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            "name": self.name,
            "file": str(self.file),
            "epoch": self.epoch,
            "model": self.model,
            "image_size": self.image_size,
            **self.quality.as_json(),
            "agreement": self.agreement and {"teacher": self.teacher, **self.agreement.as_json()},
            **self.cost.as_json(),
            "worst_mistakes": [
                {"image": one.place, "picture": picture, "label": one.label, "cross_entropy_nats": one.loss}
                | {"said": one.said, "teacher_said": one.teacher}
                for one, picture in zip(self.mistakes, self.pictures, strict=True)
            ],
        }


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """Networks evaluated on the same images.

    Attributes
    ----------
    dataset, split : str
    images : int
    class_names : tuple of str
    device : str
    threads : int
        Of torch, on the CPU.
    evaluations : tuple of Evaluation
    problems : tuple of str
        Messages about networks that are left out.
    """

    dataset: str
    split: str
    images: int
    class_names: tuple[str, ...]
    device: str
    threads: int
    evaluations: tuple[Evaluation, ...]
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data; classes are numbers, which count the class names from 0."""
        own = ("dataset", "split", "images", "class_names", "device", "threads")
        return {
            **{name: getattr(self, name) for name in own},
            "networks": [evaluation.as_json() for evaluation in self.evaluations],
        }


def evaluate_networks(inputs: EvaluationInputs, progress: ProgressCallback | None = None) -> EvaluationReport:
    """Evaluate networks on the labeled images of a split, and measure their size and speed.

    Parameters
    ----------
    inputs : EvaluationInputs
    progress : callable, optional
        Called with the number of finished images and of all.

    Raises
    ------
    UsageError
        If no image has a label.
    KdcacheError
        If all networks give logits that are not finite; one that does is left out.
    """
    networks, classes = inputs.networks, len(inputs.class_names)
    labels = networks[0].split.labels
    samples = (labels >= 0).nonzero()[:, 0]  # training images may have no label
    labels = labels[samples]
    if not len(labels):
        raise UsageError(problem(f"--split {inputs.split}", expected="images with labels", got="none"))
    made = _predict(networks, samples, labels, progress or (lambda done, total: None))
    is_finite = [own is not None for own in made]
    left_out = [
        problem(f"logits of {one.file}", expected="finite numbers", got="others")
        for one, good in zip(networks, is_finite, strict=True)
        if not good  # a network that diverged, or a file with absurd numbers
    ]
    if not any(is_finite):
        raise KdcacheError("\n".join(left_out))
    networks, predictions = tuple(compress(networks, is_finite)), [own for own in made if own is not None]
    evaluations = []
    for one, own in zip(networks, predictions, strict=True):
        place = _place_of_teacher(one, networks)
        teacher = None if place is None else predictions[place]
        mistakes = tuple(each._replace(place=int(samples[each.place])) for each in find_mistakes(own, labels, teacher))
        evaluations.append(
            Evaluation(
                one.name,
                one.file,
                one.epoch,
                one.model,
                one.split.image_size,
                measure_quality(own, labels, classes),
                measure_cost(one),
                None if place is None else networks[place].name,
                teacher and measure_agreement(teacher, own, labels, classes),
                mistakes,
                one.split.take(torch.tensor([each.place for each in mistakes], dtype=torch.long)),
                tuple(_picture(one.split, each.place) for each in mistakes),
            )
        )
    device, threads = networks[0].device.type, torch.get_num_threads()
    facts = (inputs.dataset, inputs.split, len(labels), inputs.class_names, device, threads)
    return EvaluationReport(*facts, tuple(evaluations), tuple(left_out))


@torch.inference_mode()
def _predict(
    networks: Sequence[LoadedNetwork], samples: Tensor, labels: Tensor, progress: ProgressCallback
) -> list[Predictions | None]:
    """Compute the predictions of all networks in one pass; ``None`` where the logits are not finite."""
    images = networks[0].split  # of all networks, which may see them in other renderings
    seen = [_rendering(one.split) for one in networks]
    renderings = [*dict.fromkeys(seen)]
    taught_by = [_place_of_teacher(one, networks) for one in networks]
    parts: list[list[Predictions]] = [[] for _ in networks]
    is_finite = [True] * len(networks)
    steps = samples.split(BATCH_SIZE)
    render = partial(images.render, renderings=[None] if len(renderings) == 1 else renderings)
    views_of_steps = prefetch_map(render, steps, images.workers)
    for number, (views, known) in enumerate(zip(views_of_steps, labels.split(BATCH_SIZE), strict=True), 1):
        logits = [
            one.logits(views[renderings.index(own)].to(one.device)) for one, own in zip(networks, seen, strict=True)
        ]
        is_finite = [good and bool(own.isfinite().all()) for good, own in zip(is_finite, logits, strict=True)]
        for made, own, teacher in zip(parts, logits, taught_by, strict=True):
            made.append(Predictions.of(own, known, None if teacher is None else logits[teacher]))
        progress(min(number * BATCH_SIZE, len(samples)), len(samples))
    return [
        Predictions(*map(torch.cat, zip(*made, strict=True))) if good else None
        for made, good in zip(parts, is_finite, strict=True)
    ]


def _rendering(split: Split) -> Rendering | None:
    return split.pictures.rendering if split.pictures and split.images is None else None


def _place_of_teacher(student: LoadedNetwork, networks: Sequence[LoadedNetwork]) -> int | None:
    places = (place for place, one in enumerate(networks) if one.file.resolve() == student.teacher)
    return next(places, None)


def _picture(split: Split, sample: int) -> str | None:
    if split.pictures is None:
        return None
    return split.pictures.source.name(split.pictures.index_in_source(sample))
