"""The account of teacher forwards and bytes: what runs cost with and without a store, and what ``--cache`` keeps.

It is exact for views that a store holds. How many crop-and-flip views recur in the epochs to come is either expected or
counted from the plan, which is slower. Nothing here imports torch.
"""

import math
from collections.abc import Set
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kdcache.answers.space import StoreContents
from kdcache.answers.store import CLEAN, ReplayTableName
from kdcache.errors import UsageError, problem
from kdcache.views.plan import STANDARD, ViewPlan

__all__ = [
    "CacheCost",
    "CachePolicy",
    "choose_policy",
    "compare_caches",
    "count_new_views",
    "expected_new_views",
    "index_fits",
    "require_space",
    "teacher_forwards",
    "uncached_forwards",
]

MAX_INDEX_BYTES = 256 * 2**20
"""Memory limit of a crop-and-flip index, which takes four bytes for each view of each sample."""

MIN_INDEX_GAIN = 1.5
"""`auto` uses the index if it reduces the teacher forwards by this factor: reading it takes time too."""


class CachePolicy(NamedTuple):
    """What a run adds to a store, and how it looks up x.

    Attributes
    ----------
    stored_kinds : set of str
        Kinds of views for which replay tables are added. Existing tables are used in any case.
    indexed : bool
        Whether x is looked up by crop and flip, in whichever epoch it came up.
    """

    stored_kinds: Set[str]
    indexed: bool


def index_fits(plan: ViewPlan) -> bool:
    """Tell whether the crop-and-flip index of a plan is small enough."""
    return 4 * plan.samples * plan.standard_views <= MAX_INDEX_BYTES


def choose_policy(cache: str, plan: ViewPlan, epochs: int, space: StoreContents) -> CachePolicy:
    """Decide what a run keeps and looks up.

    Parameters
    ----------
    cache : str
        Value of ``--cache``, see `kdcache.choices.CACHES`. ``auto`` keeps all views or none, depending on whether all
        of them fit, and uses the index if it saves enough teacher forwards.
    plan : ViewPlan
    epochs : int
    space : StoreContents

    Raises
    ------
    UsageError
        If ``standard`` needs an index that is too large.
    """
    if not plan.crop_flip:
        keep = plan.kinds if cache != "off" and space.fits(plan, epochs) else ()
        return CachePolicy(frozenset(keep), indexed=cache != "off")
    if cache == "standard" and not index_fits(plan):
        most = MAX_INDEX_BYTES // (4 * plan.standard_views)
        expected, got = f"at most {most} samples with {plan.standard_views} views each", f"{plan.samples} samples"
        if plan.random_resized:
            expected, got = "padded crops", "random resized crops, which do not recur"
        raise UsageError(problem("--cache standard", expected=expected, got=got, remedy="Use --cache replay."))
    if cache != "auto":
        keep = {"standard": plan.kinds[:1], "replay": plan.kinds}.get(cache, ())
        return CachePolicy(frozenset(keep), indexed=cache == "standard")
    by_position, by_index = (teacher_forwards(plan, epochs, space, indexed) for indexed in (False, True))
    saves_enough = by_index > 0 and by_position / by_index >= MIN_INDEX_GAIN
    keep = plan.kinds if space.fits(plan, epochs) else ()
    return CachePolicy(frozenset(keep), indexed=saves_enough and index_fits(plan))


def require_space(cache: str, plan: ViewPlan, epochs: int, space: StoreContents) -> None:
    """Raise a `UsageError` if ``--cache`` or ``--cache-limit`` leave nothing to precompute."""
    from rich.filesize import decimal

    if cache == "off" or (cache == "clean" and plan.crop_flip):
        choices = "auto, standard or replay" if plan.crop_flip else "auto or clean"
        raise UsageError(problem("--cache", expected=f"{choices}, which store logits of these views", got=cache))
    if choose_policy(cache, plan, epochs, space).stored_kinds and space.max_tables:
        return
    if space.max_tables:
        needed, remedy = space.table_bytes * len(plan.kinds) * epochs, "Use --cache replay to store a part."
    else:
        needed, remedy = space.table_bytes, None
    expected = f"at least {decimal(needed + space.others)}"
    if space.others:
        expected += f", since the other stores of the teacher take {decimal(space.others)}"
        remedy = remedy or "Delete logits with 'kdcache cache prune', or the folder of one, see 'kdcache cache info'."
    raise UsageError(problem("--cache-limit", expected=expected, got=decimal(space.limit), remedy=remedy))


MissingRows = dict[int, np.ndarray | None]
"""By epoch, the positions of the views that are not stored; ``None`` for all positions."""


def uncached_forwards(plan: ViewPlan, epochs: int) -> int:
    """Teacher forwards of a run without a store."""
    return plan.samples * epochs * len(plan.kinds)


def teacher_forwards(
    plan: ViewPlan, epochs: int, space: StoreContents, indexed: bool, exact: bool = False, features: bool = False
) -> float:
    """Teacher forwards of a run that uses a store.

    Parameters
    ----------
    plan : ViewPlan
    epochs : int
    space : StoreContents
        Before the run.
    indexed : bool
        See `CachePolicy`.
    exact : bool
        Whether the crop-and-flip views that recur are counted from the plan. By default their number is expected.
    features : bool
        Whether the teacher's features are needed, for which every x goes through the teacher in every epoch.
    """
    if not plan.crop_flip:
        return space.missing_clean(plan) + (plan.samples * epochs if features else 0)
    forwards = float(plan.samples * epochs) if features else 0.0
    for kind in plan.kinds[1:] if features else plan.kinds:
        rows = _missing_rows(plan, epochs, space, kind)
        if not (indexed and kind == STANDARD):
            forwards += _num_rows(plan, rows)
        elif exact:
            forwards += count_new_views(plan, rows, space)
        else:
            known = sum(len(stored) for (_, kind), stored in space.replay.items() if kind == STANDARD)
            forwards += plan.samples * expected_new_views(plan, _num_rows(plan, rows) / plan.samples, known)
    return forwards


def _missing_rows(plan: ViewPlan, epochs: int, space: StoreContents, kind: str) -> MissingRows:
    rows: MissingRows = dict.fromkeys(space.missing_epochs(plan, epochs, kind))
    for path, committed in space.incomplete.items():
        name = ReplayTableName.parse(path)
        if name and (name.seed, name.kind) == (plan.seed, kind) and name.epoch < epochs:
            rows[name.epoch] = np.flatnonzero(~committed)
    return rows


def _num_rows(plan: ViewPlan, rows: MissingRows) -> int:
    return sum(plan.samples if positions is None else len(positions) for positions in rows.values())


def expected_new_views(plan: ViewPlan, epochs: float, known: float = 0) -> float:
    """Expected number of a sample's V crop-and-flip views that are new in some epochs: V (1 - (1 - 1/V)^E).

    Parameters
    ----------
    plan : ViewPlan
        With V > 1.
    epochs : float
        E.
    known : float
        Number of earlier epochs whose views are known.
    """
    log_unseen = math.log1p(-1 / plan.standard_views)  # of one epoch; 1/V may be tiny
    return plan.standard_views * math.exp(log_unseen * known) * -math.expm1(log_unseen * epochs)


def count_new_views(plan: ViewPlan, rows: MissingRows, space: StoreContents | None = None) -> int:
    """Count the crop-and-flip views at some positions of some epochs that do not recur, and are not in a store."""
    known = np.zeros(plan.samples * plan.standard_views, bool)
    if space is not None and rows:
        _mark_stored_views(known, plan, space)
    count = 0
    for epoch, positions in sorted(rows.items()):
        keys = _view_keys(plan, epoch, positions)
        new = keys[~known[keys]]
        known[new] = True
        count += len(new)
    return count


def _mark_stored_views(known: np.ndarray, plan: ViewPlan, space: StoreContents) -> None:
    """Mark the crop-and-flip views that a store holds from any epoch of any view seed, or as clean views."""
    if space.has_clean:
        known[plan.clean_keys()[space.incomplete.get(CLEAN, slice(None))]] = True
    for (seed, kind), epochs in space.replay.items():
        for epoch in epochs if kind == STANDARD else ():
            committed = space.incomplete.get(ReplayTableName(seed, epoch, kind).path)
            positions = None if committed is None else np.flatnonzero(committed)
            known[_view_keys(replace(plan, seed=seed), epoch, positions)] = True


def _view_keys(plan: ViewPlan, epoch: int, positions: np.ndarray | None) -> np.ndarray:
    table = replace(plan, mixes=()).epoch(epoch)
    return plan.standard_keys(table, np.arange(plan.samples) if positions is None else positions)


class CacheCost(NamedTuple):
    """What runs of one plan cost with one value of ``--cache``.

    Attributes
    ----------
    cache : str
    first, further : int
        Teacher forwards of the first run, and of each further one.
    added_bytes : int
        Size of the tables that are added to the store.
    """

    cache: str
    first: int
    further: int
    added_bytes: int

    def forwards(self, runs: int) -> int:
        """Teacher forwards of so many runs."""
        return self.first + (runs - 1) * self.further

    def pays_from(self, uncached: "CacheCost") -> int | None:
        """Number of runs from which on there are fewer forwards than without a cache; ``None`` if never."""
        if self.first < uncached.first:
            return 1
        saved = uncached.further - self.further
        return 2 + (self.first - uncached.first) // saved if saved > 0 else None


def compare_caches(plan: ViewPlan, epochs: int, space: StoreContents, features: bool = False) -> list[CacheCost]:
    """Count exactly what runs cost with each value of ``--cache``; the first one is ``off``.

    With `features`, losses read the teacher's features, see `teacher_forwards`.
    """
    uncached = uncached_forwards(plan, epochs)
    costs = [CacheCost("off", uncached, uncached, 0)]
    for cache in ("standard", "replay", "auto") if plan.crop_flip else ("clean", "auto"):
        if cache == "standard" and not index_fits(plan):
            continue
        policy = choose_policy(cache, plan, epochs, space)
        after = space.after_run(plan, epochs, policy.stored_kinds - set(plan.kinds[:1] if features else ()))
        first, further = (
            round(teacher_forwards(plan, epochs, one, policy.indexed, True, features)) for one in (space, after)
        )
        costs.append(CacheCost(cache, first, further, after.size - space.size))
    return costs
