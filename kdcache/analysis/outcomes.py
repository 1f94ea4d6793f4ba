"""What came out: each group of runs beside its teacher, and beside the same network trained on labels alone."""

from __future__ import annotations  # so that the size of a network can be read without torch

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdcache.analysis.estimates import MeanStd
from kdcache.cards import same_dataset
from kdcache.checked_files import FILE, kind_of
from kdcache.config import StudentConfig
from kdcache.errors import UsageError
from kdcache.run.records import RunRecord, load_runs
from kdcache.run.taught import teacher_of

if TYPE_CHECKING:
    from kdcache.analysis.evaluation import Evaluation
    from kdcache.analysis.groups import RunGroup

__all__ = ["NetworkSize", "Outcome", "TaughtBy", "find_outcomes", "load_teachers", "network_size"]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last names of the tensors of batch norm that are not trained."""


class NetworkSize(NamedTuple):
    """Number of parameters of a network, and bytes of its file."""

    parameters: int
    bytes: int


class TaughtBy(NamedTuple):
    """The run that taught a student: accuracy of the network that taught, its size, and milliseconds an image."""

    run: RunRecord
    top1: float | None
    size: NetworkSize | None
    milliseconds: float | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of a group of runs; of a figure that a damaged file would change nothing is known.

    Attributes
    ----------
    group : RunGroup
    last, best : MeanStd
        Top-1 accuracy on the test images in percent, after the last epoch and after the best one.
    teacher : TaughtBy or None
        If its run has finished, and has the same test images.
    labels_alone : Outcome or None
        The best group of the same network, data and length of training that was trained with cross-entropy alone.
    size : NetworkSize or None
    milliseconds : float or None
        Per image in forwards of one, median, if the network of a run of the group was evaluated.
    """

    group: RunGroup
    last: MeanStd
    best: MeanStd
    teacher: TaughtBy | None = None
    labels_alone: Outcome | None = None
    size: NetworkSize | None = None
    milliseconds: float | None = None

    @property
    def is_student(self) -> bool:
        """Whether the runs are students."""
        return isinstance(self.group.config, StudentConfig)

    @property
    def below_teacher(self) -> float | None:
        """Points of accuracy that the teacher has more."""
        if self.teacher is None or self.teacher.top1 is None or self.last.mean is None:
            return None
        return self.teacher.top1 - self.last.mean

    @property
    def gap_closed(self) -> float | None:
        """Share of the way from labels alone to the teacher, in percent; ``None`` unless the teacher is ahead."""
        start = self.labels_alone.last.mean if self.labels_alone else None
        if start is None or self.last.mean is None or self.teacher is None or (self.teacher.top1 or 0) <= start:
            return None
        return 100 * (self.last.mean - start) / ((self.teacher.top1 or 0) - start)

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            "teacher": str(self.teacher.run.path) if self.teacher else None,
            "teacher_top1": self.teacher.top1 if self.teacher else None,
            "points_below_teacher": self.below_teacher,
            "labels_alone": self.labels_alone.group.name if self.labels_alone else None,
            "gap_closed_percent": self.gap_closed,
            "parameters": self.size.parameters if self.size else None,
            "bytes": self.size.bytes if self.size else None,
            "milliseconds_per_image": self.milliseconds,
        }


def load_teachers(runs: Sequence[RunRecord]) -> tuple[dict[Path, RunRecord], list[str]]:
    """Find the runs of the students' teachers, by the folder that the students name, and messages about missing ones.

    Those among the runs are not read again.
    """
    known = {run.path.resolve(): run for run in runs}
    found, problems = {}, list[str]()
    taught = [(run, run.config.teacher) for run in runs if isinstance(run.config, StudentConfig) and run.config.teacher]
    for folder, run in {folder: run for run, folder in reversed(taught)}.items():
        teacher = known.get(folder.resolve())
        if teacher is None:
            try:
                teacher_of(run.path, folder)
            except UsageError as error:
                problems += error.problems
                continue
            loaded = load_runs([folder])
            problems += loaded.problems
            teacher = next((run for run in loaded.runs if run.path == folder), None)
        if teacher is not None:
            found[folder] = teacher
    for run, folder in taught:
        if folder in found and _is_newer(found[folder], run):
            problems.append(f"teacher {folder} of run {run.path}: it was trained again after it taught")
    return found, problems


def _is_newer(teacher: RunRecord, student: RunRecord) -> bool:
    """Whether a teacher's run finished after the student had begun: then it holds another network by now."""
    finished, began = teacher.result("finished_at"), student.environment.get("started_at")
    return finished is not None and began is not None and finished > began


def find_outcomes(
    groups: Sequence[RunGroup], teachers: Mapping[Path, RunRecord], evaluations: Sequence[Evaluation] = ()
) -> list[Outcome]:
    """Find what came out of each group, in their order.

    Parameters
    ----------
    groups : sequence of RunGroup
    teachers : mapping of Path to RunRecord
        By the folder that the students name.
    evaluations : sequence of Evaluation
        Of networks of these runs, and of others.
    """
    timings = {one.file.resolve(): one.cost.timings[0].median for one in evaluations}
    labels_alone = _labels_alone(groups)
    outcomes = []
    for group in groups:
        teacher = _teacher(group, teachers, timings)
        alone = labels_alone.get(_training_key(group)) if teacher else None
        size = network_size(group.finished[0].folder.network_file) if group.finished else None
        milliseconds = _milliseconds(group.finished, timings)
        accuracy = group.result("last_top1"), group.result("best_top1")
        outcomes.append(Outcome(group, *accuracy, teacher, alone, size, milliseconds))
    return outcomes


def _milliseconds(runs: Sequence[RunRecord], timings: Mapping[Path, float]) -> float | None:
    files = (file for run in runs for file in (run.folder.network_file, run.folder.best_network_file))
    return next((timings[file.resolve()] for file in files if file.resolve() in timings), None) if timings else None


def network_size(file: Path) -> NetworkSize | None:
    """Read the size of a network from the header of its file; ``None`` if that is not possible."""
    from safetensors import SafetensorError, safe_open

    if kind_of(file) != FILE:
        return None
    try:
        with safe_open(file, "numpy") as tensors:
            names = [name for name in tensors.keys() if name.rpartition(".")[2] not in BUFFERS]  # noqa: SIM118
            parameters = sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError):
        return None
    return NetworkSize(parameters, file.stat().st_size)


def _teacher(group: RunGroup, teachers: Mapping[Path, RunRecord], timings: Mapping[Path, float]) -> TaughtBy | None:
    """Describe the teacher if its run has finished, and its accuracy is that on the test images of the group."""
    if not isinstance(group.config, StudentConfig) or group.config.loss == "ce":
        return None
    folder = group.config.teacher
    if folder is None or folder not in teachers:
        return None
    teacher, student = teachers[folder], group.runs[0]
    if not teacher.finished or any(_is_newer(teacher, run) for run in group.runs):
        return None
    if not same_dataset(teacher.config.dataset, student.config.dataset):
        return None
    ours, theirs = (run.environment.get("origin", {}).get("test set") for run in (student, teacher))
    # The fingerprint is of the images in their size.
    differ = ours != theirs and teacher.config.image_size == student.config.image_size
    if differ and ours and theirs:
        return None
    top1 = teacher.result("best_top1" if group.config.teacher_best else "last_top1")
    return TaughtBy(teacher, top1, network_size(teacher.folder.network_file), _milliseconds([teacher], timings))


def _labels_alone(groups: Sequence[RunGroup]) -> dict[object, Outcome]:
    """Find the best group that was trained with cross-entropy alone, for each network, data and length of training."""
    found: dict[object, Outcome] = {}
    for group in groups:
        if isinstance(group.config, StudentConfig) and group.config.loss == "ce":
            one, key = Outcome(group, group.result("last_top1"), group.result("best_top1")), _training_key(group)
            if one.last.mean is not None and (key not in found or one.last.mean > (found[key].last.mean or 0)):
                found[key] = one
    return found


def _training_key(group: RunGroup) -> object:
    config = group.config
    return config.model, config.length, json.dumps(config.image_settings, sort_keys=True)
