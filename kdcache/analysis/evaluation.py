"""Networks evaluated side by side, a few at a time: each picture is decoded once, and goes through all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.analysis.cost import Cost, measure_cost
from kdcache.analysis.evaluated_network import EvaluatedNetwork, Forward
from kdcache.analysis.evaluation_inputs import EvaluationInputs
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

MAX_NETWORKS, MAX_BYTES = 16, 2**30
"""How many networks are in memory at once, and how many bytes their files take together, but at least one."""

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
    evaluations : tuple of Evaluation
    problems : tuple of str
        Messages about networks that are left out.
    """

    dataset: str
    split: str
    images: int
    class_names: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data; classes are numbers, which count the class names from 0."""
        own = ("dataset", "split", "images", "class_names")
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
    made = _measure(networks, samples, labels, progress or (lambda done, total: None))
    left_out = [
        problem(f"logits of {one.file}", expected="finite numbers", got="others")
        for one in networks
        if one.key not in made  # a network that diverged, or a file with absurd numbers
    ]
    if not made:
        raise KdcacheError("\n".join(left_out))
    evaluations, names = [], {one.key: one.name for one in networks}
    for one in networks:
        if one.key not in made:
            continue
        own, cost = made[one.key]
        teacher = made[one.teacher][0] if one.teacher in made else None
        mistakes = tuple(each._replace(place=int(samples[each.place])) for each in find_mistakes(own, labels, teacher))
        evaluations.append(
            Evaluation(
                one.name,
                one.file,
                one.epoch,
                one.model,
                one.split.image_size,
                measure_quality(own, labels, classes),
                cost,
                None if teacher is None or one.teacher is None else names[one.teacher],
                teacher and measure_agreement(teacher, own, labels, classes),
                mistakes,
                one.split.take(torch.tensor([each.place for each in mistakes], dtype=torch.long)),
                tuple(_picture(one.split, each.place) for each in mistakes),
            )
        )
    facts = (inputs.dataset, inputs.split, len(labels), inputs.class_names)
    return EvaluationReport(*facts, tuple(evaluations), tuple(left_out))


def _measure(
    networks: Sequence[EvaluatedNetwork], samples: Tensor, labels: Tensor, progress: ProgressCallback
) -> dict[Path, tuple[Predictions, Cost]]:
    """Compute the predictions of networks and measure their cost, except for those whose logits are not finite."""
    groups, found = _grouped(networks), dict[Path, tuple[Predictions, Cost]]()
    kept: dict[Path, list[Tensor]] = {}  # the logits of teachers whose students are in a later group, by batch
    for number, group in enumerate(groups):
        teachers = {one.teacher for later in groups[number + 1 :] for one in later}
        kept |= {one.key: [] for one in group if one.key in teachers}

        def report(done: int, before: int = number * len(samples)) -> None:
            progress(before + done, len(groups) * len(samples))

        found |= _measure_group(group, samples, labels, kept, report)
        kept = {key: logits for key, logits in kept.items() if key in teachers}
    return found


def _measure_group(
    group: Sequence[EvaluatedNetwork],
    samples: Tensor,
    labels: Tensor,
    kept: dict[Path, list[Tensor]],
    progress: Callable[[int], None],
) -> dict[Path, tuple[Predictions, Cost]]:
    """Measure networks that are in memory at once, and not afterwards; `kept` is that of `_predict`."""
    forwards = [one.load() for one in group]
    made = _predict(group, forwards, samples, labels, kept, progress)
    return {
        one.key: (own, measure_cost(one, forward))
        for one, forward, own in zip(group, forwards, made, strict=True)
        if own is not None
    }


def _grouped(networks: Sequence[EvaluatedNetwork]) -> list[list[EvaluatedNetwork]]:
    """Divide networks into groups that are in memory at once."""
    groups: list[list[EvaluatedNetwork]] = [[]]
    taken = 0
    for one in networks:
        own = one.file.stat().st_size
        if groups[-1] and (len(groups[-1]) == MAX_NETWORKS or taken + own > MAX_BYTES):
            groups.append([])
            taken = 0
        groups[-1].append(one)
        taken += own
    return groups


@torch.inference_mode()
def _predict(
    networks: Sequence[EvaluatedNetwork],
    forwards: Sequence[Forward],
    samples: Tensor,
    labels: Tensor,
    kept: dict[Path, list[Tensor]],
    progress: Callable[[int], None],
) -> list[Predictions | None]:
    """Compute the predictions of some networks in one pass; ``None`` where the logits are not finite.

    `kept` has the logits of teachers of an earlier pass, and gets those of the networks that have an entry.
    """
    images = networks[0].split  # of all networks, which may see them in other renderings
    seen = [_rendering(one.split) for one in networks]
    renderings = [*dict.fromkeys(seen)]
    parts: list[list[Predictions]] = [[] for _ in networks]
    is_finite = [True] * len(networks)
    steps = samples.split(BATCH_SIZE)
    render = partial(images.render, renderings=[None] if len(renderings) == 1 else renderings)
    views_of_steps = prefetch_map(render, steps, images.workers)
    for number, (views, known) in enumerate(zip(views_of_steps, labels.split(BATCH_SIZE), strict=True)):
        logits = {
            one.key: forward.logits(views[renderings.index(own)].to(one.device))
            for one, forward, own in zip(networks, forwards, seen, strict=True)
        }
        for key in kept.keys() & logits.keys():
            kept[key].append(logits[key].cpu())
        for place, one in enumerate(networks):
            teacher = None
            if one.teacher in logits:
                teacher = logits[one.teacher]
            elif one.teacher in kept:
                teacher = kept[one.teacher][number]
            parts[place].append(Predictions.of(logits[one.key], known, teacher))
            is_finite[place] = is_finite[place] and bool(logits[one.key].isfinite().all())
        progress(min((number + 1) * BATCH_SIZE, len(samples)))
    return [
        Predictions(*map(torch.cat, zip(*made, strict=True))) if good else None
        for made, good in zip(parts, is_finite, strict=True)
    ]


def _rendering(split: Split) -> Rendering | None:
    return split.pictures.rendering if split.pictures and split.images is None else None


def _picture(split: Split, sample: int) -> str | None:
    if split.pictures is None:
        return None
    return split.pictures.source.name(split.pictures.index_in_source(sample))
