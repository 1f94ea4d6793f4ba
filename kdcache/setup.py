"""From what a config names to the thing itself: data, networks, plans, and the door to a teacher's answers."""

import importlib.resources
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from kdcache import datasets, models
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.codec import DENSE, Format, format_of
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import AnswerStore
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.datasets import Card, Dataset
from kdcache.environment import describe_environment
from kdcache.errors import UsageError, problem
from kdcache.models import Network, checkpoint, published
from kdcache.models.external import trust
from kdcache.run.folder import RUNS, FinishedRun, RunFolder, newest_finished_run
from kdcache.views import PLAN_VERSION, Plan, ViewMaker

__all__ = [
    "SHIPPED",
    "choose_compute",
    "find_network",
    "find_store",
    "find_teacher",
    "find_teacher_run",
    "fresh_network",
    "load_data",
    "open_cached_teacher",
    "open_store",
    "plan_for",
    "plan_of",
    "shipped_teacher",
    "store_path",
    "teacher_and_store",
    "teacher_compute",
    "trained_network",
]

SHIPPED = "shipped"
"""Stands for the file of the teacher of ``fashion-mini`` that comes with kdcache; its card says how it was trained."""

log = logging.getLogger("kdcache")


def choose_compute(config: TrainingConfig) -> Compute:
    """Choose the device and precision of a training; a resumed run keeps its precision and its number of threads.

    Sets torch's number of threads, since the order of sums depends on it.
    """
    recorded = RunFolder(config.out).read_environment() if config.resume and config.out else {}
    compute = Compute.choose(config.device, recorded.get("precision", config.precision))
    threads, current = recorded.get("threads"), torch.get_num_threads()
    if compute.device.type == "cpu" and isinstance(threads, int) and 0 < threads != current:
        log.info("computing with %d threads, not %d, as the run did before: rounding depends on it", threads, current)
        torch.set_num_threads(threads)
    return compute


def load_data(config: TrainingConfig) -> Dataset:
    """Load the images and labels that a config names."""
    return datasets.load(
        config.dataset,
        root=config.data_root,
        image_size=config.image_size,
        download=config.download,
        on_bad_image=config.on_bad_image,
        val_fraction=config.val_fraction,
        train_fraction=config.train_fraction,
        workers=config.workers,
    )


def fresh_network(config: TrainingConfig, data: Dataset) -> Network:
    """Build the network that a config names, with the weights of its seed and the normalisation of its data."""
    trust(config.model)  # its code may run: the user named it
    network = models.build(
        config.model,
        num_classes=data.num_classes,
        image_size=data.image_size,
        mean=data.card.mean,
        std=data.card.std,
        seed=config.seed,
        feature_names=config.features,
    )
    if config.features:
        network.check_features()
    return network


def find_teacher_run(
    path: Path | None, dataset: str | None = None, remedy: str = "name a teacher's run folder"
) -> FinishedRun:
    """Find a teacher's run: the one in a folder, or the newest finished one, of a dataset or of any.

    `remedy` is what the message advises, besides training one.

    Raises
    ------
    UsageError
        Where there is none.
    """
    run = FinishedRun(path) if path else newest_finished_run(TeacherConfig, dataset)
    if run is None:
        of = f" of {dataset}" if dataset else ""
        raise UsageError(f"no finished teacher{of} under {RUNS}/: run 'kdcache teacher-train' first, or {remedy}")
    if not isinstance(run.config, TeacherConfig):
        raise UsageError(problem(f"run {run.path}", expected="a teacher", got=f"a {run.config.table}"))
    return run


def find_teacher(config: StudentConfig) -> Path:
    """Find the teacher's run folder: the one named, or the newest finished one of the same dataset.

    Raises
    ------
    UsageError
        Where there is none, or the student would be written over it.
    """
    path = config.teacher or find_teacher_run(None, config.dataset, "name one with --teacher").path
    if not RunFolder(path).network_file.is_file():
        allowed = "a teacher's run folder; 'kdcache teacher-load --weights FILE' makes one of weights"
        raise UsageError(problem("--teacher", expected=allowed, got=path))
    if config.out is not None and config.out.resolve() == path.resolve():
        raise UsageError(problem("--out", expected="another folder than that of the teacher", got=config.out))
    return path


def find_store(teacher: Path | None, store: str | None) -> str | Path:
    """Find a store: the one named, or that of a teacher."""
    return store or store_path(find_teacher_run(teacher).path)


def trained_network(weights: Path, data: Dataset) -> Network:
    """Load a network from its file; it must answer about the images at hand.

    Raises
    ------
    UsageError
        Where it knows another number of classes, or images of another size.
    """
    network = checkpoint.load(weights)
    wanted = {"number of classes": data.num_classes, "image size": data.image_size}
    held = {"number of classes": network.num_classes, "image size": network.image_size}
    problems = [
        problem(f"teacher {weights}: {what}", expected=f"{wanted[what]}, as in {data.card.name}", got=held[what])
        for what in wanted
        if wanted[what] != held[what]
    ]
    if problems:
        raise UsageError(*problems)
    return network


def find_network(
    weights: str | Path,
    data: Dataset,
    model: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> tuple[Network, float | None]:
    """Load a trained network for some data from a file of kdcache's, a published one, or torchvision's weights.

    Parameters
    ----------
    weights : str or Path
        A file, `SHIPPED`, or the name of a network's weights in torchvision.
    data : Dataset
    model : str, optional
        The network; by default what the file names, or what its tensors fit.
    mean, std : tuple of float, optional
        Its normalisation; by default what the weights state, or the data's.

    Returns
    -------
    network : Network
    published : float or None
        The top-1 accuracy that it was published with, in percent, where it is known.
    """
    if weights == SHIPPED:
        weights = shipped_teacher()
    if Path(weights).suffix == ".safetensors" and checkpoint.is_kdcache_file(Path(weights)):
        return trained_network(Path(weights), data), None
    if model and model.startswith("torchvision:") and not Path(weights).exists():
        stated = published.download_torchvision(model, str(weights))
    else:
        stated = published.read(Path(weights))
    name = model or published.closest(stated.state)
    if name is None:
        raise UsageError(problem(f"weights {weights} fit no network that is known by name", expected="--model"))
    trust(name)
    network = models.build(
        name,
        num_classes=data.num_classes,
        image_size=data.image_size,
        mean=mean or stated.mean or data.card.mean,
        std=std or stated.std or data.card.std,
        seed=0,
    )
    published.load_into(network, stated.state, weights)
    return network, published.KNOWN_ACCURACY.get((data.card.name, name)) or stated.accuracy


def shipped_teacher() -> Path:
    """Find the teacher that comes with kdcache."""
    return Path(str(importlib.resources.files("kdcache.data") / "fashion-mini-teacher.safetensors"))


def plan_of(config: StudentConfig, data: Dataset) -> Plan:
    """Make the view plan that a config names, for some data."""
    return plan_for(config, len(data.train), data.card)


def plan_for(config: StudentConfig, samples: int, card: Card) -> Plan:
    """Make the view plan that a config names, of so many images of a dataset that need not be read."""
    augmentation = config.augmentation
    return Plan(
        samples=samples,
        image_size=card.image_size,
        padding=card.padding,
        crop_flip=augmentation.crop_flip,
        mixes=augmentation.mixes,
        seed=config.effective_view_seed,
    )


def store_path(teacher: Path, format: Format = DENSE) -> Path:
    """Where a teacher's answers lie unless ``--store`` says otherwise: a store for each format."""
    return RunFolder(teacher).answers_store(None if format == DENSE else format.name)


def teacher_compute(precision: str, store: str | Path, student: Compute) -> Compute:
    """Settle how precisely the teacher computes: ``auto`` is as its stored answers were, if there are any."""
    if precision == "auto" and StoreLocation(store).has("zarr.json"):
        return Compute(student.device, AnswerStore(store).precision)
    return student


def open_store(where: str | Path, teacher: Teacher, data: Dataset, format: Format = DENSE) -> AnswerStore:
    """Open the store of a teacher's answers about some data, or make it.

    Raises
    ------
    UsageError
        Where it holds answers of another teacher, about other data, or of another precision or plan.
    KdcacheError
        Where it is damaged.
    """
    return AnswerStore.open(
        where,
        {
            "teacher": teacher.fingerprint,
            "dataset": data.train.fingerprint,
            "padding": data.card.padding,
            "plan version": PLAN_VERSION,
            "teacher precision": teacher.compute.precision,
            "samples": len(data.train),
            "classes": data.num_classes,
        },
        format,
        made_with={
            **describe_environment(teacher.compute),
            "network of the teacher": teacher.network.name,
            "name of the dataset": data.card.name,
            "forward rows": teacher.rows,
            "rewritten for inference": teacher.rewritten,
        },
    )


def teacher_and_store(
    network: Network, data: Dataset, where: str | Path, compute: Compute
) -> tuple[Teacher, AnswerStore]:
    """Make a teacher of a network, and open the store of its answers at the precision and in the format that it has.

    Parameters
    ----------
    network : Network
    data : Dataset
    where : str or Path
        The store, which is made if it is not there.
    compute : Compute
        In force where there is no store yet.
    """
    teacher = Teacher(network, teacher_compute("auto", where, compute))
    format = AnswerStore(where).format if StoreLocation(where).has("zarr.json") else DENSE
    return teacher, open_store(where, teacher, data, format)


def open_cached_teacher(
    config: StudentConfig,
    data: Dataset,
    views: ViewMaker,
    compute: Compute,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> CachedTeacher:
    """Open the door to a teacher, with what ``--cache`` says is to be remembered.

    Parameters
    ----------
    config : StudentConfig
        Its teacher is known.
    data : Dataset
    views : ViewMaker
        Of the student's plan.
    compute : Compute
        The student's.
    tell : callable
        Hears how many of how many clean answers are there, where these are what the student sees.
    """
    assert config.teacher is not None
    format = format_of(config.store_dtype, config.topk)
    where = config.store or store_path(config.teacher, format)
    network = trained_network(RunFolder(config.teacher).network_file, data)
    if config.cache == "off":
        format.layout(data.num_classes)
        return CachedTeacher(Teacher(network, compute), views, format=format)
    teacher = Teacher(network, teacher_compute(config.precision, where, compute))
    store = open_store(where, teacher, data, format)
    return CachedTeacher.with_store(teacher, views, store, config.cache, config.epochs, config.cache_limit, tell)
