"""Per-sample statistics of a training loop of one's own, in the form of a run's."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache import distributed
from kdcache.answers.ensemble import AnyTeacher
from kdcache.errors import UsageError, problem
from kdcache.losses import kl_divergence
from kdcache.run.checkpoint import TrainingState
from kdcache.run.recorder import StudentRecorder
from kdcache.run.statistics import StatisticsShape
from kdcache.selection import Selection, select_all
from kdcache.views import Batch, Views

__all__ = ["Statistics"]


class Statistics:
    """Records d of every view, the picks, the KL ratio r, and how often the teacher disagrees with mixed labels.

    Under ``torchrun``, all processes record their part, and the main one writes.

    Parameters
    ----------
    path : str or Path
        Folder of a zarr store, see `kdcache.run.statistics_store.StatisticsStore`; zarr reads it.
    views : Views
    epochs : int
        Number of epochs of the training.
    teacher : CachedTeacher or TeacherEnsemble
    temperature : float
        tau of d.

    Raises
    ------
    UsageError
        If the folder exists.
    """

    def __init__(
        self, path: str | Path, views: Views, epochs: int, teacher: AnyTeacher, temperature: float = 4.0
    ) -> None:
        if distributed.is_main() and os.path.lexists(path):
            raise UsageError(problem(f"statistics {path}", expected="a new folder", got="one that exists"))
        if distributed.is_main():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        shape = StatisticsShape(views.plan.samples, views.plan.slots, len(views.steps), ("loss",))
        self._recorder = StudentRecorder(Path(path), epochs, shape, teacher, views.device)
        self._epoch, self._started, self.temperature, self.epochs = -1, 0.0, temperature, epochs

    @torch.no_grad()
    def record(
        self,
        batch: Batch,
        loss: Tensor | float,
        teacher: Tensor,
        x: Tensor | None = None,
        mixed: Tensor | None = None,
        rows: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> None:
        """Record a step.

        Parameters
        ----------
        batch : Batch
        loss : Tensor, shape (), or float
        teacher : Tensor, shape ((1 + M) B, C)
            The teacher's logits for the views of the batch.
        x : Tensor, optional, shape (B, C)
            The student's logits for x.
        mixed : Tensor, optional, shape (P, C)
            Those for the mixed views that it is trained on.
        rows : Tensor of int64, optional, shape (P,)
            Which ones they are, see `kdcache.pick`; by default all.
        candidates : Tensor, optional, shape (M B, C)
            The student's logits for all mixed views, as they were scored; without them there is no r.
        """
        if batch.epoch >= self.epochs:
            raise UsageError(problem("epoch of the batch", expected=f"below {self.epochs}", got=batch.epoch))
        if batch.epoch != self._epoch:
            self._recorder.begin_epoch(TrainingState(batch.epoch))
            self._epoch, self._started = batch.epoch, time.perf_counter()
        size, whole = len(batch), len(batch.global_positions)
        selection = select_all(batch.slots, size, whole, batch.views.device)
        if rows is not None:
            selection = Selection(rows, len(rows), len(rows))
        teacher_x, teacher_mixed = teacher.tensor_split([size])
        x_kl = None if x is None else self._d(x, teacher_x)
        mixed_kl = None if mixed is None else self._d(mixed, teacher_mixed[selection.rows])
        candidate_kl = None if candidates is None else self._d(candidates, teacher_mixed)
        self._recorder.record(batch, teacher, x_kl, mixed_kl, selection, candidate_kl, {"loss": torch.as_tensor(loss)})

    def end_epoch(self) -> dict[str, Any]:
        """Write the epoch, and return its figures.

        Returns
        -------
        dict
            ``kl_ratio`` (r, Equation 3), ``label_disagreement``, ``teacher_forwards``, ``cache_hits``, and the mean
            ``loss``; ``None`` for what was not recorded.

        Raises
        ------
        UsageError
            If no step was recorded.
        """
        if self._epoch < 0:
            raise UsageError(problem("end of an epoch", expected="recorded steps", got="none"))
        found = self._recorder.end_epoch(self._epoch, time.perf_counter() - self._started)
        names = ("kl_ratio", "label_disagreement", "teacher_forwards", "cache_hits")
        return {"loss": found["loss_parts"]["loss"], **{name: found[name] for name in names}}

    def _d(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kl_divergence(student.float(), teacher, self.temperature)
