"""Stage two: train a student. Views, oracle, pick, loss, step, record."""

import time

import torch
from torch import Tensor, nn

from kdcache import loop
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset
from kdcache.losses import Mixed, Objective, Plain, Setting, kld, make_parts
from kdcache.models import Network
from kdcache.oracle import Oracle
from kdcache.pick import SCORES, Candidates, best
from kdcache.record import EpochMetrics, FinishedRun, Run, check_folder
from kdcache.report.curves import draw_curves
from kdcache.report.progress import Reporter
from kdcache.resolve import find_teacher, fresh_network, load_data, open_oracle, plan_of
from kdcache.store.statistics import EpochStatistics, StatisticsStore
from kdcache.views import Batch, ViewMaker
from kdcache.words import CRITERIA

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
    check_folder(config)
    compute = Compute.choose(config.device, config.precision)
    data = load_data(config)
    if config.needs_teacher:
        config = config.model_copy(update={"teacher": find_teacher(config)})  # the record names the one that was used
    plan = plan_of(config, data)
    views = ViewMaker(data.train, plan, config.batch_size, compute.device)
    oracle = open_oracle(config, data, views, compute) if config.needs_teacher else None
    student = fresh_network(config, data).to(compute.device)
    objective = make_objective(config, student, oracle, data).to(compute.device)
    step = Step(config, student, objective, oracle, compute)
    optimiser = loop.sgd(nn.ModuleList([student, objective]), config.lr, config.momentum, config.weight_decay)

    run = Run(config, compute, data.class_names)
    shape = {"samples": plan.samples, "slots": plan.slots, "steps": len(views.steps)}
    store = StatisticsStore(run.path / "statistics.zarr", epochs=config.epochs, **shape)
    reporter.begin(f"student {config.model} on {config.dataset} -> {run.path}", config.epochs, plan.samples)
    for epoch in range(config.epochs):
        started = time.perf_counter()
        loop.set_rate(optimiser, config.rate(epoch))
        step.begin(EpochStatistics.empty(**shape, device=compute.device))
        for event in loop.train_epoch(optimiser, views.epoch(epoch), step):
            reporter.step(event)
        store.write(epoch, step.statistics)
        accuracy = loop.evaluate(student, data.test, compute)
        metrics = EpochMetrics(
            epoch=epoch + 1,
            lr=config.rate(epoch),
            train_loss=event.loss,
            test_loss=accuracy.loss,
            test_top1=accuracy.top1,
            test_top5=accuracy.top5,
            images_per_second=event.images / event.seconds,
            seconds=time.perf_counter() - started,
            kl_ratio=step.statistics.mean_kl_ratio(),
            label_disagreement=step.statistics.label_disagreement(),
            loss_parts=step.mean_losses(),
            **(oracle.count() if oracle else {}),
        )
        run.end_epoch(metrics, student)
        reporter.end_epoch(metrics)
    draw_curves(run.metrics, run.path / "curves.png")
    return run.finish()


class Step:
    """The paper's training step, up to the loss.

    Parameters
    ----------
    config : StudentConfig
    student : Network
        In training mode.
    objective : Objective
    oracle : Oracle or None
        ``None`` where nothing reads the teacher.
    compute : Compute

    Attributes
    ----------
    statistics : EpochStatistics
        Where the figures of the epoch are added up.
    """

    statistics: EpochStatistics

    def __init__(
        self,
        config: StudentConfig,
        student: Network,
        objective: Objective,
        oracle: Oracle | None,
        compute: Compute,
    ) -> None:
        self.student, self.objective, self.oracle, self.compute = student, objective, oracle, compute
        self.temperature, self.augmentation = config.temperature, config.augmentation
        self.reads_features = config.needs_features
        self._losses: list[dict[str, Tensor]] = []

    def begin(self, statistics: EpochStatistics) -> None:
        """Begin an epoch, of which nothing is known yet."""
        self.statistics, self._losses = statistics, []

    def mean_losses(self) -> dict[str, float]:
        """Mean of each loss of the sum over the steps of the epoch."""
        return {name: torch.stack([one[name] for one in self._losses]).mean().item() for name in self._losses[0]}

    def __call__(self, batch: Batch) -> Tensor:
        """Ask once about x and all candidates, pick, forward x and the picks together, and compute the loss."""
        size = len(batch)
        answers, teacher_features = self._ask(batch)
        picks, candidate_d = self._pick(batch, answers)
        trains_on_x = self.objective.wants_plain(mixing=batch.slots > 0)
        rows = torch.cat([torch.arange(size if trains_on_x else 0, device=picks.device), size + picks])
        logits, features = self._forward(batch.views[rows])
        x_logits, mixed_logits = logits.float().split([size if trains_on_x else 0, len(picks)])

        plain = mixed = None
        if trains_on_x:
            plain = Plain(
                x_logits,
                answers[:size] if answers is not None else None,
                batch.labels,
                batch.samples,
                batch.epoch,
                tuple(feature[:size].float() for feature in features),
                tuple(teacher_features),
            )
        if batch.slots:
            mixed = Mixed(
                mixed_logits,
                answers[size + picks] if answers is not None else None,
                batch.labels.repeat(batch.slots)[picks],
                batch.partner_labels[picks],
                batch.kept[picks],
            )
        self._record(batch, answers, plain, mixed, picks, candidate_d)
        losses = self.objective(plain, mixed)
        self._losses.append({name: loss.detach() for name, loss in losses.items()})
        return torch.stack(list(losses.values())).sum()

    def _ask(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """Put the views to the oracle: the answers, and the teacher's features of x where a loss reads them."""
        if self.oracle is None:
            return None, []
        if self.reads_features:
            return self.oracle.ask_with_features(batch)
        return self.oracle.ask(batch), []

    def _forward(self, views: Tensor) -> tuple[Tensor, list[Tensor]]:
        with self.compute.autocast():
            return self.student.with_features(views) if self.reads_features else (self.student(views), [])

    @torch.no_grad()
    def _pick(self, batch: Batch, answers: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Choose among the candidates: indices of the picks, and d of every candidate where the student scored them."""
        size, criterion = len(batch), self.augmentation.pick
        if criterion is None:
            return torch.arange(size * batch.slots, device=batch.views.device), None
        reads = CRITERIA[criterion]
        teacher = answers[size:] if answers is not None else None
        student = None
        if reads.student:
            with loop.unchanged_statistics(self.student), self.compute.autocast():
                student = self.student(batch.views[size:]).float()
        scores = SCORES[criterion](Candidates(teacher, student, batch.lot, self.temperature))
        d = kld(teacher, student, self.temperature) if teacher is not None and student is not None else None
        return best(scores, max(2, round(self.augmentation.keep * len(scores)))), d

    @torch.no_grad()
    def _record(
        self,
        batch: Batch,
        answers: Tensor | None,
        plain: Plain | None,
        mixed: Mixed | None,
        picks: Tensor,
        candidate_d: Tensor | None,
    ) -> None:
        """Note d of every view whose logits are there anyway, the picks, r, and the labels in dispute."""
        statistics, size = self.statistics, len(batch)
        sample, slot = batch.samples.repeat(batch.slots), torch.arange(batch.slots * size, device=picks.device) // size
        statistics.picked[slot[picks], sample[picks]] = True
        if answers is None:
            return
        if plain is not None:
            statistics.d_x[batch.samples] = kld(answers[:size], plain.student, self.temperature)
        if mixed is None:
            return
        if candidate_d is None:
            statistics.d_mixed[slot[picks], sample[picks]] = kld(answers[size + picks], mixed.student, self.temperature)
        else:
            statistics.d_mixed[slot, sample] = candidate_d
            statistics.kl_ratio[batch.step] = candidate_d[picks].mean() / candidate_d.mean()
        statistics.disputed[batch.step] = (answers[size:].argmax(1) != batch.mixed_labels()).sum()


def make_objective(config: StudentConfig, student: Network, oracle: Oracle | None, data: Dataset) -> Objective:
    """Make the sum of losses that a config names, with what these train and remember."""
    networks = (student, oracle.teacher.network) if oracle and config.needs_features else ()
    shapes = [network.feature_shapes() for network in networks] or [(), ()]
    setting = Setting(
        student=shapes[0],
        teacher=shapes[1],
        labels=data.train.labels,
        temperature=config.temperature,
        seed=config.seed,
    )
    return Objective(config.loss_weights, config.temperature, make_parts(config.loss_weights, setting))
