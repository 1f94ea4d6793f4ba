"""The teacher of an analysis, with the images it is evaluated on: those of its run, or any others."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache import datasets
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.encoding import DEFAULT_ENCODING
from kdcache.answers.find import Answers, find_answers
from kdcache.answers.location import StoreLocation
from kdcache.answers.open import make_cached_teacher, make_reader
from kdcache.answers.store import AnswerStore
from kdcache.answers.teacher import Teacher
from kdcache.cards import same_dataset
from kdcache.choices import MODEL_PREFIXES
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset, Split
from kdcache.errors import UsageError, problem
from kdcache.models import Network
from kdcache.models.load import find_network, trained_network
from kdcache.run.find import find_teacher_run, stores_of
from kdcache.run.folder import FinishedRun
from kdcache.run.taught import teacher_of
from kdcache.run_data import load_run_data
from kdcache.setup import make_plan
from kdcache.views import Views

__all__ = ["SPLITS", "AnalysisInputs", "CleanPredictions", "load_analysis_inputs", "run_images"]

log = logging.getLogger("kdcache")

SPLITS = ("train", "val")

TORCHVISION = "torchvision:"

DEFAULT_TORCHVISION_WEIGHTS = "IMAGENET1K_V1"
"""Default weights of torchvision's networks: those of the paper's teacher."""

BATCH_SIZE = 256


@dataclass(frozen=True)
class AnalysisInputs:
    """A teacher, images to evaluate it on, and a store of its logits for them.

    Attributes
    ----------
    name : str
        Run folder, or name of the network.
    folder : Path or None
        The run folder, if there is one.
    data : Dataset
        Its ``train`` is the split to evaluate.
    split : str
        One of `SPLITS`.
    answers : Answers
        The teacher, and the stores of its logits.
    writes_store : bool
        Whether new logits are added to the store.
    has_own_images : bool
        Whether these are the images that the teacher's run was trained on, or the split beside them.
    """

    name: str
    folder: Path | None
    data: Dataset
    split: str
    answers: Answers
    writes_store: bool
    has_own_images: bool

    @property
    def teacher(self) -> Teacher:
        """The teacher."""
        return self.answers.teacher

    @property
    def store(self) -> AnswerStore | None:
        """The store of its logits for these images, if there is one."""
        return self.answers.store

    @property
    def images(self) -> Split:
        """The images to evaluate the teacher on."""
        return self.data.train

    def views(self, aug: str, seed: int, batch_size: int = BATCH_SIZE, augs: Any = None) -> Views:
        """Make the views that a student with this augmentation, these options of it and view seed would see."""
        config = StudentConfig.load(dataset=self.data.card.name, aug=aug, augs=augs, seed=seed)
        return Views(self.images, make_plan(config, self.data), batch_size, self.teacher.compute.device)

    def cached_teacher(self, views: Views, epochs: int) -> CachedTeacher:
        """Open the cached teacher for some epochs of views."""
        if self.writes_store and views.plan.crop_flip:
            return make_cached_teacher(self.answers, views, "replay", epochs)
        return make_reader(self.answers, views)

    @cached_property
    def clean(self) -> "CleanPredictions":
        """The teacher's predictions for the clean images."""
        views = self.views("none", seed=0)
        return CleanPredictions(self.answers, CachedTeacher(self.teacher, views, encoding=self.answers.encoding))


class CleanPredictions:
    """The teacher's class for each clean image: read from a store, or computed on first use.

    Parameters
    ----------
    answers : Answers
    cached_teacher : CachedTeacher
        Of the same teacher, for the others.
    """

    def __init__(self, answers: Answers, cached_teacher: CachedTeacher) -> None:
        self.cached_teacher, self.images = cached_teacher, cached_teacher.views.split
        self._classes = torch.full((len(self.images),), -1)
        for samples, columns in answers.clean_views():
            classes = cached_teacher.decode_logits(columns).argmax(1)
            self._classes[torch.from_numpy(samples)] = classes.cpu()

    def classes(self, samples: Tensor) -> Tensor:
        """Predict the class of some samples: int64 (B,), on the CPU."""
        unknown = samples[self._classes[samples] < 0].unique()
        for part in unknown.split(BATCH_SIZE) if len(unknown) else ():
            views = self.images.take(part).to(self.cached_teacher.views.device)
            self._classes[part] = self.cached_teacher.compute_logits(views).argmax(1).cpu()
        return self._classes[samples]

    def correct(self, samples: Tensor) -> Tensor:
        """Tell which of some samples the teacher classifies correctly: bool (B,), on the CPU."""
        return self.classes(samples) == self.images.labels[samples]


def load_analysis_inputs(
    teacher: str | None = None,
    weights: str | None = None,
    dataset: str | None = None,
    data_root: Path | None = None,
    image_size: int | None = None,
    split: str = "train",
    store: str | None = None,
    device: str = "auto",
    weights_entry: str | None = None,
    class_order: str | None = None,
    best: bool = False,
) -> AnalysisInputs:
    """Load a teacher and the images to evaluate it on.

    Parameters
    ----------
    teacher : str, optional
        Run folder of a teacher, run folder of a student to take its teacher, or a network such as
        ``torchvision:resnet34``. By default the newest teacher's run, or with `weights` the network that they fit.
    weights : str, optional
        Weights of a network: a file, or torchvision's name for them.
    dataset : str, optional
        Another dataset, or the place to which that of the run was moved. By default that of the run.
    data_root : Path, optional
    image_size : int, optional
    split : str
        One of `SPLITS`.
    store : str, optional
        Store to read and write. By default the stores of a teacher's run are read, and nothing is written.
    device : str
    weights_entry, class_order : str, optional
        Of weights, see `kdcache.models.load.find_network`.
    best : bool
        Whether to take the network after the best epoch of the teacher's run; also if it taught the student's run.

    Raises
    ------
    UsageError
        If there is no such teacher, or it does not fit the images or the store.
    """
    if store is not None and (error := StoreLocation(store).write_error()):
        raise UsageError(problem(f"--store {store}", expected="a store that can be written", got=error))
    external = any((teacher or "").startswith(prefix) for prefix, _ in MODEL_PREFIXES)
    if weights is None and not external:
        for option, value in (("--weights-entry", weights_entry), ("--class-order", class_order)):
            if value is not None:
                raise UsageError(problem(option, expected="a network of other weights", got="a run of kdcache"))
        run, taught_by_best = _teacher_run(teacher, dataset)
        data, own_images = run_images(run, dataset, data_root, image_size)
        file = run.chosen_network_file(best or taught_by_best)
        network, (name, _), folder = trained_network(file, data), run.describe_network(file), run.path
        compute = Compute.for_evaluation(device, run.config.precision)
        where = store or (stores_of(run.path) if split == "train" else None)
    else:
        if best:
            raise UsageError(problem("--best", expected="a run of kdcache", got="a network of other weights"))
        if dataset is None:
            raise UsageError(problem("--dataset", expected="a dataset, which this teacher does not name", got="none"))
        data = datasets.load(dataset, root=data_root or Path("datasets"), image_size=image_size)
        network, name = _external_network(teacher, weights, data, weights_entry, class_order)
        compute = Compute.choose(device)
        folder, where, own_images = None, store, False
    data = data.rendered(network.rendering)
    evaluated = data if split == "train" else replace(data, train=data.test)
    if where is None:
        answers = Answers(Teacher(network, compute), evaluated, StoreLocation(), DEFAULT_ENCODING)
    else:
        answers = find_answers(network, evaluated, compute, where)
        if store is not None:
            answers = answers.created()
    return AnalysisInputs(name, folder, evaluated, split, answers, store is not None, own_images)


def run_images(
    run: FinishedRun,
    dataset: str | None,
    data_root: Path | None,
    image_size: int | None = None,
    split: str = "train",
) -> tuple[Dataset, bool]:
    """Load the images of a run, wherever they are now, or of another dataset, and tell which."""
    if image_size in (None, run.config.image_size):
        try:
            return load_run_data(run, dataset, data_root, split), True
        except UsageError:
            if dataset is None or same_dataset(dataset, run.config.dataset):
                raise
    other, root = dataset or run.config.dataset, data_root or run.config.data_root
    size = image_size if other in datasets.CARDS else image_size or run.config.image_size
    data = datasets.load(other, root=root, image_size=size)
    log.info("%s is not what %s was trained on", data.card.name, run.path)
    return data, False


def _teacher_run(teacher: str | None, dataset: str | None) -> tuple[FinishedRun, bool]:
    """Find the run of a teacher, and tell whether the student that is named learned from its best network."""
    if teacher is None:
        return find_teacher_run(None, dataset, "name one with --teacher"), False
    run = FinishedRun(Path(teacher))
    if not isinstance(run.config, StudentConfig):
        return run, False
    if run.config.further_teachers:
        remedy, count = "Name one of them with --teacher.", len(run.config.teachers)
        raise UsageError(problem(f"teachers of {run.path}", expected="one", got=count, remedy=remedy))
    if run.config.teacher is None:
        got = (
            "neither"
            if run.config.answers is None
            else "one that learned from --answers, without the teacher's network"
        )
        raise UsageError(problem(f"run {run.path}", expected="a teacher, or a student with a teacher", got=got))
    return FinishedRun(teacher_of(run.path, run.config.teacher)), run.config.teacher_best


def _external_network(
    teacher: str | None, weights: str | None, data: Dataset, entry: str | None, class_order: str | None
) -> tuple[Network, str]:
    if weights is None:
        if teacher is None or not teacher.startswith(TORCHVISION):
            raise UsageError(problem("--weights", expected=f"the weights of {teacher}", got="none"))
        weights = DEFAULT_TORCHVISION_WEIGHTS
    network = find_network(weights, data, teacher, entry=entry, class_order=class_order).network
    return network, f"{network.name} ({weights})"
