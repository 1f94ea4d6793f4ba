"""What is worth remembering: the measured thresholds, and the choice that ``--cache`` leaves open."""

import math
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from kdcache.answers.codec import Format
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN, AnswerStore, Replayed, replayed, table_bytes
from kdcache.errors import UsageError, problem
from kdcache.views import Plan

__all__ = [
    "Choice",
    "Room",
    "choose",
    "default_limit",
    "distinct_views",
    "expected_questions",
    "fits_an_index",
    "tables_of",
]

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


@dataclass(frozen=True)
class Room:
    """What a store holds, and what it may hold.

    Parameters
    ----------
    tables : set of str
        Those that are there.
    table_bytes : int
        Size of each table.
    limit : int
        Bytes that all tables may take.
    """

    tables: Set[str]
    table_bytes: int
    limit: int

    @classmethod
    def of(cls, store: AnswerStore, limit: int | None = None) -> Self:
        """Look at a store; without a limit the default one is in force."""
        tables, size = set(store.tables()), store.table_bytes
        if limit is None:
            limit = default_limit(store.place.free_bytes(), len(tables) * size)
        return cls(tables, size, limit)

    @classmethod
    def at(cls, where: str | Path | None, samples: int, classes: int, format: Format, limit: int | None = None) -> Self:
        """Look at the store of a place, which need not be there yet."""
        place = StoreLocation(where)
        if where is not None and place.has("zarr.json"):
            return cls.of(AnswerStore(where), limit)
        limit = default_limit(place.free_bytes(), 0) if limit is None else limit
        return cls(frozenset(), table_bytes(samples, classes, format), limit)

    @property
    def max_tables(self) -> int:
        """How many tables there is room for, those that are there included."""
        return self.limit // self.table_bytes

    def fits(self, wanted: Set[str]) -> bool:
        """Tell whether there is room for some tables beside those that are there."""
        return len(self.tables | wanted) <= self.max_tables


def default_limit(free: int | None, stored: int) -> int:
    """Settle how many bytes a store may take that has so many already, where the disk has so many free."""
    return DEFAULT_LIMIT if free is None else min(DEFAULT_LIMIT, int(FREE_SHARE * (free + stored)))


def distinct_views(plan: Plan, epochs: float, known: float = 0) -> float:
    """Expect how many of a sample's V standard views are new in some epochs: V (1 - (1 - 1/V)^E) if none is known.

    Parameters
    ----------
    plan : Plan
        Of which V is more than 1.
    epochs, known : float
        Epochs to come, and those whose views are known.
    """
    unseen = math.log1p(-1 / plan.standard_views)  # of a share that may be as good as 1
    return plan.standard_views * math.exp(unseen * known) * -math.expm1(unseen * epochs)


def fits_an_index(plan: Plan) -> bool:
    """Whether the index of a plan's standard views is small enough."""
    return 4 * plan.samples * plan.standard_views <= INDEX_BYTES


def choose(cache: str, plan: Plan, epochs: int, room: Room) -> Choice:
    """Settle what a run keeps and looks up.

    Parameters
    ----------
    cache : str
        A word of `kdcache.choices.CACHES`. ``auto`` keeps all views if all of them fit, otherwise none, and opens the
        index if it saves enough questions.
    plan : Plan
    epochs : int
        Of the run.
    room : Room

    Raises
    ------
    UsageError
        Where the standard views are asked for, and are too many for an index.
    """
    if not plan.crop_flip:
        keeps = cache != "off" and room.fits({CLEAN})
        return Choice(frozenset(plan.kinds if keeps else ()), indexed=cache != "off")
    if cache == "standard" and not fits_an_index(plan):
        allowed = f"{INDEX_BYTES // (4 * plan.standard_views)} samples of {plan.standard_views} views each"
        if plan.random_resized:
            allowed = "images whose crops are finitely many, not parts of pictures"
        raise UsageError(problem("--cache standard", expected=allowed, got=plan.samples))
    if cache != "auto":
        keep = {"standard": plan.kinds[:1], "replay": plan.kinds}.get(cache, ())
        return Choice(frozenset(keep), indexed=cache == "standard")
    wanted = tables_of(plan, epochs)
    by_position, by_index = (expected_questions(plan, epochs, room, indexed) for indexed in (False, True))
    worth = by_index > 0 and by_position / by_index >= GAIN
    return Choice(frozenset(plan.kinds if room.fits(wanted) else ()), indexed=worth and fits_an_index(plan))


def expected_questions(plan: Plan, epochs: int, room: Room, indexed: bool) -> float:
    """Expect how many questions about each sample a run asks that looks for its answers in a store.

    Parameters
    ----------
    plan : Plan
    epochs : int
        Of the run.
    room : Room
        With the tables that are there.
    indexed : bool
        Whether standard views are recognised in whichever epoch they came up.
    """
    missing = tables_of(plan, epochs) - room.tables
    if not (indexed and plan.crop_flip):
        return len(missing)
    new_x = len(replayed(missing, "standard"))
    return len(missing) - new_x + distinct_views(plan, new_x, known=len(replayed(room.tables, "standard")))


def tables_of(plan: Plan, epochs: int) -> set[str]:
    """Name the tables that hold every answer of a run."""
    if not plan.crop_flip:
        return {CLEAN}
    return {Replayed(plan.seed, epoch, kind).table for epoch in range(epochs) for kind in plan.kinds}
