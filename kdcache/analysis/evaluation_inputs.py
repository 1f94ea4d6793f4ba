"""The networks that are evaluated side by side, each with the same images as it sees them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kdcache import datasets
from kdcache.analysis.inputs import run_images
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset, Split
from kdcache.datasets.manifest import picture_digests
from kdcache.errors import UsageError, problem
from kdcache.models import Network, checkpoint
from kdcache.models.load import trained_network
from kdcache.models.sources import SHIPPED, shipped_teacher
from kdcache.run.find import teacher_of
from kdcache.run.folder import FinishedRun, RunFolder, run_folders

__all__ = ["EvaluationInputs", "LoadedNetwork", "load_evaluation_inputs"]

SHIPPED_DATASET = "fashion-mini"
"""What the shipped teacher was trained on."""


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A trained network, and the images to evaluate it on.

    Attributes
    ----------
    name : str
        Run folder or file.
    file : Path
    epoch : int or None
        After which it was written, if it is one of a run.
    network : Network
        In evaluation mode, on the device.
    split : Split
    compute : Compute
    teacher : Path or None
        File of the network that taught it, if that is evaluated too.
    """

    name: str
    file: Path
    epoch: int | None
    network: Network
    split: Split
    compute: Compute
    teacher: Path | None = None


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """Networks, and what their images have in common.

    Attributes
    ----------
    networks : tuple of LoadedNetwork
        A teacher comes before its first student.
    dataset : str
    split : str
        ``test``, ``val`` or ``train``.
    class_names : tuple of str
    problems : tuple of str
        Messages about what is left out.
    """

    networks: tuple[LoadedNetwork, ...]
    dataset: str
    split: str
    class_names: tuple[str, ...]
    problems: tuple[str, ...]


def load_evaluation_inputs(
    paths: Sequence[str],
    split: str = "test",
    best: bool = False,
    dataset: str | None = None,
    data_root: Path | None = None,
    device: str = "auto",
) -> EvaluationInputs:
    """Load networks and the images to evaluate them on; the teacher of a student too, if it is found.

    Parameters
    ----------
    paths : sequence of str
        Run folders, folders of run folders, network files of kdcache, and ``shipped`` for the shipped teacher.
    split : str
        ``test``, ``val`` or ``train``.
    best : bool
        Whether to take the networks after the best epoch of the runs.
    dataset : str, optional
        Other images with the same classes, or the place to which those of the runs were moved.
    data_root : Path, optional
    device : str

    Raises
    ------
    UsageError
        If a network cannot be loaded or does not fit the images, or the networks do not have the same images.
    """
    runs, files, skipped = _find(paths)
    loader = _Loader(split, best, dataset, data_root, device)
    problems: list[str] = []
    for load in (*(partial(loader.add_run, run) for run in runs), *(partial(loader.add_file, file) for file in files)):
        try:
            load()
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    data, networks = loader.data, tuple(loader.networks.values())
    return EvaluationInputs(networks, data.card.name, split, data.class_names, (*skipped, *loader.left_out))


def _find(paths: Sequence[str]) -> tuple[list[FinishedRun], list[Path], list[str]]:
    """Find the runs and files that are named, and messages about what is skipped in folders of runs."""
    runs, files, problems, skipped = list[FinishedRun](), list[Path](), list[str](), list[str]()
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
            continue
        if str(path) == SHIPPED and not path.exists():
            files.append(shipped_teacher())
            continue
        inside = [] if RunFolder(path).holds_run else run_folders(path)
        for folder in inside or [RunFolder(path)]:
            try:
                runs.append(FinishedRun(folder.path))
            except UsageError as error:
                (skipped if inside else problems).extend(error.problems)
    if problems or not (runs or files):
        raise UsageError(*problems, *skipped)
    return runs, files, skipped


class _Loader:
    """Loads networks one after the other; all of them must have the same images as the first."""

    def __init__(self, split: str, best: bool, dataset: str | None, data_root: Path | None, device: str) -> None:
        self.split, self.best, self.dataset, self.data_root, self.device = split, best, dataset, data_root, device
        self.networks: dict[Path, LoadedNetwork] = {}
        self.left_out: list[str] = []
        self._data: dict[object, Dataset] = {}

    @property
    def data(self) -> Dataset:
        """The images of the first network."""
        return next(iter(self._data.values()))

    def add_run(self, run: FinishedRun) -> None:
        """Load the network of a run, and before it that of its teacher."""
        data = self._images_of(run)
        taught_by = self._add_teacher(run, data)
        file, last = run.chosen_network_file(self.best), run.summary["epochs"]
        epoch = last if file == run.network_file else run.summary["best_epoch"]
        name = str(run.path) if epoch == last else f"{run.path} (epoch {epoch})"
        loaded = self._load(name, file, data, run.config.precision, epoch)
        self.networks[file.resolve()] = replace(loaded, teacher=taught_by)

    def add_file(self, file: Path) -> None:
        """Load a network from a file, for the images of the first run."""
        if not self._data:
            name = self.dataset or (SHIPPED_DATASET if file == shipped_teacher() else None)
            if name is None:
                what = f"--dataset for {file}, which does not name its images"
                raise UsageError(problem(what, expected="a dataset", got="none"))
            size = checkpoint.load(file).image_size
            fixed = name in datasets.CARDS and datasets.CARDS[name].padding is not None
            root = self.data_root or Path("datasets")
            self._data[name] = datasets.load(name, root=root, image_size=None if fixed else size)
        name = SHIPPED if file == shipped_teacher() else str(file)
        self.networks[file.resolve()] = self._load(name, file, self.data)

    def _images_of(self, run: FinishedRun) -> Dataset:
        """Load the images of a run, once for runs of the same."""
        recorded = run.read_environment().get("origin", {}).get("dataset")
        key = (json.dumps(run.config.image_settings, sort_keys=True), recorded)
        if key not in self._data:
            data, _ = run_images(run, self.dataset, self.data_root)
            images = self._split_of(data)
            if self._data and not _has_same_images(images, self._split_of(self.data)):
                what, remedy = f"images of {run.path}", "Evaluate the runs apart, or name images with --dataset."
                raise UsageError(problem(what, expected="those of the first run", got="others", remedy=remedy))
            same_view = self._data and data.image_size == self.data.image_size
            self._data[key] = self.data if same_view else data
        return self._data[key]

    def _split_of(self, data: Dataset) -> Split:
        chosen = {"test": data.test, "val": data.val, "train": data.train}[self.split]
        if chosen is None:
            expected = "runs that held out a part of the training images with --val-fraction"
            raise UsageError(problem("--split val", expected=expected, got="others"))
        return chosen

    def _add_teacher(self, run: FinishedRun, data: Dataset) -> Path | None:
        """Load the network that taught a student, and return its file; if it is not found, keep a message."""
        if not isinstance(run.config, StudentConfig) or run.config.teacher is None:
            return None
        try:
            teacher = FinishedRun(teacher_of(run.path, run.config.teacher))
            file, config = teacher.network_file, teacher.config
            loaded = self._load(str(teacher.path), file, data, config.precision, teacher.summary["epochs"])
            recorded = run.read_environment().get("origin", {}).get("teacher")
            if recorded not in (None, checkpoint.fingerprint(loaded.network)):
                raise UsageError(problem(f"network {file}", expected=f"the teacher of {run.path}", got="another one"))
        except UsageError as error:
            self.left_out += [f"agreement of {run.path} with its teacher: {line}" for line in error.problems]
            return None
        self.networks.setdefault(file.resolve(), loaded)
        return file.resolve()

    def _load(
        self, name: str, file: Path, data: Dataset, precision: str = "auto", epoch: int | None = None
    ) -> LoadedNetwork:
        """Load a network, unless it was loaded before."""
        if known := self.networks.get(file.resolve()):
            return known
        compute = Compute.choose(self.device, precision)
        network = trained_network(file, data, "network").to(compute.device).eval()
        return LoadedNetwork(name, file, epoch, network, self._split_of(data), compute)


def _has_same_images(one: Split, other: Split) -> bool:
    """Whether two splits have the same images, which they may show in different sizes."""
    if not torch.equal(one.labels, other.labels):
        return False
    if one.pictures is not None and other.pictures is not None:
        return np.array_equal(picture_digests(one.pictures), picture_digests(other.pictures))
    return one.images is not None and other.images is not None and torch.equal(one.images, other.images)
