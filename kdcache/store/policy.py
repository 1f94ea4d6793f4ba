"""What is worth remembering: the measured thresholds, and the choice that ``--cache`` leaves open."""

from collections.abc import Set
from typing import NamedTuple

from kdcache.errors import UsageError, fault
from kdcache.store.answers import CLEAN, Replayed, replayed
from kdcache.store.place import Place
from kdcache.views import Plan

__all__ = ["Choice", "choose", "distinct_views", "fits_an_index", "room"]

DEFAULT_LIMIT = 10 * 10**9
"""Bytes that a store may take where nothing else is asked for, if that is not more than"""

FREE_SHARE = 0.1
"""of the disk's room that is free or that the store has already."""

INDEX_BYTES = 256 * 2**20
"""Memory that the index of the standard views may take: four bytes for each view of each sample."""

GAIN = 1.5
"""How many times fewer questions there must be for `auto` to open the index: reading it takes time too."""


class Choice(NamedTuple):
    """What a run adds to a store, and how it looks up x.

    Attributes
    ----------
    keep : set of str
        The kinds of views whose answers are added by position. Those that are there are used in any case.
    indexed : bool
        Whether standard views are recognised in whichever epoch they came up.
    """

    keep: Set[str]
    indexed: bool


def room(limit: int | None, place: Place, stored: int) -> int:
    """Settle how many bytes a store may take that has so many already."""
    free = place.free_bytes()
    if limit is not None:
        return limit
    return DEFAULT_LIMIT if free is None else min(DEFAULT_LIMIT, int(FREE_SHARE * (free + stored)))


def distinct_views(plan: Plan, epochs: float, known: float = 0) -> float:
    """Expect how many of a sample's V standard views are new in some epochs: V (1 - (1 - 1/V)^E) if none is known.

    Parameters
    ----------
    plan : Plan
    epochs, known : float
        Epochs to come, and those whose views are known.
    """
    unseen = 1 - 1 / plan.standard_views
    return plan.standard_views * unseen**known * (1 - unseen**epochs)


def fits_an_index(plan: Plan) -> bool:
    """Whether the index of a plan's standard views is small enough."""
    return 4 * plan.samples * plan.standard_views <= INDEX_BYTES


def choose(cache: str, plan: Plan, epochs: int, existing: Set[str], table_bytes: int, limit: int) -> Choice:
    """Settle what a run keeps and looks up.

    Parameters
    ----------
    cache : str
        A word of `kdcache.words.CACHES`. ``auto`` keeps all views if all of them fit, otherwise none, and opens the
        index if it saves enough questions.
    plan : Plan
    epochs : int
        Of the run.
    existing : set of str
        Tables that the store has already.
    table_bytes : int
        Size of each table.
    limit : int
        Bytes that the store may take.

    Raises
    ------
    UsageError
        Where the standard views are asked for, and are too many for an index.
    """
    if not plan.crop_flip:
        fits = len(existing | {CLEAN}) * table_bytes <= limit
        return Choice(frozenset(plan.kinds if fits and cache != "off" else ()), indexed=cache != "off")
    if cache == "standard" and not fits_an_index(plan):
        allowed = f"{INDEX_BYTES // (4 * plan.standard_views)} samples of {plan.standard_views} views each"
        raise UsageError(fault("--cache standard", allowed=allowed, given=plan.samples))
    if cache != "auto":
        keep = {"standard": plan.kinds[:1], "replay": plan.kinds}.get(cache, ())
        return Choice(frozenset(keep), indexed=cache == "standard")
    wanted = {Replayed(plan.seed, epoch, kind).table for epoch in range(epochs) for kind in plan.kinds}
    fits = len(existing | wanted) * table_bytes <= limit
    # Questions that replay alone would leave, and those of them that the index would leave.
    missing = wanted - existing
    new_x = len(replayed(missing, "standard"))
    left = len(missing) - new_x + distinct_views(plan, new_x, known=len(replayed(existing, "standard")))
    worth = left > 0 and len(missing) / left >= GAIN
    return Choice(frozenset(plan.kinds if fits else ()), indexed=worth and fits_an_index(plan))
