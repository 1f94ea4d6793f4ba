"""The teacher that an analysis asks: of a run or from elsewhere, about its own images or others."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kdcache import datasets
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.location import StoreLocation
from kdcache.answers.open import make_cached_teacher, make_reader, open_answers
from kdcache.answers.store import CLEAN, AnswerStore, store_path
from kdcache.answers.teacher import Teacher
from kdcache.choices import MODEL_PREFIXES
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset, Split
from kdcache.errors import UsageError, problem
from kdcache.models import Network
from kdcache.models.load import find_network, trained_network
from kdcache.run.folder import FinishedRun
from kdcache.setup import MODEL, find_teacher_run, load_data, plan_of
from kdcache.views import ViewMaker

__all__ = ["SPLITS", "CleanAnswers", "Subject", "open_subject"]

SPLITS = ("train", "val")

TORCHVISION, ITS_WEIGHTS = "torchvision:", "IMAGENET1K_V1"
"""What the weights of a network of torchvision's are, unless others are named: those that the paper's teacher has."""

BATCH = 256


@dataclass(frozen=True)
class Subject:
    """A teacher, the images that it is asked about, and what is stored of its answers to them.

    Attributes
    ----------
    name : str
        Run folder, or name of the network.
    folder : Path or None
        The run folder, if it has one.
    data : Dataset
        Its ``train`` is the split in question.
    split : str
        A word of `SPLITS`.
    teacher : Teacher
    store : AnswerStore or None
    keeps : bool
        Whether new answers are added to the store.
    """

    name: str
    folder: Path | None
    data: Dataset
    split: str
    teacher: Teacher
    store: AnswerStore | None
    keeps: bool

    @property
    def images(self) -> Split:
        """The images that the teacher is asked about."""
        return self.data.train

    def views(self, aug: str, seed: int, batch_size: int = BATCH) -> ViewMaker:
        """Make the views that a student of this augmentation and view seed would see."""
        config = StudentConfig.load(dataset=self.data.card.name, aug=aug, seed=seed)
        return ViewMaker(self.images, plan_of(config, self.data), batch_size, self.teacher.compute.device)

    def cached_teacher(self, views: ViewMaker, epochs: int) -> CachedTeacher:
        """Make the cached teacher for some epochs of views."""
        if self.keeps and self.store is not None and views.plan.crop_flip:
            return make_cached_teacher(self.teacher, views, self.store, "replay", epochs)
        return make_reader(self.teacher, views, self.store)

    @cached_property
    def clean(self) -> "CleanAnswers":
        """What the teacher says of the clean images."""
        views = self.views("none", seed=0)
        return CleanAnswers(CachedTeacher(self.teacher, views, store=self.store), self.images)


class CleanAnswers:
    """The class that the teacher gives each clean image: looked up where it is stored, asked once it is wanted.

    Parameters
    ----------
    cached_teacher : CachedTeacher
    images : Split
    """

    def __init__(self, cached_teacher: CachedTeacher, images: Split) -> None:
        self.cached_teacher, self.images = cached_teacher, images
        self._classes = torch.full((len(images),), -1)
        if cached_teacher.store is not None:
            table = cached_teacher.store.table(CLEAN)
            for chunk, rows in enumerate(table.chunks):  # a chunk at a time, since all of them may not fit into memory
                columns = table.read(chunk)
                if columns is not None:
                    self._classes[rows.start : rows.stop] = cached_teacher.codec.decode(
                        columns, cached_teacher.classes
                    ).argmax(1)

    def classes(self, samples: Tensor) -> Tensor:
        """Name the class that the teacher gives some samples: int64 (B,), on the CPU."""
        unknown = samples[self._classes[samples] < 0].unique()
        for part in unknown.split(BATCH) if len(unknown) else ():
            views = self.images.take(part).to(self.cached_teacher.views.device)
            self._classes[part] = self.cached_teacher.compute_logits(views).argmax(1).cpu()
        return self._classes[samples]

    def right(self, samples: Tensor) -> Tensor:
        """Tell on which samples the teacher is right: bool (B,), on the CPU."""
        return self.classes(samples) == self.images.labels[samples]


def open_subject(
    teacher: str | None = None,
    weights: str | None = None,
    dataset: str | None = None,
    data_root: Path | None = None,
    image_size: int | None = None,
    split: str = "train",
    store: str | None = None,
    device: str = "auto",
) -> Subject:
    """Load a teacher and the images that it is to be asked about.

    Parameters
    ----------
    teacher : str, optional
        A run folder, of a teacher or of a student whose teacher is then meant, or a network such as
        ``torchvision:resnet34``; by default the newest teacher's run, or with `weights` the network that they fit.
    weights : str, optional
        Of a network: a file, or what torchvision calls them.
    dataset : str, optional
        By default a run's own.
    data_root : Path, optional
    image_size : int, optional
    split : str
        A word of `SPLITS`.
    store : str, optional
        Where answers are looked up and kept. By default those of a run are looked up and nothing is kept.
    device : str

    Raises
    ------
    UsageError
        Where there is no such teacher, or it does not fit the images or the store.
    """
    elsewhere = any((teacher or "").startswith(start) for start, _ in MODEL_PREFIXES)
    if weights is None and not elsewhere:
        run = _teacher_run(teacher, dataset)
        own = dataset in (None, run.config.dataset)
        root = data_root or run.config.data_root
        if own:  # the part of them that it was trained on, if it was a part
            size = image_size or run.config.image_size
            data = load_data(run.config.model_copy(update={"data_root": root, "image_size": size, "download": False}))
        else:
            data = datasets.load(str(dataset), root=root, image_size=image_size)
        network, name, folder = trained_network(run.path / MODEL, data), str(run.path), run.path
        compute = Compute.choose(device, run.config.precision)
        place = store_path(run.path)
        looked_up = store or (place if own and split == "train" and StoreLocation(place).holds_store() else None)
    else:
        if dataset is None:
            raise UsageError(problem("--dataset", expected="the images to ask this teacher about", got="none"))
        data = datasets.load(dataset, root=data_root or Path("datasets"), image_size=image_size)
        network, name = _network(teacher, weights, data)
        compute = Compute.choose(device)
        folder, looked_up = None, store
    asked_about = data if split == "train" else replace(data, train=data.test)
    if looked_up is None:
        return Subject(name, folder, asked_about, split, Teacher(network, compute), None, keeps=False)
    asked, there = open_answers(network, asked_about, compute, looked_up)
    return Subject(name, folder, asked_about, split, asked, there, keeps=store is not None)


def _teacher_run(teacher: str | None, dataset: str | None) -> FinishedRun:
    if teacher is None:
        return find_teacher_run(None, dataset, "name one with --teacher")
    run = FinishedRun(Path(teacher))
    if not isinstance(run.config, StudentConfig):
        return run
    if run.config.teacher is None:
        raise UsageError(problem(f"run {run.path}", expected="a teacher, or a student that had one"))
    return FinishedRun(run.config.teacher)


def _network(teacher: str | None, weights: str | None, data: Dataset) -> tuple[Network, str]:
    if weights is None:
        if teacher is None or not teacher.startswith(TORCHVISION):
            raise UsageError(problem("--weights", expected=f"the weights of {teacher}", got="none"))
        weights = ITS_WEIGHTS
    network, _ = find_network(weights, data, teacher)
    return network, f"{network.name} ({weights})"
