"""Stage two: train a student. Views, oracle, pick, loss, step, record."""

import time

import torch
from torch import Tensor

from kdcache import loop
from kdcache.compute import Compute
from kdcache.config import CRITERIA, StudentConfig
from kdcache.losses import OBJECTIVES, Mixed, Plain, kld
from kdcache.models import Network
from kdcache.oracle import Oracle
from kdcache.pick import SCORES, Candidates, best
from kdcache.record import EpochMetrics, FinishedRun, Run, check_folder
from kdcache.report.curves import draw_curves
from kdcache.report.progress import Reporter
from kdcache.resolve import find_teacher, fresh_network, load_data, open_oracle, plan_of
from kdcache.store.statistics import EpochStatistics, StatisticsStore
from kdcache.views import Batch, ViewMaker

__all__ = ["Step", "train_student"]


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
    step = Step(config, student, oracle, compute)
    optimiser = loop.sgd(student, config.lr, config.momentum, config.weight_decay)

    run = Run(config, compute, data.class_names)
    shape = {"samples": plan.samples, "slots": plan.slots, "steps": len(views.steps)}
    store = StatisticsStore(run.path / "statistics.zarr", epochs=config.epochs, **shape)
    reporter.begin(f"student {config.model} on {config.dataset} -> {run.path}", config.epochs, plan.samples)
    for epoch in range(config.epochs):
        started = time.perf_counter()
        loop.set_rate(optimiser, config.rate(epoch))
        step.statistics = EpochStatistics.empty(**shape, device=compute.device)
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
    oracle : Oracle or None
        ``None`` where nothing reads the teacher.
    compute : Compute

    Attributes
    ----------
    statistics : EpochStatistics
        Where the figures of the epoch are added up.
    """

    statistics: EpochStatistics

    def __init__(self, config: StudentConfig, student: Network, oracle: Oracle | None, compute: Compute) -> None:
        self.student, self.oracle, self.compute = student, oracle, compute
        self.temperature, self.criterion = config.temperature, config.augmentation.pick
        self.objective = OBJECTIVES[config.loss](config.temperature, config.alpha)

    def __call__(self, batch: Batch) -> Tensor:
        """Ask once about x and all candidates, pick, forward x and the picks together, and compute the loss."""
        size = len(batch)
        answers = self.oracle.ask(batch) if self.oracle else None
        picks, candidate_d = self._pick(batch, answers)
        trains_on_x = self.objective.wants_plain(mixing=batch.slots > 0)
        rows = torch.cat([torch.arange(size if trains_on_x else 0, device=picks.device), size + picks])
        with self.compute.autocast():
            logits = self.student(batch.views[rows])
        x_logits, mixed_logits = logits.float().split([size if trains_on_x else 0, len(picks)])

        plain = Plain(x_logits, answers[:size] if answers is not None else None, batch.labels) if trains_on_x else None
        mixed = Mixed(
            mixed_logits,
            answers[size + picks] if answers is not None else None,
            batch.labels.repeat(batch.slots)[picks],
            batch.partner_labels[picks],
            batch.kept[picks],
        )
        self._record(batch, answers, plain, mixed, picks, candidate_d)
        return self.objective(plain, mixed if batch.slots else None)

    @torch.no_grad()
    def _pick(self, batch: Batch, answers: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Choose among the candidates: indices of the picks, and d of every candidate where the student scored them."""
        size = len(batch)
        if self.criterion is None:
            return torch.arange(size * batch.slots, device=batch.views.device), None
        reads = CRITERIA[self.criterion]
        teacher = answers[size:] if answers is not None else None
        student = None
        if reads.student:
            with loop.unchanged_statistics(self.student), self.compute.autocast():
                student = self.student(batch.views[size:]).float()
        scores = SCORES[self.criterion](Candidates(teacher, student, batch.lot, self.temperature))
        d = kld(teacher, student, self.temperature) if teacher is not None and student is not None else None
        return best(scores, size), d

    @torch.no_grad()
    def _record(
        self,
        batch: Batch,
        answers: Tensor | None,
        plain: Plain | None,
        mixed: Mixed,
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
        if batch.slots == 0:
            return
        if candidate_d is None:
            statistics.d_mixed[slot[picks], sample[picks]] = kld(answers[size + picks], mixed.student, self.temperature)
        else:
            statistics.d_mixed[slot, sample] = candidate_d
            statistics.kl_ratio[batch.step] = candidate_d[picks].mean() / candidate_d.mean()
        statistics.disputed[batch.step] = (answers[size:].argmax(1) != batch.mixed_labels()).sum()
