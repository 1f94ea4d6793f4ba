"""The networks that are evaluated side by side, each with the same images as it sees them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kdcache import datasets
from kdcache.analysis.evaluated_network import (
    EXPORTED,
    EvaluatedNetwork,
    as_seen,
    load_exported,
    load_network,
    require_fit,
)
from kdcache.analysis.inputs import run_images
from kdcache.choices import SHIPPED
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset, Split
from kdcache.datasets.manifest import picture_digests
from kdcache.errors import UsageError, problem
from kdcache.models import checkpoint
from kdcache.models.load import trained_network
from kdcache.models.predictor import load_predictor
from kdcache.models.sources import shipped_teacher
from kdcache.run.folder import FinishedRun, RunFolder, run_folders
from kdcache.run.taught import teacher_of

__all__ = ["EvaluationInputs", "load_evaluation_inputs"]

BUNDLE_FOLDER = "bundle"
"""Where ``kdcache export --format bundle`` writes in a run folder."""

SHIPPED_DATASET = "fashion-mini"
"""What the shipped teacher was trained on."""


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """Networks, and what their images have in common.

    Attributes
    ----------
    networks : tuple of EvaluatedNetwork
        A teacher comes before its first student.
    dataset : str
    split : str
        ``test``, ``val`` or ``train``.
    class_names : tuple of str
    problems : tuple of str
        Messages about what is left out.
    """

    networks: tuple[EvaluatedNetwork, ...]
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
    skips_bad: bool = False,
) -> EvaluationInputs:
    """Find networks and the images to evaluate them on; the teacher of a student too, if it is found.

    Each network is loaded once to check it, and not kept.

    Parameters
    ----------
    paths : sequence of str
        Run folders, folders of run folders or of ONNX files, network files of kdcache, ONNX files that it exported, and
        ``shipped`` for the shipped teacher. ONNX files in a run folder are evaluated too.
    split : str
        ``test``, ``val`` or ``train``.
    best : bool
        Whether to take the networks after the best epoch of the runs.
    dataset : str, optional
        Other images with the same classes, or the place to which those of the runs were moved.
    data_root : Path, optional
    device : str
    skips_bad : bool
        Whether a network that cannot be evaluated is left out with a message, even if it was named, and not only found
        in a folder of runs.

    Raises
    ------
    UsageError
        If a network cannot be loaded or does not fit the images, or the networks do not have the same images.
    """
    loader = _Loader(split, best, dataset, data_root, device)
    problems: list[str] = []
    sources = sorted(_sources(paths), key=lambda source: source.is_file)  # runs have images
    if best and all(source.is_file for source in sources):
        raise UsageError(problem("--best", expected="a run folder", got="files alone, which have no epochs"))
    for path, is_file, is_named in sources:
        try:
            loader.add_file(path) if is_file else loader.add_run(FinishedRun(path))
        except UsageError as error:
            (problems if is_named and not skips_bad else loader.left_out).extend(error.problems)
    if problems or not loader.networks:
        raise UsageError(*dict.fromkeys([*problems, *loader.left_out]))
    data, networks = loader.data, tuple(loader.networks.values())
    return EvaluationInputs(networks, data.card.name, split, data.class_names, tuple(loader.left_out))


class _Source(NamedTuple):
    """A run folder or a file, and whether it was named or found in a folder."""

    path: Path
    is_file: bool
    is_named: bool


def _sources(paths: Sequence[str]) -> Iterator[_Source]:
    for path in map(Path, paths):
        if path.is_file():
            yield _Source(path, True, True)
        elif str(path) == SHIPPED and not path.exists():
            yield _Source(shipped_teacher(), True, True)
        elif RunFolder(path).holds_run:
            yield _Source(path, False, True)
        elif inside := run_folders(path):
            yield from (_Source(folder.path, False, False) for folder in inside)
        elif exported := sorted(path.glob(EXPORTED)):
            yield from (_Source(file, True, True) for file in exported)
        else:
            yield _Source(path, False, True)  # a message says that there is no run


class _Loader:
    """Loads networks one after the other; all of them must have the same images as the first."""

    def __init__(self, split: str, best: bool, dataset: str | None, data_root: Path | None, device: str) -> None:
        self.split, self.best, self.dataset, self.data_root, self.device = split, best, dataset, data_root, device
        self.networks: dict[Path, EvaluatedNetwork] = {}
        self.left_out: list[str] = []
        self._data: dict[object, Dataset] = {}
        self._fingerprint = cache(lambda file: checkpoint.fingerprint(checkpoint.load(file)))

    @property
    def data(self) -> Dataset:
        """The images of the first network."""
        return next(iter(self._data.values()))

    def add_run(self, run: FinishedRun) -> None:
        """Load the network of a run, and before it that of its teacher."""
        data = self._images_of(run)
        taught_by = self._add_teacher(run, data)
        file = run.chosen_network_file(self.best)
        name, epoch = run.describe_network(file)
        loaded = self._load(name, file, data, run.config.precision, epoch)
        self.networks[file.resolve()] = replace(loaded, teacher=taught_by)
        for exported in sorted([*run.path.glob(EXPORTED), *run.path.joinpath(BUNDLE_FOLDER).glob(EXPORTED)]):
            try:
                beside = self._load(str(exported), exported, data)
                self.networks[exported.resolve()] = replace(beside, teacher=taught_by)
            except UsageError as error:
                self.left_out += error.problems

    def add_file(self, file: Path) -> None:
        """Load a network from a file, for the images of the first run."""
        if not self._data:
            name = self.dataset or (SHIPPED_DATASET if file == shipped_teacher() else None)
            if name is None:
                what = f"--dataset for {file}, which does not name its images"
                raise UsageError(problem(what, expected="a dataset", got="none"))
            size = load_predictor(file).facts.image_size
            fixed = name in datasets.CARDS and datasets.CARDS[name].padding is not None
            root = self.data_root or Path("datasets")
            self._data[name] = datasets.load(name, root=root, image_size=None if fixed else size)
        self._require_held_out(file)
        name = SHIPPED if file == shipped_teacher() else str(file)
        self.networks[file.resolve()] = self._load(name, file, self.data)

    def _images_of(self, run: FinishedRun) -> Dataset:
        """Load the images of a run, once for runs of the same."""
        recorded = run.read_environment().get("origin", {}).get("dataset")
        key = (json.dumps(run.config.image_settings, sort_keys=True), recorded)
        if key not in self._data:
            data, _ = run_images(run, self.dataset, self.data_root, None, self.split)
            images = self._split_of(data)
            if self._data and not _has_same_images(images, self._split_of(self.data)):
                what, remedy = f"images of {run.path}", "Evaluate the runs apart, or name images with --dataset."
                raise UsageError(problem(what, expected="those of the first run", got="others", remedy=remedy))
            self._data[key] = as_seen(self.data, data.card.rendering) if self._data else data
        return self._data[key]

    def _split_of(self, data: Dataset) -> Split:
        chosen = {"test": data.test, "val": data.val, "train": data.train}[self.split]
        if chosen is None:
            expected = "runs that held out a part of the training images with --val-fraction"
            raise UsageError(problem("--split val", expected=expected, got="others"))
        return chosen

    def _require_held_out(self, file: Path) -> None:
        """Check for held-out images that a network of another run, or of none, was not trained on them."""
        if self.split == "val":
            if not RunFolder(file.parent).holds_run:
                raise UsageError(
                    problem(f"--split val: {file}", expected="a file in the folder of its run", got="another")
                )
            self._images_of(FinishedRun(file.parent))

    def _add_teacher(self, run: FinishedRun, data: Dataset) -> Path | None:
        """Load the network that taught a student, and return its file; if it is not found, keep a message."""
        if not isinstance(run.config, StudentConfig) or run.config.teacher is None:
            return None
        if run.config.further_teachers:
            line = problem("teachers", expected="one", got=len(run.config.teachers))
            self.left_out.append(f"agreement of {run.path} with its teacher: {line}")
            return None
        try:
            teacher = FinishedRun(teacher_of(run.path, run.config.teacher))
            file, config = teacher.chosen_network_file(run.config.teacher_best), teacher.config
            self._require_held_out(file)
            name, epoch = teacher.describe_network(file)
            loaded = self._load(name, file, data, config.precision, epoch)
            recorded = run.read_environment().get("origin", {}).get("teacher")
            if recorded not in (None, self._fingerprint(file)):
                raise UsageError(problem(f"network {file}", expected=f"the teacher of {run.path}", got="another one"))
        except UsageError as error:
            self.left_out += [f"agreement of {run.path} with its teacher: {line}" for line in error.problems]
            return None
        self.networks.setdefault(file.resolve(), loaded)
        return file.resolve()

    def _load(
        self, name: str, file: Path, data: Dataset, precision: str = "auto", epoch: int | None = None
    ) -> EvaluatedNetwork:
        """Load a network to check it, unless that was done before."""
        if known := self.networks.get(file.resolve()):
            return known
        if file.match(EXPORTED):
            predictor = load_predictor(file)
            data = as_seen(data, predictor.facts.rendering)
            require_fit(predictor, data)
            facts = (name, file, predictor.facts.name, self._split_of(data), torch.device("cpu"), "onnxruntime")
            return EvaluatedNetwork(*facts, partial(load_exported, file))
        compute, data = Compute.for_evaluation(self.device, precision), as_seen(data, checkpoint.rendering_of(file))
        model = trained_network(file, data, "network").name
        facts = (name, file, model, self._split_of(data), compute.device, compute.precision)
        return EvaluatedNetwork(*facts, partial(load_network, file, data, compute), epoch)


def _has_same_images(one: Split, other: Split) -> bool:
    """Whether two splits have the same images, which they may show in different sizes."""
    if not torch.equal(one.labels, other.labels):
        return False
    if one.pictures is not None and other.pictures is not None:
        return np.array_equal(picture_digests(one.pictures), picture_digests(other.pictures))
    return one.images is not None and other.images is not None and torch.equal(one.images, other.images)
