"""How a teacher's logits are opened: the store for a teacher and a dataset, and the cached teacher in front of it."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdcache import distributed
from kdcache.answers.budget import choose_policy
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.encoding import DEFAULT_ENCODING, LogitEncoding
from kdcache.answers.location import StoreLocation
from kdcache.answers.replay import Replay
from kdcache.answers.space import UNLIMITED, StoreContents
from kdcache.answers.store import IMAGE_SETTINGS, AnswerStore
from kdcache.answers.teacher import Teacher
from kdcache.answers.view_index import CropFlipLookup
from kdcache.compute import Compute
from kdcache.datasets import Dataset
from kdcache.environment import describe_environment
from kdcache.errors import UsageError, problem
from kdcache.models import Network
from kdcache.views import PLAN_VERSION, ViewMaker

__all__ = ["make_cached_teacher", "make_reader", "may_write", "open_answers", "open_store"]

log = logging.getLogger("kdcache")

ProgressCallback = Callable[[int, int], None]
"""Receives how many of how many views have their logits in the store."""


def open_answers(
    network: Network,
    data: Dataset,
    compute: Compute,
    where: str | Path,
    encoding: LogitEncoding | None = None,
    precision: str = "auto",
    image_settings: Mapping[str, Any] | None = None,
) -> tuple[Teacher, AnswerStore]:
    """Make a teacher of a network, and open the store of its logits for the training set, or create it.

    Parameters
    ----------
    network : Network
    data : Dataset
    compute : Compute
    where : str or Path
        Folder or URL of the store.
    encoding : LogitEncoding, optional
        By default that of the store, or `DEFAULT_ENCODING` for a new one.
    precision : str
        With ``auto``, the teacher has the precision of an existing store; otherwise that of `compute`.
    image_settings : mapping, optional
        The settings that say which images `data` has: recorded in a new store, and named where a store has others.

    Raises
    ------
    UsageError
        If the store is for another teacher, dataset, precision, encoding or version of the view plan.
    KdcacheError
        If the store is damaged.
    """
    location = StoreLocation(where)
    store = AnswerStore(location) if location.holds_store() else None
    if store is not None and precision == "auto":
        compute = Compute(compute.device, store.precision)
    encoding = encoding or (store.encoding if store is not None else DEFAULT_ENCODING)
    teacher = Teacher(network, compute)
    if store is None:
        return teacher, open_store(location, teacher, data, encoding, image_settings)
    store.require_fingerprint({**_fingerprint(teacher, data), "dtype": encoding.name}, image_settings)
    return teacher, store


def open_store(
    where: StoreLocation | str | Path,
    teacher: Teacher,
    data: Dataset,
    encoding: LogitEncoding = DEFAULT_ENCODING,
    image_settings: Mapping[str, Any] | None = None,
) -> AnswerStore:
    """Open the store of a teacher's logits for a training set, or create it; see `open_answers`."""
    made_with = {**_made_with(teacher, data), IMAGE_SETTINGS: dict(image_settings or {})}
    return AnswerStore.create_or_open(where, _fingerprint(teacher, data), encoding, made_with)


def _fingerprint(teacher: Teacher, data: Dataset) -> dict[str, Any]:
    """What logits depend on, besides the encoding."""
    return {
        "teacher": teacher.fingerprint,
        "dataset": data.train.fingerprint,
        "rendering": data.card.rendering.evaluation,
        "padding": data.card.padding,
        "plan version": PLAN_VERSION,
        "teacher precision": teacher.compute.precision,
        "samples": len(data.train),
        "classes": data.num_classes,
    }


def _made_with(teacher: Teacher, data: Dataset) -> dict[str, Any]:
    """What a new store records for people."""
    return {
        **describe_environment(teacher.compute),
        "teacher's network": teacher.network.name,
        "dataset's name": data.card.name,
        "forward rows": teacher.rows,
        "fused for inference": teacher.is_fused,
    }


def may_write(location: StoreLocation, cache: str) -> bool:
    """Whether a run with a value of ``--cache`` may write to a store; ``auto`` may not where the place is read-only.

    Raises
    ------
    UsageError
        If the place cannot be written, unless `cache` is ``auto``.
    """
    error = location.write_error()
    if error is None:
        return True
    if cache != "auto":
        what = f"--cache {cache} stores logits in {location.where}, which cannot be written"
        remedy = "Use --cache auto, which keeps nothing there, or name another store with --store."
        raise UsageError(problem(what, got=error, remedy=remedy))
    if distributed.is_main():
        used = "logits in %s are used, and no others are" if location.holds_store() else "no logits in %s are"
        log.info(f"{used} kept, since it cannot be written (%s)", location.where, error)
    return False


def make_cached_teacher(
    teacher: Teacher,
    views: ViewMaker,
    store: AnswerStore,
    cache: str,
    epochs: int,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> CachedTeacher:
    """Make a cached teacher that reads a store and, if it can be written, writes it, see `may_write`.

    Parameters
    ----------
    teacher : Teacher
    views : ViewMaker
    store : AnswerStore
    cache : str
        What to keep and look up, see `kdcache.answers.budget.choose_policy`.
    epochs : int
    limit : int, optional
        Maximum size of the store in bytes, by default `kdcache.answers.space.default_limit`.
    progress : callable, optional
        If x are clean views, their logits are computed here, and their number is reported.
    """
    plan, space = views.plan, StoreContents.of_store(store, limit)
    policy = choose_policy(cache, plan, epochs, space)
    keep = policy.stored_kinds if may_write(store.location, cache) else None
    cached_teacher = CachedTeacher(teacher, views, store=store)
    if plan.crop_flip:
        cached_teacher.replay = Replay(store, plan.seed, plan.kinds, keep, space.limit)
    elif keep:
        for done in cached_teacher.precompute_clean():
            if progress is not None:
                progress(done, plan.samples)
    if policy.indexed:
        cached_teacher.view_index = CropFlipLookup.from_store(store, plan, epochs, space.limit)
    return cached_teacher


def make_reader(teacher: Teacher, views: ViewMaker, store: AnswerStore | None = None) -> CachedTeacher:
    """Make a cached teacher that reads a store, if there is one, and writes nothing.

    If x are clean views, which are the same in every epoch, each one goes through the teacher at most once.
    """
    plan = views.plan
    cached_teacher = CachedTeacher(teacher, views, store=store)
    if not plan.crop_flip and store is not None:
        cached_teacher.view_index = CropFlipLookup.from_store(store, plan, 1, UNLIMITED)
    elif not plan.crop_flip:
        layout = cached_teacher.encoding.layout(cached_teacher.classes)
        cached_teacher.view_index = CropFlipLookup(plan.samples, plan.samples, layout)
    elif store is not None:
        cached_teacher.replay = Replay(store, plan.seed, plan.kinds)
    return cached_teacher
