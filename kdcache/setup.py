"""From a config to its data, networks and view plan."""

from __future__ import annotations  # so that plans can be made without torch

import logging
import os
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kdcache import datasets
from kdcache.cards import Rendering
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.datasets import Card, Dataset
from kdcache.errors import UsageError, problem
from kdcache.machine import threads_advice
from kdcache.run.find import weights_file
from kdcache.run.folder import RunFolder
from kdcache.views.plan import ViewPlan, steps
from kdcache.views.planning import plan_views

if TYPE_CHECKING:
    from kdcache.compute import Compute
    from kdcache.models import Network
    from kdcache.models.initial import InitialWeights

__all__ = [
    "DataSize",
    "choose_compute",
    "data_size",
    "fresh_network",
    "initial_network",
    "load_data",
    "make_plan",
    "make_plan_for_size",
    "seen_by",
    "with_epochs",
]

IMAGENET_CLASSES = 1000
"""Of the whole dataset. Its card leaves the number open, since a folder may hold some of the classes."""

PUBLISHED_NAMES = {"torchvision": "DEFAULT", "timm": "pretrained"}
"""Name of the published weights of a network, by its library."""

log = logging.getLogger("kdcache")

Config = TypeVar("Config", bound=TrainingConfig)


def choose_compute(config: TrainingConfig) -> Compute:
    """Choose the device, the precision and the number of threads of a training; a resumed run keeps the latter two.

    Sets torch's number of threads, since the order of sums depends on it, and reports if the cores are not free.

    Raises
    ------
    UsageError
        If the device is not available, or the run to resume has another number of threads than ``--threads``.
    """
    import torch

    from kdcache.compute import Compute
    from kdcache.run.checkpoint import recorded_environment

    recorded = recorded_environment(RunFolder(config.out)) if config.resume and config.out else {}
    compute = Compute.choose(config.device, recorded.get("precision", config.precision))
    before, current = recorded.get("threads"), torch.get_num_threads()
    if not isinstance(before, int) or before < 1:
        before = None
    if before is not None and config.threads not in (None, before):
        raise UsageError(problem("--threads", expected=f"{before}, as in the run", got=config.threads))
    threads = config.threads
    if threads is None and before != current and compute.device.type == "cpu":
        threads = before
        if before is not None:
            log.info(
                "computing with %d threads, not %d, as the run did before: rounding depends on it", before, current
            )
    if threads is not None:
        torch.set_num_threads(threads)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    may_choose = alone and before is None and compute.device.type == "cpu"  # a resumed run keeps its number
    if may_choose and (advice := threads_advice(torch.get_num_threads())):
        log.info("%s", advice)
    return compute


def load_data(config: TrainingConfig) -> Dataset:
    """Load the images and labels that a config names."""
    return datasets.load(
        config.dataset,
        root=config.data_root,
        image_size=config.image_size,
        crop=config.crop,
        download=config.download,
        on_bad_image=config.on_bad_image,
        max_pixels=config.max_pixels,
        val_fraction=config.val_fraction,
        train_fraction=config.train_fraction,
        unlabelled=config.image_settings.get("unlabelled"),
        workers=config.workers,
    )


def with_epochs(config: Config, samples: int) -> Config:
    """Turn a length in steps into whole epochs of a number of training samples.

    Raises
    ------
    UsageError
        If other settings do not fit the number of epochs.
    """
    if config.steps is None:
        return config
    of_epoch = len(steps(samples, config.batch_size))
    epochs = ceil(config.steps / of_epoch)
    log.info("--steps %d: %d epochs of %d steps, %d in all", config.steps, epochs, of_epoch, epochs * of_epoch)
    return config.lasting(epochs)


class DataSize(NamedTuple):
    """Size of a dataset: training and test samples, classes, and the card."""

    samples: int
    test_samples: int
    classes: int
    card: Card


def data_size(config: TrainingConfig, approximate: bool = False) -> DataSize:
    """Find the size of the data that a config names, from the dataset's card if that is enough.

    Parameters
    ----------
    config : TrainingConfig
    approximate : bool
        Whether to compute the size of a part of a dataset from its card too, without rounding class by class, and to
        assume that ImageNet has all of its classes and that no image is left out. Then only datasets without a name are
        loaded.
    """
    if config.dataset in datasets.CARDS:
        card = datasets.card_of(config.dataset, config.image_size, config.crop)
        share = (1 - config.val_fraction) * config.train_fraction
        is_known = share == 1 and card.classes and config.on_bad_image != "skip"
        if card.counts and (approximate or is_known):
            samples = round(share * card.counts[0]) + _count_unlabelled(config, card)
            return DataSize(samples, card.counts[1], card.classes or IMAGENET_CLASSES, card)
    data = load_data(config)
    return DataSize(len(data.train), len(data.test), data.num_classes, data.card)


def _count_unlabelled(config: TrainingConfig, card: Card) -> int:
    """Count the unlabelled images that a config names, those that cannot be decoded too."""
    unlabelled = config.image_settings.get("unlabelled")
    if unlabelled is None:
        return 0
    from kdcache.datasets.unlabelled import read_unlabelled  # which imports torch

    return len(read_unlabelled(unlabelled, card))


def fresh_network(config: TrainingConfig, data: Dataset) -> Network:
    """Build the network that a config names, with initial weights from its seed and the normalization of its data."""
    from kdcache import models

    network = models.build(
        config.model,
        num_classes=data.num_classes,
        image_size=data.image_size,
        mean=data.card.mean,
        std=data.card.std,
        seed=config.seed,
        feature_names=config.features,
    )
    if not any(True for _ in network.parameters()):
        what = f"network {config.model}"
        raise UsageError(problem(what, expected="one with weights to train", got="none"))
    network.rendering = data.card.rendering
    if config.features:
        network.check_features()
    return network


def initial_network(config: TrainingConfig, data: Dataset) -> tuple[Network, InitialWeights | None]:
    """Build the network that a training starts from: fresh, or with the weights that ``init`` names.

    A run with a checkpoint does not read them again. The network sees the data in its own rendering, see
    `kdcache.datasets.Dataset.rendered`.

    Raises
    ------
    UsageError
        If there are no such weights, or they do not fit the network.
    """
    from kdcache.models.initial import InitialWeights, start_from
    from kdcache.models.sizes import describe_cost
    from kdcache.run.checkpoint import has_checkpoint, recorded_environment

    network = fresh_network(config, data)
    if cost := describe_cost(config.model, data.image_size):
        log.info("%s", cost)
    if config.init is None:
        library = config.model.partition(":")[0]
        if library in PUBLISHED_NAMES and config.dataset not in datasets.CARDS:
            log.info(
                "%s starts from random weights. On less than many thousand pictures, those trained on ImageNet are "
                "far better: --init %s",
                config.model,
                PUBLISHED_NAMES[library],
            )
        return network, None
    if config.resume and config.out and has_checkpoint(RunFolder(config.out)):
        recorded = recorded_environment(RunFolder(config.out)).get("init")
        if recorded is None:
            raise UsageError(problem(f"run {config.out}", expected="a record of its initial weights", got="none"))
        init = InitialWeights(**recorded)
        network.set_normalization(init.mean, init.std)
        network.rendering = Rendering(network.image_size, init.shorter_side, init.interpolation)
        return network, init
    return network, start_from(network, weights_file(config.init), data, config.downloads_init)


def make_plan(config: StudentConfig, data: Dataset) -> ViewPlan:
    """Make the view plan of a config for some data: on the images of the teacher, if one is needed and named."""
    if config.answers is not None and data.card.padding is None:
        from kdcache.answers.card import read_card

        return make_plan_for_size(config, len(data.train), data.card.rendered(read_card(config.answers).rendering))
    teacher = config.teacher if config.needs_teacher else None
    return make_plan_for_size(config, len(data.train), seen_by(teacher, data.card))


def make_plan_for_size(config: StudentConfig, samples: int, card: Card) -> ViewPlan:
    """Make the view plan of a config for a number of samples of a dataset, which need not be loaded."""
    size, seed = card.image_size, config.effective_view_seed
    return plan_views(config.augmentation, samples, size, card.padding, seed, config.batch_size, card.mean)


def seen_by(teacher: Path | None, card: Card) -> Card:
    """The card of the same pictures as a teacher sees them."""
    if teacher is None or card.padding is not None:
        return card
    from kdcache.models.checkpoint import rendering_of

    return card.rendered(rendering_of(RunFolder(teacher).network_file))
