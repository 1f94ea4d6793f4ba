"""Stage two: train a student on the teacher's logits for exactly the views that it sees (Section 3.2)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from kdcache import distributed
from kdcache.answers.ensemble import AnyTeacher
from kdcache.choices import CRITERIA
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.forwards import FrozenRunningStats, WithFeatures, check_forwards
from kdcache.losses import Objective, ViewOutputs, build_objective, kl_divergence, labelled_share
from kdcache.losses.objective import check_labels
from kdcache.optimization import Update
from kdcache.report.progress import Reporter
from kdcache.report.trackers import Tracked
from kdcache.report.training_curves import plot_training_curves
from kdcache.run.find import find_teacher
from kdcache.run.folder import FinishedRun
from kdcache.run.recorder import StudentRecorder
from kdcache.run.resolve import resolve_run
from kdcache.run.statistics import StatisticsShape
from kdcache.run.writer import RunWriter
from kdcache.selection import Candidates, score, select_all, select_top
from kdcache.setup import choose_compute, initial_network, load_data, make_plan, with_epochs
from kdcache.teachers import open_teachers
from kdcache.training import StepResult, train_epochs
from kdcache.views import Batch, Views, take

__all__ = ["StudentStep", "train_student"]


def train_student(config: StudentConfig, reporter: Reporter | None = None) -> FinishedRun:
    """Train a student.

    Parameters
    ----------
    config : StudentConfig
    reporter : Reporter, optional
        Reports progress; silent by default.

    Returns
    -------
    FinishedRun
        The run folder, with the network and the per-sample statistics.

    Raises
    ------
    UsageError
        If the data, the teacher or the run folder cannot be used; nothing has been written then.
    KdcacheError
        If the loss stops being finite; the network of the last complete epoch is kept.
    """
    reporter = reporter or Reporter()
    distributed.init(config.device)
    config, finished = resolve_run(config)
    if finished is not None:
        return finished
    compute = choose_compute(config)
    if config.needs_teacher and config.answers is None:
        config = config.model_copy(update={"teacher": distributed.broadcast(find_teacher(config))})

    # The student, and the images as it sees them.
    data = load_data(config)
    config = with_epochs(config, len(data.train))
    student, init = initial_network(config, data)
    data = data.rendered(student.rendering)
    student = student.to(compute.device)
    if config.sync_batchnorm:
        student = distributed.convert_sync_batchnorm(student, compute.device)
    check_forwards(config, student)
    check_labels(config, data)
    network = compute.compiled(WithFeatures(student)) if config.compile else WithFeatures(student)

    # The plan of every view that the epochs show, and the frozen teacher, behind the store of its logits.
    plan = make_plan(config, data)
    views = Views(data.train, plan, config.batch_size, compute.device)
    teacher = open_teachers(config, data, views, compute, reporter.precomputed) if config.needs_teacher else None

    # The objective, with whatever layers its losses train, and the optimizer of all that is trained.
    objective = build_objective(config, student, teacher.network if teacher else None, data.train.labels)
    objective = objective.to(compute.device)
    update = Update(config, compute, student, objective)

    # The run folder; a resumed run continues from its last checkpoint.
    origin = teacher.origin if teacher else None
    with RunWriter(config, compute, data, origin, init) as run, Tracked(run, reporter) as reporter:
        progress = run.restore({"student": student, "objective": objective}, update)
        shape = StatisticsShape(plan.samples, plan.slots, len(views.steps), objective.names)
        place = run.folder.statistics_store
        recorder = StudentRecorder(place, config.epochs, shape, teacher, compute.device, run.metrics)
        step = StudentStep(config, network, teacher, objective, update, compute, recorder)
        if not step.trains_on_x:
            reporter.message("training top-1 is that on x', by the larger part of the label: x is not trained on")
        train_epochs(run, progress, update, views, step, compute, reporter, recorder)
        if distributed.is_main():
            plot_training_curves(run.metrics, run.folder.curves_file)
        return run.finish()


class StudentStep:
    """The paper's training step.

    Parameters
    ----------
    config : StudentConfig
    student : Module
        In training mode; its forward is that of `WithFeatures`.
    teacher : CachedTeacher, TeacherEnsemble or None
        ``None`` if neither the objective nor the criterion needs one.
    objective : Objective
    update : Update
        Of the student and the objective.
    compute : Compute
    recorder : StudentRecorder
    """

    def __init__(
        self,
        config: StudentConfig,
        student: nn.Module,
        teacher: AnyTeacher | None,
        objective: Objective,
        update: Update,
        compute: Compute,
        recorder: StudentRecorder,
    ) -> None:
        self.config, self.teacher, self.update, self.compute = config, teacher, update, compute
        self.recorder = recorder
        self.trains_on_x = objective.trains_on_x(mixing=bool(config.augmentation.mixes))
        self.total_loss = objective.total
        self.student, self.ddp_student = student, distributed.wrap_ddp(student, broadcast_buffers=True)
        self.objective = distributed.wrap_ddp(objective, broadcast_buffers=False)
        self.scoring_statistics: AbstractContextManager[None] = (
            nullcontext() if config.scoring_updates_stats else FrozenRunningStats(student)
        )

    def __call__(self, batch: Batch) -> StepResult:
        """Train on a batch: x of B samples, and M candidates x' of each.

        Returns
        -------
        StepResult
            With the accuracy on x, or on the picked x' if x is not trained on.
        """
        # The views of the step are in the batch: x of every sample, then the candidates x', slot by slot.
        config, size = self.config, len(batch)

        # The teacher's logits for x and for every candidate: from the store, or from one forward pass of the teacher.
        # A loss may also read its vectors or features.
        outputs = None if self.teacher is None else self.teacher.outputs(batch, config.recomputes_x)
        teacher_logits, teacher_vectors, teacher_features = outputs or (None, None, ())

        # Score the candidates, and pick those that the student is trained on: without a criterion, all of them.
        candidates = self._candidates(batch, teacher_logits)
        if config.augmentation.pick is None:
            selection = select_all(batch.slots, size, len(batch.global_positions), batch.views.device)
        else:
            scores = score(config.augmentation.pick, candidates).reshape(-1, size)
            selection = select_top(scores, config.augmentation.keep, across_ranks=config.pick_scope == "global")

        # One forward of the student for x and the picked x', so that batch norm sees both; or one for each.
        x_rows = torch.arange(size if self.trains_on_x else 0, device=batch.views.device)
        rows, sizes = torch.cat([x_rows, size + selection.rows]), [len(x_rows), len(selection.rows)]
        parts = rows.split(sizes) if config.separate_forwards else [rows]
        with self.compute.autocast():
            wanted = config.needs_features or config.needs_vectors
            logits, vectors, features = self.ddp_student([take(batch.views, part) for part in parts], wanted)
        logits = logits.float()
        x_vectors, mixed_vectors = (None, None) if vectors is None else vectors.float().split(sizes)

        # d of Equation 2 for every view in it.
        x_logits, mixed_logits = logits.split(sizes)
        x_teacher = mixed_teacher = x_kl = mixed_kl = x_taught = mixed_taught = None
        if teacher_logits is not None:
            x_teacher, mixed_teacher = teacher_logits[rows].split(sizes)
            x_kl, mixed_kl = kl_divergence(logits, teacher_logits[rows], config.temperature).split(sizes)
        if teacher_vectors is not None:
            x_taught = teacher_vectors[:size]
            mixed_taught = teacher_vectors[size + selection.rows] if config.keeps_vectors else None

        # Each loss is a mean over its own rows, of x or of x'; under DDP, of the rows of all processes.
        x = mixed = None
        if self.trains_on_x:
            x = ViewOutputs(
                student=x_logits,
                teacher=x_teacher,
                kl=x_kl,
                labels=batch.labels,
                samples=batch.samples,
                epoch=batch.epoch,
                student_vectors=x_vectors,
                teacher_vectors=x_taught,
                student_features=tuple(feature[:size].float() for feature in features),
                teacher_features=tuple(teacher_features),
                process_weight=distributed.world_size() * size / len(batch.global_positions),
                labelled_share=self._labelled_share(batch.labels),
            )
        if batch.slots:
            mixed = ViewOutputs(
                student=mixed_logits,
                teacher=mixed_teacher,
                kl=mixed_kl,
                labels=candidates.labels[selection.rows],
                samples=batch.samples.repeat(batch.slots)[selection.rows],
                epoch=batch.epoch,
                partner_labels=candidates.partner_labels[selection.rows],
                lam=candidates.lam[selection.rows],
                student_vectors=mixed_vectors,
                teacher_vectors=mixed_taught,
                process_weight=distributed.world_size() * selection.num_picked / selection.global_num_picked,
                labelled_share=self._labelled_share(batch.mixed_labels()[selection.rows[: selection.num_picked]]),
            )
        losses = self.objective(x, mixed)

        # Update the student, and the layers that losses train, by the sum, in which a loss may still be warming up.
        # Only the graph needs the features now.
        del features, vectors, outputs, teacher_features, x, mixed
        loss = self.total_loss(losses, batch.epoch)
        self.update(loss)

        # Record d, the picks, the KL ratio r, and how often the teacher disagrees with the mixed label.
        self.recorder.record(batch, teacher_logits, x_kl, mixed_kl, selection, candidates.kl, losses)
        if self.trains_on_x:
            return StepResult.of(loss, x_logits, batch.labels)
        picks = selection.rows[: selection.num_picked]
        return StepResult.of(loss, mixed_logits[: len(picks)], batch.mixed_labels()[picks])

    def _labelled_share(self, labels: Tensor) -> Tensor | None:
        """Share of the labels that are known, in all processes, if there are unlabelled images."""
        return None if self.config.unlabelled is None else labelled_share(labels)

    @torch.no_grad()
    def _candidates(self, batch: Batch, teacher_logits: Tensor | None) -> Candidates:
        """Gather what the criterion reads, scoring with the student as it is, its running statistics too by default."""
        criterion = self.config.augmentation.pick
        teacher = teacher_logits[len(batch) :] if teacher_logits is not None else None
        student = kl = None
        if criterion is not None and CRITERIA[criterion].student:
            with self.scoring_statistics, self.compute.autocast():
                student = self.student([batch.mixed_views()])[0].float()
            if teacher is not None:
                kl = kl_divergence(student, teacher, self.config.temperature)
        labels = batch.labels.repeat(batch.slots)
        return Candidates(teacher, student, kl, labels, batch.partner_labels, batch.lam, batch.random_score)
