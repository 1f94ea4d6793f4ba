"""The stores of the teacher of a student's config: where they are, what they keep and hold, and whether it is right."""

from __future__ import annotations  # so that what is stored can be counted without torch

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.answers.encoding import make_encoding
from kdcache.choices import PRECISIONS
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset
from kdcache.errors import UsageError, problem
from kdcache.extensions import require_trusted
from kdcache.run.find import stores_of, teacher_network
from kdcache.run.folder import FinishedRun, RunFolder
from kdcache.run_data import require_unlabelled
from kdcache.setup import DataSize, load_data
from kdcache.views.plan import ViewPlan

if TYPE_CHECKING:
    from kdcache.answers.encoding import AnswerEncoding
    from kdcache.answers.find import Answers
    from kdcache.answers.space import StoreContents
    from kdcache.answers.store import AnswerStore
    from kdcache.answers.verify import TableCheck
    from kdcache.compute import Compute
    from kdcache.models import Network

__all__ = [
    "encoding_name",
    "encoding_of",
    "find_answers_of",
    "possible_encodings",
    "stored_contents",
    "verify_store",
]


def encoding_of(config: StudentConfig, network: Network) -> AnswerEncoding:
    """Make the encoding of what a student's config keeps of a teacher's answers.

    Raises
    ------
    UsageError
        If the network has no vectors from which its logits follow, or not more than ``topk`` classes.
    """
    width = network.linear_head().in_features if config.keeps_vectors else None
    encoding = make_encoding(config.store_dtype, config.topk, width)
    encoding.layout(network.num_classes)  # raises for a topk that does not fit
    return encoding


def possible_encodings(config: StudentConfig) -> tuple[AnswerEncoding, AnswerEncoding | None]:
    """Make the encoding of what a student's config keeps, and the other: vectors instead of logits, or the reverse.

    The other one is ``None`` where the teacher has no vectors from which its logits follow, or is not known.

    Raises
    ------
    UsageError
        If vectors are to be kept, and there are none.
    """
    if config.teacher is None:
        if config.keeps_vectors:
            remedy = "Name it with --teacher, or count logits with --store-format logits."
            raise UsageError(problem("vectors are those of a teacher", expected="--teacher", got="none", remedy=remedy))
        return make_encoding(config.store_dtype, config.topk), None
    from kdcache.models import checkpoint

    network, other = checkpoint.load(teacher_network(config)), None
    encoding = encoding_of(config, network)
    if config.keeps_vectors:
        other = make_encoding(config.store_dtype)
    else:
        with suppress(UsageError):
            other = make_encoding(config.store_dtype, width=network.linear_head().in_features)
    return encoding, other


def encoding_name(config: StudentConfig) -> str:
    """Name of the encoding of what a student's config keeps, which does not depend on the network."""
    return make_encoding(config.store_dtype, config.topk, 1 if config.keeps_vectors else None).name


def find_answers_of(config: StudentConfig, data: Dataset, compute: Compute) -> Answers:
    """Find the store of the logits of a student's teacher, see `kdcache.answers.find.find_answers`."""
    from kdcache.answers.find import find_answers
    from kdcache.compute import Compute
    from kdcache.models.checkpoint import rendering_of
    from kdcache.models.load import trained_network
    from kdcache.run.checkpoint import recorded_environment

    assert config.teacher is not None
    file, images = teacher_network(config), config.image_settings
    seen = data.rendered(rendering_of(file))
    if seen is not data:
        images |= {"image_size": seen.image_size}
    where, network = config.store or stores_of(config.teacher), trained_network(file, seen)
    precision = config.precision
    if precision == "auto" and config.resume and config.out is not None:  # there may be other stores by now
        recorded = recorded_environment(RunFolder(config.out)).get("origin", {}).get("teacher precision")
        if recorded in PRECISIONS:
            precision, compute = recorded, Compute(compute.device, recorded)
    return find_answers(network, seen, compute, where, encoding_of(config, network), precision, images)


def stored_contents(config: StudentConfig, size: DataSize, plan: ViewPlan, encoding: AnswerEncoding) -> StoreContents:
    """Find what is stored of the logits that a student needs, and the space for more.

    The images are read only if there is a store, which may be for others.
    """
    from kdcache.answers.location import StoreLocation
    from kdcache.answers.space import StoreContents

    stores = stores_of(config.teacher) if config.teacher else None
    location = StoreLocation(config.store or (stores.folder if stores else None))
    if not (location.holds_store() if config.store else stores and any(stores.find())):
        return StoreContents.of_new_store(location, size.samples, size.classes, encoding, config.cache_limit)
    if config.teacher is None:
        raise UsageError(problem(f"--store {config.store}", expected="the teacher of the store", got="no --teacher"))
    from kdcache.compute import Compute

    data = load_data(config)
    answers = find_answers_of(config, data, Compute.choose(config.device, config.precision))
    space = answers.space(config.cache_limit, read_commits=True)
    return space if plan.crop_flip else replace(space, clean_beside=answers.clean_beside())


def verify_store(
    run: FinishedRun,
    store: AnswerStore,
    samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dataset: str | None = None,
    data_root: Path | None = None,
    unlabelled: str | None = None,
) -> Iterator[TableCheck]:
    """Verify a store of the logits of a teacher's run, see `kdcache.answers.verify.verify`.

    The images are those that the store is for, which may have been moved to another `dataset` or `data_root`, those
    without labels to `unlabelled`.
    """
    from kdcache.answers.find import find_answers
    from kdcache.answers.verify import verify
    from kdcache.compute import Compute

    images, known = run.config.image_settings, store.image_settings
    images |= {name: known[name] for name in StudentConfig.image_setting_names() if name in known}
    if unlabelled is not None:
        require_unlabelled(images.get("unlabelled") is not None, store.location.where)
    places = {"dataset": dataset, "data_root": data_root, "unlabelled": unlabelled}
    images |= {name: place for name, place in places.items() if place is not None}
    if dataset is None:
        require_trusted("dataset", images["dataset"])  # the store named it, not the user
    config = StudentConfig.load(**images)
    data = load_data(config)
    network = _network_of(run, store, data)
    data = data.rendered(network.rendering)
    where, compute = store.location.where, Compute.choose(device)
    teacher = find_answers(network, data, compute, where, image_settings=config.image_settings).teacher
    yield from verify(store, teacher, data.train, data.card.padding, samples, seed)


def _network_of(run: FinishedRun, store: AnswerStore, data: Dataset) -> Network:
    """Load the network of a run whose logits a store holds: that of the best epoch, if it is that, else the last."""
    from kdcache.models.checkpoint import fingerprint
    from kdcache.models.load import trained_network

    if run.best_network_file.is_file():
        best = trained_network(run.best_network_file, data)
        if fingerprint(best) == store.fingerprint.get("teacher"):
            return best
    return trained_network(run.network_file, data)
