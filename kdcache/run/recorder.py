"""What a training records step by step: nothing for a teacher, per-sample statistics for a student."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache import distributed
from kdcache.answers.computer import TeacherCounts
from kdcache.answers.ensemble import AnyTeacher
from kdcache.datasets.split import UNLABELLED
from kdcache.run.checkpoint import TrainingState
from kdcache.run.folder import EpochMetrics
from kdcache.run.statistics import EpochStatistics, StatisticsShape
from kdcache.run.statistics_store import StatisticsStore
from kdcache.selection import Selection
from kdcache.views import Batch

__all__ = ["Recorder", "StudentRecorder"]


class Recorder:
    """Records nothing, as when a teacher is trained."""

    def begin_epoch(self, progress: TrainingState) -> None:
        """Start an epoch, or continue the one that a checkpoint was written in."""

    def teacher_forwards(self) -> int:
        """Count the teacher forwards of all processes in this epoch."""
        return 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint within the epoch has to hold, as fields of `TrainingState`."""
        return {}

    def end_epoch(self, epoch: int, seconds: float) -> dict[str, Any]:
        """Write what the epoch has recorded, and return its fields of `kdcache.run.folder.EpochMetrics`.

        Parameters
        ----------
        epoch : int
            Counted from 0.
        seconds : float
            Wall time of the epoch's steps, in this session.
        """
        return {}


class StudentRecorder(Recorder):
    """Records d of every view, the picks, the KL ratio, label disagreement, each loss, and the teacher's forwards.

    Everything is kept on the device until the end of the epoch, so that no step waits for it.

    Parameters
    ----------
    path : Path
        Statistics store of the run.
    epochs : int
    shape : StatisticsShape
    teacher : CachedTeacher, TeacherEnsemble or None
    device : torch.device
    done : sequence of EpochMetrics
        The completed epochs of a resumed run, whose statistics are checked.

    Attributes
    ----------
    statistics : EpochStatistics
        Of the epoch under way, this process's part.
    """

    statistics: EpochStatistics

    def __init__(
        self,
        path: Path,
        epochs: int,
        shape: StatisticsShape,
        teacher: AnyTeacher | None,
        device: torch.device,
        done: Sequence[EpochMetrics] = (),
    ) -> None:
        self.shape, self.teacher, self.device = shape, teacher, device
        checksums = [line.statistics_sha256 or "" for line in done]
        self._store = StatisticsStore(path, epochs, shape, checksums) if distributed.is_main() else None
        self._counts = TeacherCounts()

    def begin_epoch(self, progress: TrainingState) -> None:
        """See `Recorder`."""
        self.statistics, self._counts = EpochStatistics.empty(self.shape, self.device), TeacherCounts()
        if self.teacher is not None:
            self.teacher.begin_epoch()
        if progress.statistics:
            self.statistics = self.statistics.like(progress.statistics).split()
            if distributed.is_main():
                self._counts = TeacherCounts(*progress.teacher_counts)

    @torch.no_grad()
    def record(
        self,
        batch: Batch,
        teacher_logits: Tensor | None,
        x_kl: Tensor | None,
        mixed_kl: Tensor | None,
        selection: Selection,
        candidate_kl: Tensor | None,
        losses: Mapping[str, Tensor],
    ) -> None:
        """Record a step: d of every view whose logits are known, the picks, r, disagreeing labels, and the losses.

        Parameters
        ----------
        batch : Batch
        teacher_logits : Tensor or None, shape ((1 + M) B, C)
        x_kl, mixed_kl : Tensor or None, shapes (B,) and (P,)
            d of the views that the student was trained on; ``None`` without a teacher.
        selection : Selection
        candidate_kl : Tensor or None, shape (M B,)
            d of every candidate, where the student scored them.
        losses : mapping of str to Tensor
            Each loss times its weight.
        """
        statistics, slots = self.statistics, (batch.slots, len(batch))
        statistics.losses[batch.step] = torch.stack([loss.detach() for loss in losses.values()])
        picks = selection.rows[: selection.num_picked]
        picked = torch.zeros_like(batch.random_score, dtype=torch.bool).index_fill_(0, picks, True)
        statistics.picked.index_copy_(1, batch.samples, picked.view(slots))
        if x_kl is not None:
            statistics.d_x.index_copy_(0, batch.samples, x_kl.detach())
        if teacher_logits is None or not batch.slots:
            return
        labels = batch.mixed_labels()
        labelled = labels != UNLABELLED
        disagrees = labelled & (teacher_logits[len(batch) :].argmax(1) != labels)
        statistics.labelled[batch.step], statistics.disagreements[batch.step] = labelled.sum(), disagrees.sum()
        if candidate_kl is not None:
            d = candidate_kl
            statistics.kl_ratio[batch.step] = distributed.global_mean(d[picks]) / distributed.global_mean(d)
        elif mixed_kl is not None:
            known = mixed_kl.detach()[: selection.num_picked]
            d = torch.full_like(batch.random_score, torch.nan).index_copy_(0, picks, known)
        else:
            return
        statistics.d_mixed.index_copy_(1, batch.samples, d.view(slots))

    def teacher_forwards(self) -> int:
        """See `Recorder`."""
        return self._all_counts().forwards

    def state(self) -> dict[str, Any]:
        """See `Recorder`."""
        return {"teacher_counts": list(self._all_counts()), "statistics": vars(self.statistics.merged())}

    def end_epoch(self, epoch: int, seconds: float) -> dict[str, Any]:
        """See `Recorder`."""
        statistics, counts = self.statistics.merged(), self._all_counts()
        checksum = self._store.write(epoch, statistics) if self._store is not None else None
        waited = self.teacher.stopwatch.pop() if self.teacher else None
        return {
            "teacher_share": None if waited is None else waited / seconds,
            "kl_ratio": statistics.mean_kl_ratio(),
            "label_disagreement": statistics.label_disagreement(),
            "loss_parts": dict(zip(self.shape.losses, statistics.losses.mean(0).tolist(), strict=True)),
            "statistics_sha256": checksum,
            **counts.as_metrics(),
        }

    def _all_counts(self) -> TeacherCounts:
        if self.teacher is not None:
            self._counts = self._counts.plus(self.teacher.pop_counts())
        return self._counts.all_reduced()
