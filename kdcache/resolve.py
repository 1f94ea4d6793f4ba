"""From what a config names to the thing itself: the data, a fresh network for them, a trained one that fits them."""

from pathlib import Path

from kdcache import datasets, models
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.datasets import Dataset
from kdcache.errors import UsageError, fault
from kdcache.models import Network, checkpoint
from kdcache.record import RUNS, newest
from kdcache.store.clean import fingerprint_of

__all__ = ["ANSWERS", "MODEL", "find_teacher", "fresh_network", "load_data", "teacher_compute", "trained_network"]

MODEL, ANSWERS = "model.safetensors", "answers.zarr"
"""Where a run keeps its network and, if it is a teacher, its answers to the clean views."""


def load_data(config: TrainingConfig) -> Dataset:
    """Load the images and labels that a config names."""
    return datasets.load(config.dataset, root=config.data_root, image_size=config.image_size, download=config.download)


def fresh_network(config: TrainingConfig, data: Dataset) -> Network:
    """Build the network that a config names, with the weights of its seed and the normalisation of its data."""
    return models.build(
        config.model,
        num_classes=data.num_classes,
        image_size=data.image_size,
        mean=data.card.mean,
        std=data.card.std,
        seed=config.seed,
    )


def find_teacher(config: StudentConfig) -> Path:
    """Find the teacher's run folder: the one named, or the newest finished one of the same dataset.

    Raises
    ------
    UsageError
        Where there is none, or the student would be written over it.
    """
    path = config.teacher
    if path is None:
        run = newest(TeacherConfig, config.dataset)
        if run is None:
            raise UsageError(
                f"no finished teacher of {config.dataset} under {RUNS}/: run 'kdcache teacher-train' first, or name "
                "one with --teacher"
            )
        path = run.path
    if config.out is not None and config.out.resolve() == path.resolve():
        raise UsageError(fault("--out", allowed="another folder than that of the teacher", given=config.out))
    return path


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
    faults = [
        fault(f"teacher {weights}: {what}", allowed=f"{wanted[what]}, as in {data.card.name}", given=held[what])
        for what in wanted
        if wanted[what] != held[what]
    ]
    if faults:
        raise UsageError(*faults)
    return network


def teacher_compute(precision: str, store: Path, student: Compute) -> Compute:
    """Settle how precisely the teacher computes: ``auto`` is as its stored answers were, if there are any."""
    if precision == "auto" and store.exists():
        return Compute(student.device, str(fingerprint_of(store)["teacher precision"]))
    return student
