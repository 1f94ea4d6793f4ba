"""The cached teacher: the teacher's answers for views, from the store or from a forward pass."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache.answers.computer import AnswerComputer, TeacherCounts, concatenated
from kdcache.answers.encoding import DEFAULT_ENCODING, AnswerEncoding, EncodedAnswers
from kdcache.answers.replay import Replay
from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.answers.table import fill_missing
from kdcache.answers.teacher import Teacher
from kdcache.answers.transfer import CopiedAnswers
from kdcache.answers.view_index import CropFlipLookup
from kdcache.compute import Stopwatch, to_device
from kdcache.errors import UsageError, problem
from kdcache.models import Network
from kdcache.views import Batch, Views

__all__ = ["CachedTeacher", "TeacherOutputs"]


class TeacherOutputs(NamedTuple):
    """What the teacher computes for the views of a batch.

    Attributes
    ----------
    logits : Tensor of float32, shape ((1 + M) B, C)
    vectors : Tensor of float32, shape ((1 + M) B, D) or (B, D), or None
        What its last layer reads: of all views if vectors are stored, of x if its features were asked for.
    features : list of Tensor of float32, B rows each
        Of x, see `kdcache.models.Network.with_features`; empty unless asked for.
    """

    logits: Tensor
    vectors: Tensor | None = None
    features: Sequence[Tensor] = ()


class CachedTeacher:
    """Gives the teacher's logits for the views of a plan. `kdcache.answers.open.make_cached_teacher` makes one.

    Parameters
    ----------
    teacher : Teacher
    views : Views
        Makes the views of a chunk that the store lacks, as the teacher sees them.
    store : AnswerStore, optional
        Stores the logits of clean views, and determines the encoding.
    replay : Replay, optional
        Stored logits by epoch, slot and position.
    view_index : CropFlipLookup, optional
        Logits of x by crop and flip, in whichever epoch they were computed.
    encoding : AnswerEncoding, optional
        Without a store, the encoding that logits pass through.

    Attributes
    ----------
    stopwatch : Stopwatch
        Measures the time spent in `logits` and `outputs`.
    """

    def __init__(
        self,
        teacher: Teacher,
        views: Views,
        *,
        store: AnswerStore | None = None,
        replay: Replay | None = None,
        view_index: CropFlipLookup | None = None,
        encoding: AnswerEncoding = DEFAULT_ENCODING,
    ) -> None:
        self.teacher, self.views, self.store = teacher, views, store
        self.replay, self.view_index = replay, view_index
        self.encoding = store.encoding if store else encoding
        self._computer = AnswerComputer(teacher, views, self.encoding, view_index)
        self.classes, self.keeps_vectors = self._computer.classes, self._computer.keeps_vectors
        self.stopwatch = Stopwatch(teacher.compute.device)
        self._sees_batches = True
        self._known_views: Views = views
        self._copied: deque[CopiedAnswers] = deque()

    @property
    def network(self) -> Network:
        """The teacher's network."""
        return self.teacher.network

    @property
    def origin(self) -> dict[str, str]:
        """What a run records of its teacher, see `Teacher.origin`."""
        return self.teacher.origin

    def serve(self, views: Views, features: bool = False) -> None:
        """Answer the batches of another maker of the same plan, whose images are in the rendering of a student.

        Where the teacher will have to see a batch, its pictures are decoded once for both networks.

        Parameters
        ----------
        views : Views
        features : bool
            Whether the teacher's features are needed, for which it sees every x.
        """
        assert self.views.split.pictures is not None
        rendering, self._sees_batches = self.views.split.pictures.rendering, False
        views.other_rendering = lambda epoch: rendering if features or self._may_compute(epoch) else None

    def begin_epoch(self) -> None:
        """Have all x of the epochs before in the index, for which it waits for a GPU."""
        self._add_copied(wait=True)

    def logits(self, batch: Batch, first: int = 0) -> Tensor:
        """Get the logits of the views of a batch.

        Parameters
        ----------
        batch : Batch
            B samples with M mixed views each.
        first : int
            First slot; 1 leaves out x.

        Returns
        -------
        Tensor of float32, shape ((1 + M - first) B, C)
            The same bits whether they come from the store or from a forward.

        Raises
        ------
        KdcacheError
            If logits are not finite in the encoding; on a GPU, only those that are stored are checked.
        """
        self._require_own(batch)
        with self.stopwatch.running():
            return self._computer.logits_of(self._answers(batch, first))

    def outputs(self, batch: Batch, features: bool = False) -> TeacherOutputs:
        """Get logits of the views of a batch, and what else of the teacher is known.

        Parameters
        ----------
        batch : Batch
            B samples with M mixed views each.
        features : bool
            Whether to compute the features of x. They are not stored, so x goes through the teacher in any case, once
            for all.
        """
        self._require_own(batch)
        with self.stopwatch.running():
            if not features:
                answers = self._answers(batch, first=0)
                return TeacherOutputs(self._computer.logits_of(answers), answers if self.keeps_vectors else None)
            size = len(batch)
            self._computer.count(forwards=size, requests=size)
            logits, found = self.teacher.with_features(self._views_of(batch, with_mixed=False)[:size])
            x = self.encoding.decode(self._computer.encode(found[-1] if self.keeps_vectors else logits), self.classes)
            answers = torch.cat([x, *([self._answers(batch, first=1)] if batch.slots else [])])
            return TeacherOutputs(
                self._computer.logits_of(answers), answers if self.keeps_vectors else found[-1], found
            )

    def _require_own(self, batch: Batch) -> None:
        """Refuse a batch of other views, at whose address other logits are stored."""
        made_by = batch.views_of
        if made_by is None or made_by is self._known_views:
            return
        if not isinstance(made_by, Views) or not self.views.same_as(made_by):
            remedy = "Open the teacher for the views that the batches come from."
            raise UsageError(
                problem("batch", expected="one of the views of this teacher", got="another", remedy=remedy)
            )
        self._known_views = made_by

    def _answers(self, batch: Batch, first: int) -> Tensor:
        """Get what is stored of the views, logits or vectors: float32."""
        size, device = len(batch), batch.views.device
        found = [self._look_up(batch, slot) for slot in range(first, 1 + batch.slots)]
        hit = np.concatenate([hits for hits, _ in found])
        self._computer.count(requests=len(hit))
        answers = torch.empty(len(hit), self._computer.width, device=device)
        if hit.any():
            self._decode_into(answers, hit, concatenated([columns for hits, columns in found if hits.any()]))
        if not hit.all():
            views = self._views_of(batch)[first * size :]
            computed = self._computer(views if not hit.any() else views[_indices(~hit, device)])
            self._decode_into(answers, ~hit, computed)
            if first == 0 and self.view_index:  # the computed rows begin with those of x
                keys = batch.standard_keys[~hit[:size]]
                x_columns = {name: column[: len(keys)] for name, column in computed.items()}
                self._copied.append(CopiedAnswers.of(keys, x_columns))
                self._add_copied()
        return answers

    def precompute(self, epochs: int) -> Iterator[int]:
        """Compute and store what is to be kept of the first epochs; several processes may share the work.

        Yields
        ------
        int
            Views whose logits are in the store now, of `num_stored`.
        """
        assert self.replay is not None
        done = 0
        for epoch, slot, positions, columns in self.replay.fill_missing(epochs, self._computer.chunk):
            if slot == 0 and self.view_index:  # another process may have computed them
                self.view_index.add(self._computer.keys(epoch, positions), columns)
            done += len(positions)
            yield done

    def num_stored(self, epochs: int) -> int:
        """Count the views whose logits `precompute` leaves in the store."""
        assert self.replay is not None
        return len(self.replay.tables(epochs)) * self.views.plan.samples

    def precompute_clean(self) -> Iterator[int]:
        """Compute and store the logits of all clean views that are missing; several processes may share the work.

        The SHA-256 of each image is stored before, by which other stores find them.

        Yields
        ------
        int
            Samples whose logits are in the store now.
        """
        assert self.store is not None
        list(fill_missing([(self.store.images, self._computer.hashes)]))
        done, keys = 0, self.views.plan.clean_keys()
        for table, chunk, columns in fill_missing([(self.store.table(CLEAN), self._computer.clean)]):
            samples = table.chunks[chunk]
            if self.view_index:  # another process may have computed them
                self.view_index.add(keys[samples.start : samples.stop], columns)
            done += len(samples)
            yield done

    def compute_logits(self, views: Tensor) -> Tensor:
        """Compute logits in a forward, whatever is stored: float32 (B, C)."""
        return self.decode_logits(self.compute(views))

    def compute(self, views: Tensor) -> EncodedAnswers:
        """Compute in a forward what would be stored of some views, whatever is stored."""
        self._computer.count(requests=len(views))
        return self._computer(views)

    def decode(self, columns: EncodedAnswers) -> Tensor:
        """Decode what is stored, logits or vectors: float32, on the device of the teacher."""
        return self._computer.decode(columns, self.teacher.compute.device)

    def decode_logits(self, columns: EncodedAnswers) -> Tensor:
        """Decode stored answers to logits, float32 (B, C), on the device of the teacher."""
        return self._computer.logits_of(self.decode(columns))

    def pop_counts(self) -> TeacherCounts:
        """Return the counts of this process since the last call, and reset them."""
        counts, self._computer.counts = self._computer.counts, TeacherCounts()
        return counts

    def _views_of(self, batch: Batch, with_mixed: bool = True) -> Tensor:
        """The views of a batch as the teacher sees them."""
        return batch.views if self._sees_batches else self.views.of_batch(batch, with_mixed)

    def _may_compute(self, epoch: int) -> bool:
        """Whether views of an epoch may go through the teacher that no chunk is computed of."""
        if not self.views.plan.crop_flip:
            return self.view_index is None or not self.view_index.is_complete
        return self.replay is None or not all(map(self.replay.has_table, repeat(epoch), range(len(self.replay.kinds))))

    def _add_copied(self, wait: bool = False) -> None:
        """Add to the index what is on the host by now. A view comes up once in an epoch, so the others can wait."""
        while self._copied and (wait or self._copied[0].is_done()):
            copied = self._copied.popleft()
            assert self.view_index is not None
            self.view_index.add(copied.keys, copied.finished())

    def _look_up(self, batch: Batch, slot: int) -> tuple[np.ndarray, EncodedAnswers]:
        """Look up one slot of a batch: which rows are found, bool (B,), and their encoded logits."""
        if self.replay:
            columns = self.replay.rows(batch.epoch, slot, batch.positions, self._computer.chunk(batch.epoch, slot))
            if columns is not None:
                if slot == 0 and self.view_index:
                    self.view_index.add(batch.standard_keys, columns)
                return np.ones(len(batch), bool), columns
        if slot == 0 and self.view_index:
            return self.view_index.lookup(batch.standard_keys)
        return np.zeros(len(batch), bool), {}

    def _decode_into(self, answers: Tensor, rows: np.ndarray, columns: EncodedAnswers) -> None:
        answers[_indices(rows, answers.device)] = self._computer.decode(columns, answers.device)


def _indices(mask: np.ndarray, device: torch.device) -> Tensor:
    """Turn a mask of rows into indices on a device: indexing by a mask there would make the host wait."""
    return to_device(np.flatnonzero(mask), device)
