"""Cached teachers: that of a student's config, and those of training loops of one's own."""

from __future__ import annotations  # so that what is stored can be counted without torch

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache import datasets
from kdcache.answers.encoding import make_encoding
from kdcache.choices import FOLDER_PREFIX, PRECISIONS, SHIPPED, STORE_DTYPES, STORE_FORMATS
from kdcache.config import StudentConfig
from kdcache.config.training import recorded_images
from kdcache.datasets import Card, Dataset
from kdcache.errors import UsageError, names_parameters, problem
from kdcache.run.find import report_seen_images, stores_of, teacher_network
from kdcache.run.folder import RunFolder
from kdcache.stores import encoding_name, encoding_of, find_answers_of

if TYPE_CHECKING:
    from kdcache.answers.cached_teacher import CachedTeacher
    from kdcache.answers.ensemble import AnyTeacher, TeacherEnsemble
    from kdcache.answers.open import ProgressCallback
    from kdcache.answers.teacher_stores import TeacherStores
    from kdcache.compute import Compute
    from kdcache.models import Network
    from kdcache.views import Views

__all__ = ["open_cached_teacher", "open_ensemble", "open_teacher", "open_teachers"]

log = logging.getLogger("kdcache")


@names_parameters
def open_teacher(
    teacher: Network | str | Path,
    views: Views,
    store: str | Path | None = None,
    *,
    precision: str = "auto",
    store_dtype: str = "float16",
    topk: int | None = None,
    store_format: str = "logits",
    limit: int | None = None,
) -> CachedTeacher:
    """Open a teacher that remembers its logits, for a training loop of one's own.

    Every view that comes up for the first time goes through the teacher. Its logits are stored; the same view, in
    another epoch of the same seed, another training or another process, is looked up. Threads and processes may share
    a store: each view is computed once.

    Parameters
    ----------
    teacher : Network, str or Path
        A run folder or network file of kdcache, ``shipped`` for the ``fashion-mini`` teacher that comes with it, or a
        network: `kdcache.Network` wraps any ``torch.nn.Module``, and `kdcache.wrap_function` any function. It is frozen
        and in evaluation mode from then on.
    views : Views
    store : str or Path, optional
        A folder. In it, each teacher and set of images has a store of its own. Or the URL of one store. By default the
        stores in the teacher's run folder; without one, nothing is stored.
    precision : str
        Of the teacher's forward passes: an item of `kdcache.choices.PRECISIONS`, or ``auto``, which takes that of a
        store that exists.
    store_dtype : str
        Stored as ``float16`` or ``float32``.
    topk : int, optional
        Store so many of the largest logits of a view alone.
    store_format : str
        ``vectors`` stores what the last layer reads, from which logits follow: for losses on vectors.
    limit : int, optional
        Maximum size of all stores in the folder in bytes, by default 10 GB or a tenth of the disk. Views beyond it go
        through the teacher each time.

    Returns
    -------
    CachedTeacher
        Its method ``logits`` takes a batch of the views, ``outputs`` returns vectors too where they are stored.

    Raises
    ------
    UsageError
        If there is no such teacher, it has another image size than the views, or the store is for other logits.
    """
    from kdcache.answers.find import Answers, find_answers
    from kdcache.answers.location import StoreLocation
    from kdcache.answers.open import open_for_views
    from kdcache.answers.teacher import Teacher
    from kdcache.answers.teacher_stores import TeacherStores
    from kdcache.compute import Compute

    _check_choices(views, precision, store_dtype, store_format, topk, limit)
    network, where = _network_and_stores(teacher)
    if store is not None:
        where = str(store) if "://" in str(store) else TeacherStores(Path(store))
    if (labels := int(views.split.labels.max()) + 1) > network.num_classes:
        raise UsageError(problem("classes of the teacher", expected=f"at least {labels}", got=network.num_classes))
    width = network.linear_head().in_features if store_format == "vectors" else None
    encoding = make_encoding(store_dtype, topk, width)
    encoding.layout(network.num_classes)  # raises for a topk that does not fit
    compute = replace(Compute.choose(views.device.type, precision), device=views.device)
    data = _as_dataset(views, network)
    if where is None:
        return open_for_views(Answers(Teacher(network, compute), data, StoreLocation(), encoding), views, "off")
    answers = find_answers(network, data, compute, where, encoding, precision)
    space = answers.space(limit)
    if limit is not None and not space.max_tables:
        expected = f"at least {space.table_bytes + space.others} bytes, for the logits of one kind of view"
        raise UsageError(problem("limit", expected=expected, got=limit))
    return open_for_views(answers, views, "replay", limit=limit)


def _network_and_stores(teacher: Network | str | Path) -> tuple[Network, TeacherStores | str | None]:
    """Load a teacher, and find the stores in its run folder, if it has one."""
    from kdcache.models import Network, checkpoint
    from kdcache.models.sources import shipped_teacher

    if isinstance(teacher, Network):
        return teacher, None
    if not isinstance(teacher, str | Path):
        expected, remedy = "a network or a run folder", "Wrap it with kdcache.Network or kdcache.wrap_function."
        raise UsageError(problem("teacher", expected=expected, got=type(teacher).__name__, remedy=remedy))
    path = shipped_teacher() if teacher == SHIPPED else Path(teacher)
    run = RunFolder(path)
    if not run.holds_run:
        return checkpoint.load(path), None
    run.require_own_entries()
    run.require_finished()
    return checkpoint.load(run.network_file), stores_of(path)


def _check_choices(
    views: Views, precision: str, store_dtype: str, store_format: str, topk: int | None, limit: int | None
) -> None:
    """Check what has a few possible values, all problems at once."""
    from kdcache.views import Views

    known, formats = ("auto", *PRECISIONS), STORE_FORMATS[1:] if topk is None else ("logits",)
    problems = [
        problem(name, expected=expected, got=got)
        for name, valid, expected, got in (
            ("views", isinstance(views, Views), "kdcache.Views", type(views).__name__),
            ("precision", precision in known, f"one of {', '.join(known)}", precision),
            ("store_dtype", store_dtype in STORE_DTYPES, f"one of {', '.join(STORE_DTYPES)}", store_dtype),
            ("store_format", store_format in formats, f"one of {', '.join(formats)}", store_format),
            ("topk", topk is None or topk >= 1, "at least 1", topk),
            ("limit", limit is None or limit > 0, "a number of bytes above 0", limit),
        )
        if not valid
    ]
    if problems:
        raise UsageError(*problems)


@names_parameters
def open_ensemble(
    teachers: Sequence[Network | str | Path],
    views: Views,
    store: str | Path | None = None,
    *,
    weights: Sequence[float] = (),
    temperature: float | None = None,
    precision: str = "auto",
    limit: int | None = None,
) -> TeacherEnsemble:
    """Open several teachers as one, whose logits are averaged; each has a store of its own.

    Parameters
    ----------
    teachers : sequence
        Each as in `open_teacher`.
    views, store, precision, limit
        See `open_teacher`; `store` is a folder.
    weights : sequence of float, optional
        By default equal.
    temperature : float, optional
        Average the probabilities at this temperature instead of the logits.

    Raises
    ------
    UsageError
        As by `open_teacher`, or because the teachers differ in classes, rendering or precision.
    """
    from kdcache.answers.ensemble import TeacherEnsemble

    if isinstance(teachers, str | Path) or not teachers:
        raise UsageError(problem("teachers", expected="at least one, in a list", got=teachers))
    if "://" in str(store):
        raise UsageError(problem("store of several teachers", expected="a folder", got=store))
    openers = [partial(open_teacher, one, views, store, precision=precision, limit=limit) for one in teachers]
    return TeacherEnsemble.open(openers, views, weights, temperature)


def _as_dataset(views: Views, network: Network) -> Dataset:
    """Describe the images of some views, as a network sees them."""
    names = tuple(map(str, range(network.num_classes)))
    images = views.rendered(network.rendering).split
    card = Card(
        name="images",
        classes=network.num_classes,
        image_size=network.image_size,
        padding=views.plan.padding,
        mean=network.mean,
        std=network.std,
        source="a training loop",
        license="unknown",
    )
    return Dataset(card.rendered(network.rendering), names, images, images)


def open_teachers(
    config: StudentConfig, data: Dataset, views: Views, compute: Compute, progress: ProgressCallback | None = None
) -> AnyTeacher:
    """Open the cached teacher of a student, or several as one; `compute` is that of the student."""
    from kdcache.answers.ensemble import TeacherEnsemble

    if not config.further_teachers:
        return open_cached_teacher(config, data, views, compute, progress)
    each = [config.model_copy(update={"teacher": path, "further_teachers": ()}) for path in config.teachers]
    openers = [partial(open_cached_teacher, one, data, views, compute, progress) for one in each]
    temperature = config.temperature if config.teacher_mean == "probabilities" else None
    return TeacherEnsemble.open(openers, views, config.teacher_weights, temperature)


def open_cached_teacher(
    config: StudentConfig, data: Dataset, views: Views, compute: Compute, progress: ProgressCallback | None = None
) -> CachedTeacher:
    """Open the cached teacher of a student who has one, see `kdcache.answers.open`.

    With `answers` in the config, its teacher is not at hand, and nothing but these is read.
    """
    from kdcache.answers.find import Answers
    from kdcache.answers.location import StoreLocation
    from kdcache.answers.open import open_for_views
    from kdcache.answers.teacher import Teacher
    from kdcache.models.checkpoint import rendering_of
    from kdcache.models.load import trained_network

    if config.answers is not None:
        from kdcache.answers.pulled import find_pulled_answers

        place, images = config.answers, config.image_settings
        name = encoding_name(config)
        answers = find_pulled_answers(place, data, views.plan, config.epochs, name, compute.device, images)
        return open_for_views(answers, views, config.cache)
    file = teacher_network(config)
    seen = data.rendered(rendering_of(file))
    _compare_with_teacher(config, data.card, seen.card)
    if data.val is not None and config.teacher is not None:
        report_seen_images(config.teacher, data.val, config.val_fraction)
    if config.cache == "off":
        network = trained_network(file, seen)
        answers = Answers(Teacher(network, compute), seen, StoreLocation(), encoding_of(config, network))
    else:
        answers = find_answers_of(config, data, compute)
    limit, features = config.cache_limit, config.recomputes_x
    return open_for_views(answers, views, config.cache, config.epochs, limit, progress, features)


def _compare_with_teacher(config: StudentConfig, card: Card, seen: Card) -> None:
    """Refuse a teacher that was trained on other random crops than the student's, and report another rendering."""
    assert config.teacher is not None
    crop = "resized" if card.padding is None else "padded"
    trained_on = _crop_of_run(config.teacher, config, card)
    if crop != trained_on:
        what, remedy = (
            f"random crop of the teacher {config.teacher}",
            f"Give --crop {trained_on}, or another --teacher.",
        )
        raise UsageError(problem(what, expected=f"{crop}, as for the student", got=trained_on, remedy=remedy))
    if seen.rendering != card.rendering:
        log.info(
            "images of the student: %s; of its teacher %s: %s",
            *(card.rendering.evaluation, config.teacher, seen.rendering.evaluation),
        )


def _crop_of_run(teacher: Path, config: StudentConfig, card: Card) -> str:
    """Find the random crop of a teacher's training, by default that of the dataset."""
    images = recorded_images(RunFolder(teacher).config_file)
    if crop := images.get("crop"):
        return str(crop)
    dataset = str(images.get("dataset"))
    if dataset in datasets.CARDS or dataset.startswith(FOLDER_PREFIX):
        card = datasets.card_of(dataset)
    elif config.crop is not None:  # the default of a packed file is known after reading it
        card = datasets.read(config.dataset, root=config.data_root).card
    return "resized" if card.padding is None else "padded"
