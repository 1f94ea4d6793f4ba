"""The epoch loop of both recipes."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kdcache import distributed, signals
from kdcache.accuracy import evaluate
from kdcache.compute import Compute
from kdcache.datasets.split import UNLABELLED
from kdcache.errors import KdcacheError, problem
from kdcache.models import Network
from kdcache.optimization import Update
from kdcache.run.checkpoint import TrainingState
from kdcache.run.folder import EpochMetrics
from kdcache.run.recorder import Recorder
from kdcache.run.writer import RunWriter
from kdcache.views import Batch, Views

__all__ = ["EpochProgress", "StepResult", "TrainingCallback", "train_epoch", "train_epochs"]

log = logging.getLogger("kdcache")

LOSS_CHECK_STEPS = 20
"""Steps after which the losses are read from the device, which makes the host wait for it."""

STEP_REMEDY = "a smaller --batch-size"


class StepResult(NamedTuple):
    """Result of a training step, on the device, shapes ().

    Attributes
    ----------
    loss : Tensor of float32
    correct, labelled : Tensor of int64
        Views with a label that the network was trained on, and how many of them it classified correctly.
    """

    loss: Tensor
    correct: Tensor
    labelled: Tensor

    @classmethod
    def of(cls, loss: Tensor, logits: Tensor, labels: Tensor) -> "StepResult":
        """Count what logits (R, C) classify correctly of labels (R,), which are -1 where there is none."""
        return cls(loss.detach(), (logits.detach().argmax(1) == labels).sum(), (labels != UNLABELLED).sum())


TrainStep = Callable[[Batch], StepResult]
"""Takes a training step on a batch, update included."""


class EpochProgress(NamedTuple):
    """Progress within an epoch.

    Attributes
    ----------
    steps_done : int
        Steps done in the epoch.
    samples_done : int
        Training samples done in the epoch.
    loss_sum : float
        Sum of the losses of these steps.
    correct, labelled : int
        Views with a label in them, and how many of those were classified correctly.
    images_per_second : float
        Since the epoch began or was resumed.
    seconds, waited : float
        Wall time since then, and how much of it was spent waiting for views.
    """

    steps_done: int
    samples_done: int
    loss_sum: float
    correct: int
    labelled: int
    images_per_second: float
    seconds: float
    waited: float

    @property
    def loss(self) -> float:
        """Mean loss of the epoch so far."""
        return self.loss_sum / self.steps_done

    @property
    def top1(self) -> float | None:
        """Training accuracy of the epoch so far, in percent; ``None`` without labels."""
        return 100 * self.correct / self.labelled if self.labelled else None


class TrainingCallback(Protocol):
    """What `train_epochs` reports its progress to."""

    def begin(self, run: RunWriter, images: int, images_done: int) -> None:
        """Report the start of a training over a number of images, some of which a resumed epoch has done."""

    def step(self, event: EpochProgress) -> None:
        """Report progress within an epoch."""

    def end_epoch(self, metrics: EpochMetrics) -> None:
        """Report the metrics of a finished epoch."""


def train_epochs(
    run: RunWriter,
    progress: TrainingState,
    update: Update,
    views: Views,
    step: TrainStep,
    compute: Compute,
    callback: TrainingCallback,
    recorder: Recorder | None = None,
) -> None:
    """Train for the epochs that are left, writing metrics, checkpoints and what the recorder keeps.

    Parameters
    ----------
    run : RunWriter
    progress : Progress
        Where to start: epoch 0, or what the last checkpoint of a resumed run says.
    update : Update
        Its learning rate follows the config of the run; the network that it has evaluated is written to the run folder.
    views : Views
    step : callable
        Takes a training step on a batch.
    compute : Compute
    callback : TrainingCallback
    recorder : Recorder, optional

    Raises
    ------
    KdcacheError
        If the loss or the weights stop being finite; the network of the last complete epoch is kept.
    signals.Stopped
        After one of `STOP_SIGNALS`, once a checkpoint has been written.
    """
    config, recorder = run.config, recorder or Recorder()
    network, steps = update.evaluated, len(views.steps)

    def scheduled_step(batch: Batch) -> StepResult:
        update.begin_step(batch.epoch, batch.step, steps)
        return step(batch)

    if not 0 <= progress.step < steps:
        what = f"step of epoch {progress.epoch + 1} in the checkpoint"
        raise KdcacheError(problem(what, expected=f"one of {steps}", got=progress.step))
    callback.begin(run, views.plan.samples, views.steps[progress.step].start)
    with signals.defer_stop():
        for epoch in range(progress.epoch, config.epochs):
            if run.has_lost_patience:
                if distributed.is_main():
                    log.info("stopped after epoch %d: %d evaluations without a better one", epoch, config.patience)
                break
            started = time.perf_counter()
            recorder.begin_epoch(progress)
            for event in train_epoch(views.epoch(epoch, progress.step), scheduled_step, compute, progress):
                callback.step(event)
                if event.steps_done < steps and run.checkpoint_due(recorder.teacher_forwards()):
                    sums = event.loss_sum, event.correct, event.labelled
                    run.save_checkpoint(TrainingState(epoch, event.steps_done, *sums, **recorder.state()))
            recorded = recorder.end_epoch(epoch, event.seconds)
            skipped = update.scale.pop_skipped() if update.scale else None
            if skipped and distributed.is_main():
                log.info("epoch %d: skipped %d steps, whose gradients overflowed in float16", epoch + 1, skipped)
            distributed.broadcast_buffers(network)  # running statistics are those of the main process
            metrics = EpochMetrics(
                epoch=epoch + 1,
                lr=config.learning_rate(epoch),
                train_loss=event.loss,
                train_top1=event.top1,
                images_per_second=event.images_per_second,
                data_share=event.waited / event.seconds,
                skipped_steps=skipped,
                **recorded,
                **(_evaluation(network, run, compute) if config.evaluates_after(epoch) else {}),
                seconds=time.perf_counter() - started,
            )
            run.end_epoch(metrics, network)
            callback.end_epoch(metrics)
            progress = TrainingState(epoch + 1)
            run.save_checkpoint(progress)


def _evaluation(network: Network, run: RunWriter, compute: Compute) -> dict[str, Any]:
    """Evaluate a network on the test set, and on the validation set if there is one."""
    test = evaluate(network, run.data.test, compute)
    found = {"test_loss": test.loss, "test_top1": test.top1, "test_top5": test.top5}
    if run.data.val:
        validation = evaluate(network, run.data.val, compute)
        found |= {"val_loss": validation.loss, "val_top1": validation.top1}
    return found


def train_epoch(
    batches: Iterable[Batch], step: TrainStep, compute: Compute, progress: TrainingState | None = None
) -> Iterator[EpochProgress]:
    """Take a step on every batch.

    Parameters
    ----------
    batches : iterable of Batch
        The batches of an epoch, or what is left of them.
    step : callable
    compute : Compute
        Where the steps are computed.
    progress : TrainingState, optional
        Of the epoch's earlier steps.

    Yields
    ------
    EpochProgress
        Every few steps, after the last one, and when the process is to stop.

    Raises
    ------
    KdcacheError
        If a loss is not finite, naming epoch and step.
    """
    started = time.perf_counter()
    before = progress or TrainingState()
    losses, correct, labelled = before.losses, before.correct, before.labelled
    unread: list[StepResult] = []
    images, waited = 0, 0.0
    for batch, is_last, wait in _timed(batches):
        waited += wait
        with compute.memory_explained(f"a step of {len(batch)} images", STEP_REMEDY):
            unread.append(step(batch))
        images += len(batch.global_positions)
        # Several processes read the losses after the same steps, whichever of them is to stop.
        stops = signals.stop_requested() and distributed.world_size() == 1
        if len(unread) == LOSS_CHECK_STEPS or is_last or stops:
            for loss, *counts in _read(unread, batch):
                losses += loss  # one by one, so that the sum does not depend on when the losses were read
                correct, labelled = correct + counts[0], labelled + counts[1]
            unread = []
            seconds = time.perf_counter() - started
            done = batch.step + 1, batch.global_positions.stop, losses, correct, labelled
            yield EpochProgress(*done, images / seconds, seconds, waited)


def _timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool, float]]:
    """Yield each batch with whether it is the last one, and the seconds spent waiting for it."""
    ahead, began = iter(batches), time.perf_counter()
    batch = next(ahead)
    while True:
        following = next(ahead, None)
        yield batch, following is None, time.perf_counter() - began
        if following is None:
            return
        batch, began = following, time.perf_counter()


def _read(results: list[StepResult], last: Batch) -> Iterator[tuple[float, int, int]]:
    """Read the results of the steps up to `last`: losses, averaged over the processes and finite, and counts."""
    columns = [value.to(result.loss.dtype) for result in results for value in result]
    rows = distributed.all_reduce_sum(torch.stack(columns)).view(len(results), -1)
    losses, counts = (rows[:, 0] / distributed.world_size()).tolist(), rows[:, 1:].long().tolist()
    for steps_back, loss, (correct, labelled) in zip(range(len(results) - 1, -1, -1), losses, counts, strict=True):
        if not math.isfinite(loss):
            raise KdcacheError(f"the loss became {loss} at epoch {last.epoch + 1}, step {last.step + 1 - steps_back}")
        yield loss, correct, labelled
