"""Stage two: train a student. Views, teacher, pick, loss, step, record."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from kdcache import distributed, signals, training
from kdcache.answers.cached_teacher import CachedTeacher, TeacherCounts
from kdcache.choices import CRITERIA
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset
from kdcache.losses import Mixed, Objective, Plain, Setting, kld, make_parts
from kdcache.models import Network
from kdcache.report.progress import Reporter
from kdcache.report.training_curves import draw_training_curves
from kdcache.run.checkpoint import Progress
from kdcache.run.folder import FinishedRun
from kdcache.run.resolve import resolve_run
from kdcache.run.statistics import EpochStatistics, StatisticsShape, StatisticsStore
from kdcache.run.writer import RunWriter
from kdcache.selection import SCORES, Candidates, Picks
from kdcache.setup import choose_compute, find_teacher, fresh_network, load_data, open_cached_teacher, plan_of
from kdcache.training import epoch_metrics
from kdcache.views import Batch, ViewMaker, take

__all__ = ["Step", "make_objective", "train_student"]


def train_student(config: StudentConfig, reporter: Reporter | None = None) -> FinishedRun:
    """Train a student as the paper does (Section 3.2), on answers for exactly the views that it sees.

    Parameters
    ----------
    config : StudentConfig
    reporter : Reporter, optional
        Hears of the progress; silent by default.

    Returns
    -------
    FinishedRun
        The run folder, with the network and the per-sample statistics.

    Raises
    ------
    UsageError
        Where the data, the teacher or the run folder are not as they should be; nothing is written then.
    KdcacheError
        Where the loss stops being finite; the network of the last whole epoch is kept.
    """
    reporter = reporter or Reporter()
    distributed.init(config.device)
    config, finished = resolve_run(config)
    if finished is not None:
        return finished
    compute = choose_compute(config)
    data = load_data(config)
    if config.needs_teacher:
        # The record names the one that was used.
        config = config.model_copy(update={"teacher": distributed.broadcast(find_teacher(config))})
    plan = plan_of(config, data)
    views = ViewMaker(data.train, plan, config.batch_size, compute.device)
    cached_teacher = open_cached_teacher(config, data, views, compute) if config.needs_teacher else None
    student = fresh_network(config, data).to(compute.device)
    if config.sync_batchnorm:
        student = distributed.convert_sync_batchnorm(student, compute.device)
    objective = make_objective(config, student, cached_teacher, data).to(compute.device)
    step = Step(config, student, objective, cached_teacher, compute)
    optimiser = training.sgd(nn.ModuleList([student, objective]), config.lr, config.momentum, config.weight_decay)

    run = RunWriter(config, compute, data, cached_teacher.teacher if cached_teacher else None)
    progress = run.restore({"student": student, "objective": objective}, optimiser)
    shape = StatisticsShape(plan.samples, plan.slots, len(views.steps), step.losses)
    store = StatisticsStore(run.folder.statistics_store, config.epochs, shape) if distributed.is_main() else None
    reporter.begin(f"student {config.model} on {config.dataset} -> {run.path}", config.epochs, plan.samples, run.path)
    with signals.defer_stop():
        for epoch in range(progress.epoch, config.epochs):
            started = time.perf_counter()
            training.set_learning_rate(optimiser, config.learning_rate(epoch))
            step.begin(EpochStatistics.empty(shape, compute.device), progress)
            batches = views.epoch(epoch, progress.step)
            for event in training.train_epoch(optimiser, batches, step, compute, progress.losses):
                reporter.step(event)
                if event.step < len(views.steps) and run.checkpoint_due(step.questions().everywhere().asked):
                    run.save_checkpoint(Progress(epoch, event.step, event.losses, **step.state()))
            statistics, questions = step.statistics.merged(), step.questions().everywhere()
            if store is not None:
                store.write(epoch, statistics)
            metrics = epoch_metrics(
                event,
                student,
                data,
                compute,
                config,
                epoch=epoch,
                started=started,
                teacher_share=step.waited / event.seconds if cached_teacher else None,
                kl_ratio=statistics.mean_kl_ratio(),
                label_disagreement=statistics.label_disagreement(),
                loss_parts=dict(zip(step.losses, statistics.losses.mean(0).tolist(), strict=True)),
                **questions.as_metrics(),
            )
            run.end_epoch(metrics, student)
            reporter.end_epoch(metrics)
            progress = Progress(epoch + 1)
            run.save_checkpoint(progress)
    if distributed.is_main():
        draw_training_curves(run.metrics, run.folder.curves_file)
    return run.finish()


class Step:
    """The paper's training step, up to the loss.

    Parameters
    ----------
    config : StudentConfig
    student : Network
        In training mode.
    objective : Objective
    cached_teacher : CachedTeacher or None
        ``None`` where nothing reads the teacher.
    compute : Compute

    Attributes
    ----------
    statistics : EpochStatistics
        Where the figures of the epoch are added up.
    waited : float
        Seconds that went into the teacher's answers since the epoch began, or was gone on with.
    """

    statistics: EpochStatistics
    waited: float

    def __init__(
        self,
        config: StudentConfig,
        student: Network,
        objective: Objective,
        cached_teacher: CachedTeacher | None,
        compute: Compute,
    ) -> None:
        self.student, self.objective, self.cached_teacher, self.compute = student, objective, cached_teacher, compute
        self.temperature, self.augmentation = config.temperature, config.augmentation
        self.picks_globally = config.pick_scope == "global"
        self.losses = tuple(objective.weights)
        self.trains_on_x = objective.wants_plain(mixing=self.augmentation.mixes != ())
        self.reads_features = config.needs_features
        network = Trained(student)
        self._scored = compute.compiled(network) if config.compile else network
        self._trained = distributed.wrap_ddp(self._scored, broadcast_buffers=True)
        self._statistics_unchanged = training.FrozenRunningStats(student)
        self._losses_of = distributed.wrap_ddp(objective, broadcast_buffers=False)
        self._questions = TeacherCounts()

    def begin(self, statistics: EpochStatistics, progress: Progress | None = None) -> None:
        """Begin an epoch, of which nothing is known yet, or go on with one."""
        self.statistics, self._questions, self.waited = statistics, TeacherCounts(), 0.0
        if progress and progress.statistics:
            columns = {name: column.to(statistics.d_x.device) for name, column in progress.statistics.items()}
            self.statistics = EpochStatistics(**columns).split()
            self._questions = TeacherCounts(*(progress.teacher_counts if distributed.is_main() else ()))

    def questions(self) -> TeacherCounts:
        """Count the questions that this process has put in the epoch."""
        if self.cached_teacher is not None:
            self._questions = self._questions.plus(self.cached_teacher.count())
        return self._questions

    def state(self) -> dict[str, Any]:
        """Say what a checkpoint within the epoch holds of it."""
        return {"teacher_counts": list(self.questions().everywhere()), "statistics": vars(self.statistics.merged())}

    def __call__(self, batch: Batch) -> Tensor:
        """Ask once about x and all candidates, pick, forward x and the picks together, and compute the loss."""
        size, answers, teacher_features = len(batch), *self._ask(batch)
        picks, candidate_d = self._pick(batch, answers)
        x_rows = torch.arange(size if self.trains_on_x else 0, device=batch.views.device)
        rows, parts = torch.cat([x_rows, size + picks.rows]), [len(x_rows), len(picks.rows)]
        logits, features = self._forward(take(batch.views, rows))
        x_logits, mixed_logits = logits.split(parts)
        d_x, d_mixed = None, None
        if answers is not None:
            d_x, d_mixed = kld(answers[rows], logits, self.temperature).split(parts)

        plain = mixed = None
        if self.trains_on_x:
            plain = Plain(
                x_logits,
                answers[:size] if answers is not None else None,
                d_x,
                batch.labels,
                batch.samples,
                batch.epoch,
                tuple(feature[:size].float() for feature in features),
                tuple(teacher_features),
                share=distributed.world_size() * size / len(batch.global_positions),
            )
        if batch.slots:
            mixed = Mixed(
                mixed_logits,
                d_mixed,
                batch.labels.repeat(batch.slots)[picks.rows],
                batch.partner_labels[picks.rows],
                batch.lam[picks.rows],
                share=distributed.world_size() * picks.own / picks.everywhere,
            )
        self._record(batch, answers, plain, mixed, picks, candidate_d)
        found = self._losses_of(plain, mixed)
        losses = torch.stack([found[name] for name in self.losses])
        self.statistics.losses[batch.step] = losses.detach()
        return losses.sum()

    def _ask(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """Put the views to the cached_teacher: the answers, and the teacher's features of x where a loss reads them."""
        if self.cached_teacher is None:
            return None, []
        began = time.perf_counter()
        found = (
            self.cached_teacher.logits_and_features(batch)
            if self.reads_features
            else (self.cached_teacher.ask(batch), [])
        )
        self.waited += time.perf_counter() - began
        return found

    def _forward(self, views: Tensor) -> tuple[Tensor, list[Tensor]]:
        with self.compute.autocast():
            logits, features = self._trained(views, self.reads_features)
        return logits.float(), features

    @torch.no_grad()
    def _pick(self, batch: Batch, answers: Tensor | None) -> tuple[Picks, Tensor | None]:
        """Choose among the candidates: the picks, and d of every candidate where the student scored them."""
        size, criterion = len(batch), self.augmentation.pick
        if criterion is None:
            return Picks.all(batch.slots, size, len(batch.global_positions), batch.views.device), None
        reads = CRITERIA[criterion]
        teacher = answers[size:] if answers is not None else None
        student = None
        if reads.student:
            with self._statistics_unchanged, self.compute.autocast():
                student = self._scored(batch.views[size:])[0].float()
        d = kld(teacher, student, self.temperature) if teacher is not None and student is not None else None
        scores = SCORES[criterion](Candidates(teacher, student, d, batch.random_score))
        return Picks.best(scores.reshape(-1, size), self.augmentation.keep, self.picks_globally), d

    @torch.no_grad()
    def _record(
        self,
        batch: Batch,
        answers: Tensor | None,
        plain: Plain | None,
        mixed: Mixed | None,
        picks: Picks,
        candidate_d: Tensor | None,
    ) -> None:
        """Note d of every view whose logits are there anyway, the picks, r, and the labels in dispute."""
        statistics, rows, slots = self.statistics, picks.rows[: picks.own], (batch.slots, len(batch))
        picked = torch.zeros_like(batch.random_score, dtype=torch.bool).index_fill_(0, rows, True)
        statistics.picked.index_copy_(1, batch.samples, picked.view(slots))
        if plain is not None and plain.d is not None:
            statistics.d_x.index_copy_(0, batch.samples, plain.d.detach())
        if answers is None or mixed is None or mixed.d is None:
            return
        if candidate_d is None:
            d = torch.full_like(batch.random_score, torch.nan).index_copy_(0, rows, mixed.d.detach()[: picks.own])
        else:
            d = candidate_d
            statistics.kl_ratio[batch.step] = distributed.global_mean(d[rows]) / distributed.global_mean(d)
        statistics.d_mixed.index_copy_(1, batch.samples, d.view(slots))
        statistics.disagreements[batch.step] = (answers[len(batch) :].argmax(1) != batch.mixed_labels()).sum()


class Trained(nn.Module):
    """What a student says of views, with its inner tensors where a loss reads them."""

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.student = student

    def forward(self, views: Tensor, features: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Give logits (B, C), and the features, see `Network.with_features`."""
        return self.student.with_features(views) if features else (self.student(views), [])


def make_objective(
    config: StudentConfig, student: Network, cached_teacher: CachedTeacher | None, data: Dataset
) -> Objective:
    """Make the sum of losses that a config names, with what these train and remember."""
    networks = (student, cached_teacher.teacher.network) if cached_teacher and config.needs_features else ()
    shapes = [network.feature_shapes() for network in networks] or [(), ()]
    setting = Setting(
        student=shapes[0],
        teacher=shapes[1],
        labels=data.train.labels,
        temperature=config.temperature,
        seed=config.seed,
    )
    return Objective(config.loss_weights, config.temperature, make_parts(config.loss_weights, setting))
