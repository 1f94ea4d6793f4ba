"""What the teacher computes for a store: the encoded answers of views, of whole chunks too, and their number."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache import distributed
from kdcache.answers.encoding import AnswerEncoding, EncodedAnswers, Vectors, require_finite
from kdcache.answers.store import SHA256
from kdcache.answers.table import ComputeRows
from kdcache.answers.teacher import Teacher
from kdcache.answers.transfer import on_cpu
from kdcache.answers.view_index import CropFlipLookup
from kdcache.compute import to_device
from kdcache.views import Views

__all__ = ["AnswerComputer", "TeacherCounts", "concatenated"]

BLOCK_VIEWS = 1024
"""Views that are made at once to compute a chunk: enough for several forwards, few enough for the memory."""


class TeacherCounts(NamedTuple):
    """Views that went through the teacher, and views whose logits were requested."""

    forwards: int = 0
    requests: int = 0

    def plus(self, other: "TeacherCounts") -> "TeacherCounts":
        """Add two counts."""
        return TeacherCounts(self.forwards + other.forwards, self.requests + other.requests)

    def all_reduced(self) -> "TeacherCounts":
        """Sum over all processes."""
        return TeacherCounts(*distributed.all_reduce_sum(torch.tensor(self)).tolist())

    def as_metrics(self) -> dict[str, int]:
        """Fields of a record: teacher forwards and cache hits."""
        return {"teacher_forwards": self.forwards, "cache_hits": max(0, self.requests - self.forwards)}


class AnswerComputer:
    """Computes the teacher's answers in their encoding, and decodes them.

    Parameters
    ----------
    teacher : Teacher
    views : Views
        Makes the views of a chunk, as the teacher sees them.
    encoding : AnswerEncoding
    view_index : CropFlipLookup or None
        Where x is looked up before it is computed.

    Attributes
    ----------
    classes : int
    keeps_vectors : bool
        Whether the answers are vectors, and not logits.
    width : int
        Of decoded answers.
    counts : TeacherCounts
    """

    def __init__(
        self, teacher: Teacher, views: Views, encoding: AnswerEncoding, view_index: CropFlipLookup | None
    ) -> None:
        self.teacher, self.views, self.encoding, self.view_index = teacher, views, encoding, view_index
        self.classes = teacher.network.num_classes
        self.keeps_vectors = isinstance(encoding, Vectors)
        self.width = encoding.width if isinstance(encoding, Vectors) else self.classes
        self.counts = TeacherCounts()

    def count(self, forwards: int = 0, requests: int = 0) -> None:
        """Add to the counts."""
        self.counts = self.counts.plus(TeacherCounts(forwards, requests))

    def __call__(self, views: Tensor) -> EncodedAnswers:
        """Compute the answers for some views in a forward."""
        self.count(forwards=len(views))
        return self.encode(self.teacher.vectors(views) if self.keeps_vectors else self.teacher(views))

    def encode(self, answers: Tensor) -> EncodedAnswers:
        """Encode logits or vectors."""
        columns = self.encoding.encode(answers)
        # A check on a GPU would make the host wait. There, answers are checked when they are stored, or by the loss.
        if answers.device.type == "cpu":
            require_finite(columns)
        return columns

    def decode(self, columns: EncodedAnswers, device: torch.device) -> Tensor:
        """Decode to logits or vectors on a device: float32 (B, `width`)."""
        on_device = {name: to_device(column, device) for name, column in columns.items()}
        return self.encoding.decode(on_device, self.classes)

    def logits_of(self, answers: Tensor) -> Tensor:
        """Compute logits, float32 (B, C), of decoded answers."""
        return self.teacher.head(answers) if self.keeps_vectors else answers

    def keys(self, epoch: int, positions: range) -> np.ndarray:
        """Keys of the x at some positions of an epoch, see `kdcache.views.ViewPlan.standard_keys`."""
        return self.views.plan.standard_keys(self.views.table(epoch), np.arange(positions.start, positions.stop))

    def chunk(self, epoch: int, slot: int) -> ComputeRows:
        """Return the function that computes the answers at some positions of an epoch and slot."""

        def compute_rows(positions: range) -> EncodedAnswers:
            starts = range(positions.start, positions.stop, BLOCK_VIEWS)
            blocks = [range(start, min(start + BLOCK_VIEWS, positions.stop)) for start in starts]
            return concatenated([self._block(epoch, slot, block) for block in blocks])

        return compute_rows

    def _block(self, epoch: int, slot: int, positions: range) -> EncodedAnswers:
        def views(rows: Tensor) -> Tensor:
            return self.views.views(epoch, slot, positions)[to_device(rows, self.views.device)]

        if slot or not self.view_index:
            return on_cpu(self(self.views.views(epoch, slot, positions)))
        return self._look_up_or_compute(self.view_index, self.keys(epoch, positions), views)

    def clean(self, samples: range) -> EncodedAnswers:
        """Compute the answers for the clean views of some samples."""
        blocks = torch.arange(samples.start, samples.stop).split(BLOCK_VIEWS)
        return concatenated([self._clean_block(block) for block in blocks])

    def _clean_block(self, samples: Tensor) -> EncodedAnswers:
        def views(rows: Tensor) -> Tensor:
            return to_device(self.views.split.take(samples[rows]), self.views.device)

        if not self.view_index:
            return on_cpu(self(views(torch.arange(len(samples)))))
        return self._look_up_or_compute(self.view_index, self.views.plan.clean_keys()[samples], views)

    def hashes(self, samples: range) -> EncodedAnswers:
        """Compute the SHA-256 of some images, by which other stores find their clean views."""
        digests = self.views.split.image_digests(slice(samples.start, samples.stop))
        return {SHA256: torch.tensor(digests)}

    def _look_up_or_compute(
        self, index: CropFlipLookup, keys: np.ndarray, make_views: Callable[[Tensor], Tensor]
    ) -> EncodedAnswers:
        """Look up x by crop and flip, and compute the others; `make_views` makes those in some of the rows."""
        hit, columns = index.lookup(keys)
        if hit.all():
            return columns
        computed = on_cpu(self(make_views(torch.from_numpy(np.flatnonzero(~hit)))))
        index.add(keys[~hit], computed)
        # Put the rows that were found and those that were computed back in the order of the keys.
        order = np.concatenate([np.flatnonzero(hit), np.flatnonzero(~hit)])
        rows = torch.from_numpy(np.argsort(order))
        return {name: column[rows] for name, column in concatenated([columns, computed]).items()}


def concatenated(parts: list[EncodedAnswers]) -> EncodedAnswers:
    """Join the rows of encoded answers."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
