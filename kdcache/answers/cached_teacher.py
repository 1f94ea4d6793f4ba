"""The cached teacher: the one door to the teacher's answers. It answers from what is stored, and asks where it must.

A view is either answered by a forward of the teacher or from the store.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from kdcache import distributed
from kdcache.answers import budget
from kdcache.answers.codec import DENSE, Columns, Format, require_finite
from kdcache.answers.replay import Replay
from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.answers.table import Ask, fill
from kdcache.answers.teacher import Teacher
from kdcache.answers.view_index import CropFlipIndex
from kdcache.views import Batch, ViewMaker

__all__ = ["CachedTeacher", "TeacherCounts"]

ASKED_TOGETHER = 1024
"""Views that are made at once to fill a chunk: enough for several forwards, few enough for the memory."""


class TeacherCounts(NamedTuple):
    """Views that went through the teacher, and views that were requested in all."""

    forwards: int = 0
    requests: int = 0

    def plus(self, others: "TeacherCounts") -> "TeacherCounts":
        """Add up."""
        return TeacherCounts(self.forwards + others.forwards, self.requests + others.requests)

    def all_reduced(self) -> "TeacherCounts":
        """Add up those of all processes that train the network."""
        return TeacherCounts(*distributed.all_reduce_sum(torch.tensor(self)).tolist())

    def as_metrics(self) -> dict[str, int]:
        """Name them as the record does."""
        return {"teacher_forwards": self.forwards, "cache_hits": max(0, self.requests - self.forwards)}


class CachedTeacher:
    """Hands out the teacher's answers to the views of a plan.

    Parameters
    ----------
    teacher : Teacher
    views : ViewMaker
        Makes the views of a chunk that the store lacks.
    store : AnswerStore, optional
        Whose format the answers have, and which keeps those to the clean views.
    replay : Replay, optional
        Knows views by epoch, slot and position.
    finite : CropFlipIndex, optional
        Knows the standard views, in whichever epoch they came up.
    format : Format, optional
        Of the answers where there is no store.
    """

    def __init__(
        self,
        teacher: Teacher,
        views: ViewMaker,
        *,
        store: AnswerStore | None = None,
        replay: Replay | None = None,
        finite: CropFlipIndex | None = None,
        format: Format | None = None,
    ) -> None:
        self.teacher, self.views, self.store = teacher, views, store
        self.replay, self.finite = replay, finite
        self.format = store.format if store else format or DENSE
        self.classes = teacher.network.num_classes
        self._asked = self._given = 0
        self.seconds = 0.0

    @classmethod
    def with_store(
        cls,
        teacher: Teacher,
        views: ViewMaker,
        store: AnswerStore,
        cache: str,
        epochs: int,
        limit: int | None = None,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> Self:
        """Make a cached teacher that remembers.

        Parameters
        ----------
        teacher : Teacher
        views : ViewMaker
        store : AnswerStore
        cache : str
            What to keep and look up, see `kdcache.answers.budget.choose`.
        epochs : int
            Of the run.
        limit : int, optional
            Bytes that the store may take, see `kdcache.answers.budget.Room`.
        tell : callable
            Hears how many of how many clean answers are there, where x are the clean views: these are filled now.
        """
        plan, room = views.plan, budget.Room.of(store, limit)
        choice = budget.choose(cache, plan, epochs, room)
        cached_teacher = cls(teacher, views, store=store)
        if plan.crop_flip:
            cached_teacher.replay = Replay(store, plan.seed, plan.kinds, choice.keep, room.limit)
        elif choice.keep:
            for done in cached_teacher.precompute_clean():
                tell(done, plan.samples)
        if choice.indexed:
            cached_teacher.finite = CropFlipIndex.of_store(store, plan, epochs, room.limit)
        return cached_teacher

    def logits(self, batch: Batch, first: int = 0) -> Tensor:
        """Answer the views of a step.

        Parameters
        ----------
        batch : Batch
            Of B samples and M mixed views each.
        first : int
            Slot to begin with: 1 leaves out x.

        Returns
        -------
        Tensor of float32, shape ((1 + M - first) B, C)
            Logits, the same bits whether they were stored or just asked.

        Raises
        ------
        KdcacheError
            Where an answer is not finite in the format of the store; on a GPU, where it is to be stored.
        """
        began = time.perf_counter()
        views = batch.views[first * len(batch) :]
        found = [self._recall(batch, slot) for slot in range(first, 1 + batch.slots)]
        there = np.concatenate([known for known, _ in found])
        self._given += len(views)
        logits = torch.empty(len(views), self.classes, device=views.device)
        if there.any():
            self._decode_into(logits, there, _joined([columns for known, columns in found if known.any()]))
        if not there.all():
            fresh = self._ask(views if not there.any() else views[_index(~there, views.device)])
            self._decode_into(logits, ~there, fresh)
            if first == 0 and self.finite:  # x comes first among the new answers
                keys = batch.standard_keys[~there[: len(batch)]]
                self.finite.add(keys, _on_cpu({name: column[: len(keys)] for name, column in fresh.items()}))
        self.seconds += time.perf_counter() - began
        return logits

    def logits_and_features(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Answer the views of a step, and say what the teacher's inner tensors are for x.

        The store holds logits alone, so x is asked in any case, once for both; the other views as `ask` does.

        Returns
        -------
        logits : Tensor of float32, shape ((1 + M) B, C)
        features : list of Tensor of float32, B rows each
            See `kdcache.models.Network.with_features`.
        """
        size, began = len(batch), time.perf_counter()
        self._asked, self._given = self._asked + size, self._given + size
        logits, features = self.teacher.with_features(batch.views[:size])
        logits = self.format.decode(self._encode(logits), self.classes)
        self.seconds += time.perf_counter() - began
        mixed = [self.logits(batch, first=1)] if batch.slots else []
        return torch.cat([logits, *mixed]), features

    def fill(self, epochs: int) -> Iterator[int]:
        """Ask ahead, without any student, what is to be kept of the first epochs; other processes may help.

        Yields
        ------
        int
            Answers that are there now.
        """
        assert self.replay is not None
        done = 0
        for epoch, slot, positions, columns in self.replay.fill(epochs, self._ask_chunk):
            if slot == 0 and self.finite:  # another process may have asked them
                self.finite.add(self._keys(epoch, positions), columns)
            done += len(positions)
            yield done

    def kept(self, epochs: int) -> int:
        """Count the answers that `fill` would leave in the store."""
        assert self.replay is not None
        return len(self.replay.tables(epochs)) * self.views.plan.samples

    def precompute_clean(self) -> Iterator[int]:
        """Ask, if they are not there, the clean views of all samples; other processes may help.

        Yields
        ------
        int
            Answers that are there now.
        """
        assert self.store is not None
        for table, chunk, _ in fill([(self.store.table(CLEAN), self._ask_clean)]):
            yield table.chunks[chunk].stop

    def clean(self) -> Iterator[tuple[range, Tensor]]:
        """Answer the clean views of all samples, by and by: samples, and their logits, float32 (B, C)."""
        assert self.store is not None
        table = self.store.table(CLEAN)
        for chunk, samples in enumerate(table.chunks):
            columns = table.obtain(chunk, self._ask_clean)
            assert columns is not None
            self._given += len(samples)
            yield samples, self.format.decode(columns, self.classes)

    def compute_logits(self, views: Tensor) -> Tensor:
        """Put views to the teacher whatever is stored, as a check of the store does: float32 logits (B, C)."""
        self._given += len(views)
        return self.format.decode(self._ask(views), self.classes)

    def pop_counts(self) -> TeacherCounts:
        """Count the questions of this process since the last count."""
        counted = TeacherCounts(self._asked, self._given)
        self._asked = self._given = 0
        return counted

    def _recall(self, batch: Batch, slot: int) -> tuple[np.ndarray, Columns]:
        """Look up one slot of a batch: which rows are known, and the answers to these."""
        if self.replay:
            columns = self.replay.rows(batch.epoch, slot, batch.positions, self._ask_chunk(batch.epoch, slot))
            if columns is not None:
                if slot == 0 and self.finite:
                    self.finite.add(batch.standard_keys, columns)
                return np.ones(len(batch), bool), columns
        if slot == 0 and self.finite:
            return self.finite.find(batch.standard_keys)
        return np.zeros(len(batch), bool), {}

    def _ask_chunk(self, epoch: int, slot: int) -> Ask:
        def ask(positions: range) -> Columns:
            blocks = [
                range(start, min(start + ASKED_TOGETHER, positions.stop))
                for start in range(positions.start, positions.stop, ASKED_TOGETHER)
            ]
            return _joined([self._ask_block(epoch, slot, block) for block in blocks])

        return ask

    def _ask_block(self, epoch: int, slot: int, positions: range) -> Columns:
        if slot or not self.finite:
            return _on_cpu(self._ask(self.views.views(epoch, slot, positions)))
        keys = self._keys(epoch, positions)
        known, columns = self.finite.find(keys)
        if known.all():
            return columns
        fresh = _on_cpu(self._ask(self.views.views(epoch, slot, positions)[_index(~known, self.views.device)]))
        self.finite.add(keys[~known], fresh)
        # The known rows and then the new ones, put back in the order of the positions.
        order = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)])
        place = torch.from_numpy(np.argsort(order))
        return {name: column[place] for name, column in _joined([columns, fresh]).items()}

    def _keys(self, epoch: int, positions: range) -> np.ndarray:
        return self.views.plan.standard_keys(self.views.table(epoch), np.arange(positions.start, positions.stop))

    def _ask_clean(self, samples: range) -> Columns:
        blocks = torch.arange(samples.start, samples.stop).split(ASKED_TOGETHER)
        images = (self.views.split.take(block).to(self.views.device) for block in blocks)
        return _joined([_on_cpu(self._ask(block)) for block in images])

    def _ask(self, views: Tensor) -> Columns:
        self._asked += len(views)
        return self._encode(self.teacher(views))

    def _encode(self, logits: Tensor) -> Columns:
        columns = self.format.encode(logits)
        # A GPU is not waited for: there the loss tells, or the copy that is to be stored.
        if logits.device.type == "cpu":
            require_finite(columns)
        return columns

    def _decode_into(self, logits: Tensor, rows: np.ndarray, columns: Columns) -> None:
        there = {name: column.to(logits.device, non_blocking=True) for name, column in columns.items()}
        logits[_index(rows, logits.device)] = self.format.decode(there, self.classes)


def _joined(parts: list[Columns]) -> Columns:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _on_cpu(columns: Columns) -> Columns:
    if all(column.device.type == "cpu" for column in columns.values()):
        return columns  # they were looked at when they came
    copied = {name: column.cpu() for name, column in columns.items()}
    require_finite(copied)
    return copied


def _index(rows: np.ndarray, device: torch.device) -> Tensor:
    """Turn a mask of rows into their numbers, on a device: a mask there would make the host wait."""
    return torch.from_numpy(np.flatnonzero(rows)).to(device, non_blocking=True)
