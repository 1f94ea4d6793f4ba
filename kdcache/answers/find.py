"""Where the logits of a teacher for a training set are stored, and what they depend on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from kdcache.answers.clean_views import find_clean_views, known_clean_views
from kdcache.answers.encoding import DEFAULT_ENCODING, AnswerEncoding, EncodedAnswers
from kdcache.answers.fingerprint import clean_facts
from kdcache.answers.location import StoreLocation
from kdcache.answers.space import StoreContents, stored_bytes
from kdcache.answers.store import CLEAN, IMAGE_SETTINGS, AnswerStore
from kdcache.answers.teacher import Teacher
from kdcache.answers.teacher_stores import TeacherStores
from kdcache.compute import Compute
from kdcache.datasets import Dataset
from kdcache.datasets.split import DECODING
from kdcache.environment import describe_environment
from kdcache.models import Network, checkpoint
from kdcache.views import PLAN_VERSION

__all__ = ["Answers", "find_answers", "image_facts", "open_store"]


@dataclass(frozen=True)
class Answers:
    """A teacher, and where its logits for a training set are stored.

    Parameters
    ----------
    teacher : Teacher
    data : Dataset
        As the teacher sees it.
    location : StoreLocation
    encoding : AnswerEncoding
    store : AnswerStore, optional
        The one in `location`, if it exists.
    beside : sequence of AnswerStore
        The other stores of the teacher; empty for a store that was named.
    unreadable_bytes : int
        Of stores of the teacher that cannot be read.
    image_settings : mapping
        The settings that say which images `data` has.
    read_only : bool
        Whether nothing is added, even where that would be possible.
    """

    teacher: Teacher
    data: Dataset
    location: StoreLocation
    encoding: AnswerEncoding
    store: AnswerStore | None = None
    beside: Sequence[AnswerStore] = ()
    unreadable_bytes: int = 0
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    read_only: bool = False

    @classmethod
    def of_store(cls, teacher: Teacher, data: Dataset, store: AnswerStore) -> Self:
        """Use one store of a teacher alone."""
        return cls(teacher, data, store.location, store.encoding, store)

    def created(self) -> Self:
        """Create the store, if it does not exist; see `open_store`."""
        store = open_store(self.location, self.teacher, self.data, self.encoding, self.image_settings)
        return replace(self, store=store)

    def space(self, limit: int | None = None, read_commits: bool = False) -> StoreContents:
        """Read what is stored, see `StoreContents.of_store`."""
        others = sum(map(stored_bytes, self.beside)) + self.unreadable_bytes
        if self.store is not None:
            return StoreContents.of_store(self.store, limit, others, read_commits)
        samples, classes = len(self.data.train), self.data.num_classes
        return StoreContents.of_new_store(self.location, samples, classes, self.encoding, limit, others)

    def clean_beside(self) -> np.ndarray:
        """Tell of which images of the training set the stores beside it hold the clean views: bool (N,)."""
        return known_clean_views(self.with_clean_views, self.data.train.image_digests())

    def clean_views(self) -> Iterator[tuple[np.ndarray, EncodedAnswers]]:
        """Read the logits of clean views: those in the store, and what it lacks from the stores beside it.

        Yields
        ------
        samples : ndarray of int64
        columns : EncodedAnswers
            A row for each sample.
        """
        missing = np.ones(len(self.data.train), bool)
        if self.store is not None:
            table = self.store.table(CLEAN)
            for chunk, rows in enumerate(table.chunks):  # one at a time: all of them may not fit into memory
                columns = table.read(chunk)
                if columns is not None:
                    missing[rows.start : rows.stop] = False
                    yield np.arange(rows.start, rows.stop), columns
        if missing.any() and (others := self.with_clean_views):
            wanted = np.flatnonzero(missing)
            for samples, columns in find_clean_views(others, self.data.train.image_digests()[wanted]):
                yield wanted[samples], columns

    @property
    def with_clean_views(self) -> list[AnswerStore]:
        """The stores beside it whose logits of clean views depend on the same facts, besides the set of images."""
        if not self.beside:
            return []
        facts = clean_facts(_fingerprint(self.teacher, self.data, self.encoding))
        return [store for store in self.beside if clean_facts(store.fingerprint) == facts]


def find_answers(
    network: Network,
    data: Dataset,
    compute: Compute,
    where: TeacherStores | str | Path,
    encoding: AnswerEncoding | None = None,
    precision: str = "auto",
    image_settings: Mapping[str, Any] | None = None,
) -> Answers:
    """Make a teacher of a network, and find the store of its logits for the training set; nothing is written.

    Parameters
    ----------
    network : Network
    data : Dataset
    compute : Compute
    where : TeacherStores, str or Path
        The stores of the teacher, or one store: a folder or URL.
    encoding : AnswerEncoding, optional
        By default that of a store that is named, or else `DEFAULT_ENCODING`.
    precision : str
        With ``auto``, the teacher has the precision of an existing store; otherwise that of `compute`.
    image_settings : mapping, optional
        The settings that say which images `data` has: named where a store has others.

    Raises
    ------
    UsageError
        If a store that is named is for another teacher, dataset, precision, encoding or version of the view plan.
    KdcacheError
        If the store is damaged.
    """
    if isinstance(where, TeacherStores):
        stores, encoding = where.find(), encoding or DEFAULT_ENCODING
        found, unreadable_bytes = stores.readable(), stores.unreadable_bytes
        if precision == "auto":
            facts = {"teacher": checkpoint.fingerprint(network), **image_facts(data, encoding.name)}
            precision = _precision(found, facts, compute.precision)
            compute = Compute(compute.device, precision)
        teacher = Teacher(network, compute)
        location = StoreLocation(where.place(_fingerprint(teacher, data, encoding)))
        store = AnswerStore(location) if location.holds_store() else None
    else:
        location = StoreLocation(where)
        found, unreadable_bytes, store = [], 0, AnswerStore(location) if location.holds_store() else None
        if store is not None and precision == "auto":
            compute = Compute(compute.device, store.precision)
        encoding = encoding or (store.encoding if store is not None else DEFAULT_ENCODING)
        teacher = Teacher(network, compute)
    fingerprint = _fingerprint(teacher, data, encoding)
    if store is not None:
        store.require_fingerprint(fingerprint, image_settings)
    beside = [one for one in found if one.location.folder != location.folder]
    return Answers(teacher, data, location, encoding, store, beside, unreadable_bytes, image_settings or {})


def _precision(stores: Sequence[AnswerStore], facts: Mapping[str, Any], own: str) -> str:
    """Choose the precision of a teacher: as in its stores for these images, or else for others, if there are any."""
    for wanted in (facts, clean_facts(facts)):
        precisions = [store.precision for store in stores if store.has_facts(wanted)]
        if precisions:
            return own if own in precisions else precisions[0]
    return own


def open_store(
    where: StoreLocation | str | Path,
    teacher: Teacher,
    data: Dataset,
    encoding: AnswerEncoding = DEFAULT_ENCODING,
    image_settings: Mapping[str, Any] | None = None,
) -> AnswerStore:
    """Open the store of a teacher's logits for a training set, or create it.

    Parameters
    ----------
    where : StoreLocation, str or Path
    teacher : Teacher
    data : Dataset
    encoding : AnswerEncoding
    image_settings : mapping, optional
        The settings that say which images `data` has: recorded in a new store.

    Raises
    ------
    UsageError, KdcacheError
        See `find_answers`.
    """
    made_with = {
        **describe_environment(teacher.compute),
        "teacher's network": teacher.network.name,
        "dataset's name": data.card.name,
        "image size": data.image_size,
        "forward rows": teacher.rows,
        "fused for inference": teacher.is_fused,
        IMAGE_SETTINGS: dict(image_settings or {}),
    }
    return AnswerStore.create_or_open(where, _fingerprint(teacher, data, encoding), encoding, made_with)


def image_facts(data: Dataset, encoding: str) -> dict[str, Any]:
    """What answers depend on, besides the teacher and the precision of its forwards; `encoding` is a name."""
    return {
        "dataset": data.train.fingerprint,
        "decoding": DECODING,
        "rendering": data.card.rendering.evaluation,
        "padding": data.card.padding,
        "plan version": PLAN_VERSION,
        "samples": len(data.train),
        "classes": data.num_classes,
        "dtype": encoding,
    }


def _fingerprint(teacher: Teacher, data: Dataset, encoding: AnswerEncoding) -> dict[str, Any]:
    of_teacher = {"teacher": teacher.fingerprint, "teacher precision": teacher.compute.precision}
    return {**of_teacher, **image_facts(data, encoding.name)}
