"""Teacher forwards and bytes of a study, before anything is trained; a sum over `kdcache.answers.budget`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.answers.budget import choose_policy, teacher_forwards, uncached_forwards
from kdcache.answers.encoding import AnswerEncoding, make_encoding
from kdcache.answers.fingerprint import digest
from kdcache.answers.location import StoreLocation
from kdcache.answers.space import UNLIMITED, StoreContents
from kdcache.cards import CARDS
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.run.find import stores_of
from kdcache.setup import DataSize, data_size, make_plan_for_size, with_epochs
from kdcache.study.planned import PlannedRun, StudyCell, list_runs, sort_by_seed

__all__ = ["SharedStores", "StoreUse", "StudyCost", "run_forwards", "run_size", "study_cost"]


class StoreUse(NamedTuple):
    """Cost of students that share the stores of their teachers: teacher forwards, and bytes of all stores."""

    forwards: int
    stored_bytes: int


@dataclass(frozen=True)
class StudyCost:
    """Cost of a whole study.

    Attributes
    ----------
    uncached : int
        Teacher forwards of all runs without a store.
    without_store : int
        Teacher forwards, among `uncached`, of students that may not use a store, or whose losses read the teacher's
        features or vectors: an upper limit, since vectors that fit are stored.
    shared : StoreUse
        Of the other students, if the stores hold everything.
    limited : StoreUse
        Of the other students, within ``--cache-limit``.
    """

    uncached: int
    without_store: int
    shared: StoreUse
    limited: StoreUse


def study_cost(cells: Sequence[StudyCell]) -> StudyCost:
    """Count the teacher forwards and bytes of a study.

    How many crop-and-flip views recur is expected, not counted. Datasets with a name are not read.
    """
    runs = list_runs(cells)
    return StudyCost(
        uncached=sum(map(run_forwards, runs)),
        without_store=sum(run_forwards(run) for run in runs if run.teacher is not None and not uses_store(run)),
        shared=_shared(runs, UNLIMITED),
        limited=_shared(runs),
    )


def run_size(run: PlannedRun) -> DataSize:
    """Find the size of the data of a run, from the dataset's card if it has one."""
    known = run.config.dataset in CARDS
    return data_size(run.config, approximate=True) if known else _size_of_own(run.data_config)


@cache  # many runs read the same images
def _size_of_own(config: TrainingConfig) -> DataSize:
    return data_size(config)


def uses_store(run: PlannedRun) -> bool:
    """Tell whether a student with a teacher can use a store."""
    config = run.config
    if not isinstance(config, StudentConfig) or config.cache == "off":
        return False
    return not config.needs_features and (config.store_format == "vectors" or not config.needs_vectors)


def run_forwards(run: PlannedRun) -> int:
    """Teacher forwards of a run without a store; a teacher's run computes the logits of the clean images."""
    size = run_size(run)
    if not isinstance(run.config, StudentConfig):
        return size.samples
    if not run.config.needs_teacher:
        return 0
    config = with_epochs(run.config, size.samples)
    return uncached_forwards(make_plan_for_size(config, size.samples, size.card), config.epochs)


class SharedStores:
    """The stores of a study's teachers, while its students are trained.

    Parameters
    ----------
    limit : int, optional
        Maximum size of the stores of each teacher in bytes, by default that of the runs.
    empty : bool
        Whether the stores start with clean views only, or as they are on the disk.
    """

    def __init__(self, limit: int | None, empty: bool) -> None:
        self.limit, self.empty = limit, empty
        self.spaces: dict[Path, dict[str, StoreContents]] = {}

    def train(self, run: PlannedRun) -> int:
        """Account for a student's training: its teacher forwards."""
        size = run_size(run)
        config = with_epochs(run.config, size.samples)
        assert isinstance(config, StudentConfig)
        assert run.teacher is not None
        plan = make_plan_for_size(config, size.samples, size.card)
        width = _vector_width(run.teacher, size) if config.keeps_vectors else None
        encoding = make_encoding(config.store_dtype, config.topk, width)
        of_teacher = self.spaces.setdefault(run.teacher.path, {})
        images = config.image_settings
        if (seen := run.teacher.config.image_size) not in (None, size.card.image_size):
            images |= {"image_size": seen}  # as the store records it
        key = digest({"format": encoding.name, **images})
        if key not in of_teacher:
            limit = config.cache_limit if self.limit is None else self.limit
            of_teacher[key] = self._contents(run.teacher.path, size, encoding, limit, images)
        others = sum(space.size for other, space in of_teacher.items() if other != key)
        space = replace(of_teacher[key], others=others)
        policy = choose_policy(config.cache, plan, config.epochs, space)
        of_teacher[key] = space.after_run(plan, config.epochs, policy.stored_kinds)
        return round(teacher_forwards(plan, config.epochs, space, policy.indexed))

    def _contents(
        self, teacher: Path, size: DataSize, encoding: AnswerEncoding, limit: int | None, images: Mapping[str, Any]
    ) -> StoreContents:
        """Find what is stored for some images, by the settings that chose them: they are not read."""
        stores = stores_of(teacher)
        facts = {"samples": size.samples, "classes": size.classes, "dtype": encoding.name}
        found = [one for one in stores.open() if _given(one.image_settings) == _given(images) and one.has_facts(facts)]
        if found and not self.empty:
            return replace(StoreContents.of_store(found[0], limit), has_clean=True)
        location = StoreLocation(stores.folder)
        return replace(
            StoreContents.of_new_store(location, size.samples, size.classes, encoding, limit), has_clean=True
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes of all stores, without the clean views."""
        spaces = [space for of_teacher in self.spaces.values() for space in of_teacher.values()]
        return sum(replace(space, has_clean=False).size for space in spaces)


def _vector_width(teacher: PlannedRun, size: DataSize) -> int:
    """Length of the vectors of a teacher, which need not be trained."""
    from kdcache.models.sizes import vector_width

    return vector_width(str(teacher.config.model), size.classes, teacher.config.image_size or size.card.image_size)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _shared(runs: Iterable[PlannedRun], limit: int | None = None) -> StoreUse:
    """Add up the students that share stores, in the order in which they are trained."""
    stores = SharedStores(limit, empty=True)
    forwards = sum(stores.train(run) for run in sort_by_seed(runs) if run.teacher is not None and uses_store(run))
    return StoreUse(forwards, stores.stored_bytes)
