"""How the logits of a teacher are opened: the cached teacher in front of a store."""

import logging
from collections.abc import Callable
from dataclasses import replace

from kdcache import distributed
from kdcache.answers.budget import choose_policy
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.encoding import Vectors
from kdcache.answers.find import Answers
from kdcache.answers.head import write_head
from kdcache.answers.location import StoreLocation
from kdcache.answers.replay import Replay
from kdcache.answers.space import StoreContents, stored_bytes
from kdcache.answers.view_index import CropFlipLookup
from kdcache.errors import UsageError, problem
from kdcache.views import Views

__all__ = ["make_cached_teacher", "make_reader", "may_write", "open_for_views"]

log = logging.getLogger("kdcache")

ProgressCallback = Callable[[int, int], None]
"""Receives how many of how many views have their logits in the store."""


def open_for_views(
    answers: Answers,
    views: Views,
    cache: str,
    epochs: int = 1,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
    features: bool = False,
) -> CachedTeacher:
    """Open the cached teacher that answers the batches of some views.

    The teacher sees the pictures in its own rendering, which may differ from that of the views.

    Parameters
    ----------
    answers : Answers
    views : Views
    cache, epochs, limit, progress
        See `make_cached_teacher`; with ``off`` nothing is looked up or stored.
    features : bool
        Whether the teacher's features are needed, for which it sees every x.

    Raises
    ------
    UsageError
        If the views have another size than the teacher's images, so that boxes would cover other shares.
    """
    network = answers.teacher.network
    if views.plan.image_size != network.image_size:
        what = "image size of the view plan, which is that of the teacher"
        raise UsageError(problem(what, expected=network.image_size, got=views.plan.image_size))
    seen = views.rendered(network.rendering)
    if cache == "off":
        cached_teacher = CachedTeacher(answers.teacher, seen, encoding=answers.encoding)
    elif answers.read_only or (answers.store is None and not may_write(answers.location, cache)):
        cached_teacher = make_reader(answers, seen)
    else:
        cached_teacher = make_cached_teacher(answers.created(), seen, cache, epochs, limit, progress)
    if seen is not views:
        cached_teacher.serve(views, features)
    return cached_teacher


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
    answers: Answers,
    views: Views,
    cache: str,
    epochs: int,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> CachedTeacher:
    """Make a cached teacher that reads a store and, if it can be written, writes it, see `may_write`.

    Parameters
    ----------
    answers : Answers
        With a store.
    views : Views
    cache : str
        What to keep and look up, see `kdcache.answers.budget.choose_policy`.
    epochs : int
    limit : int, optional
        Maximum size of all stores of the teacher in bytes, by default `kdcache.answers.space.default_limit`.
    progress : callable, optional
        If x are clean views, their logits are computed here, and their number is reported.
    """
    assert answers.store is not None
    plan, store, space = views.plan, answers.store, answers.space(limit)
    policy = choose_policy(cache, plan, epochs, space)
    if cache == "auto" and not policy.stored_kinds and replace(space, others=0).fits(plan, epochs):
        _say_full(space)
    keep = policy.stored_kinds if may_write(store.location, cache) else None
    if isinstance(store.encoding, Vectors) and keep is not None:
        write_head(store, answers.teacher.head)
    replay = view_index = None
    if plan.crop_flip:
        replay = Replay(store, plan.seed, plan.kinds, keep, space.own_limit)
        if policy.indexed:
            index_bytes = max(space.own_limit, stored_bytes(store))  # whatever the other stores take
            view_index = CropFlipLookup.from_store(store, plan, epochs, index_bytes)
    elif policy.indexed:
        view_index = _clean_index(answers, views)
    cached_teacher = CachedTeacher(answers.teacher, views, store=store, replay=replay, view_index=view_index)
    if not plan.crop_flip and policy.indexed and keep:
        for done in cached_teacher.precompute_clean():
            if progress is not None:
                progress(done, plan.samples)
    return cached_teacher


def _say_full(space: StoreContents) -> None:
    from rich.filesize import decimal

    if distributed.is_main():
        limit, others = decimal(space.limit), decimal(space.others)
        log.info("no more logits are kept: the limit is %s, and the other stores of the teacher take %s", limit, others)


def make_reader(answers: Answers, views: Views) -> CachedTeacher:
    """Make a cached teacher that reads what is stored, if anything is, and writes nothing.

    If x are clean views, which are the same in every epoch, each one goes through the teacher at most once.
    """
    plan, store = views.plan, answers.store
    return CachedTeacher(
        answers.teacher,
        views,
        store=store,
        replay=Replay(store, plan.seed, plan.kinds) if plan.crop_flip and store is not None else None,
        view_index=None if plan.crop_flip else _clean_index(answers, views),
        encoding=answers.encoding,
    )


def _clean_index(answers: Answers, views: Views) -> CropFlipLookup:
    """Make an index with the clean views that are stored, and with room for the others."""
    samples, keys, folder = views.plan.samples, views.plan.clean_keys(), answers.location.folder
    layout = answers.encoding.layout(answers.teacher.network.num_classes)
    index = CropFlipLookup(samples, samples, layout, folder.parent if folder else None)
    for found, columns in answers.clean_views():
        index.add(keys[found], columns)
    return index
