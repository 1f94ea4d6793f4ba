"""One epoch of training, and evaluation. Yields what happens; writes nothing."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcache import distributed, signals
from kdcache.compute import Compute
from kdcache.config import TrainingConfig
from kdcache.datasets import Dataset, Split
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import KdcacheError
from kdcache.losses import cross_entropy
from kdcache.models import Network
from kdcache.run.folder import EpochMetrics
from kdcache.views import Batch, share

__all__ = [
    "Accuracy",
    "FrozenRunningStats",
    "StepEvent",
    "epoch_metrics",
    "evaluate",
    "set_learning_rate",
    "sgd",
    "train_epoch",
]

LOSS_CHECK_STEPS = 20
"""Steps between two looks at the loss: a look waits for the device."""

SMALLER_STEP = "a smaller --batch-size"
SMALLER_FORWARD = "a smaller network or --image-size"
"""What to try where the memory does not suffice for a step, or for an evaluation."""


class StepEvent(NamedTuple):
    """Some steps were taken.

    Attributes
    ----------
    step : int
        Steps of the epoch that are done.
    images : int
        Training samples of the epoch that are done.
    losses : float
        Sum of the losses of these steps.
    images_per_second : float
        Since the epoch began, or was gone on with.
    seconds, waited : float
        Time since then, and what part of it went into waiting for views.
    """

    step: int
    images: int
    losses: float
    images_per_second: float
    seconds: float
    waited: float

    @property
    def loss(self) -> float:
        """Mean loss of the epoch so far."""
        return self.losses / self.step


def train_epoch(
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    loss_of: Callable[[Batch], Tensor],
    compute: Compute,
    losses: float = 0.0,
) -> Iterator[StepEvent]:
    """Take a step on every batch.

    Parameters
    ----------
    optimiser : Optimizer
    batches : iterable of Batch
        The views of the epoch, or of what is left of it.
    loss_of : callable
        The loss of a batch, shape ().
    compute : Compute
        What it computes with.
    losses : float
        Sum of the losses of the steps before these.

    Yields
    ------
    StepEvent
        Every few steps, after the last one, and where the work is to stop.

    Raises
    ------
    KdcacheError
        Where the loss is not finite, naming epoch and step.
    """
    started = time.perf_counter()
    unseen: list[Tensor] = []
    images, waited = 0, 0.0
    for batch, is_last, wait in _marked(batches):
        waited += wait
        with compute.memory_explained(f"a step of {len(batch)} images", SMALLER_STEP):
            loss = loss_of(batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        unseen.append(loss.detach())
        images += len(batch.global_positions)
        # Several processes look at the same steps, whichever of them is to stop.
        if len(unseen) == LOSS_CHECK_STEPS or is_last or (signals.stop_requested() and distributed.world_size() == 1):
            for value in _checked(unseen, batch):
                losses += value  # one by one: the sum does not depend on where somebody looked
            unseen = []
            seconds = time.perf_counter() - started
            yield StepEvent(batch.step + 1, batch.global_positions.stop, losses, images / seconds, seconds, waited)


def _marked(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool, float]]:
    """Say of each batch whether it is the last one, and for how many seconds one had to wait."""
    ahead, began = iter(batches), time.perf_counter()
    batch = next(ahead)
    while True:
        following = next(ahead, None)
        yield batch, following is None, time.perf_counter() - began
        if following is None:
            return
        batch, began = following, time.perf_counter()


def _checked(losses: list[Tensor], last: Batch) -> list[float]:
    """Read the losses of the steps up to `last`, all of which must be finite; means over the processes."""
    values: list[float] = (distributed.all_reduce_sum(torch.stack(losses)) / distributed.world_size()).tolist()
    for steps_back, value in zip(range(len(values) - 1, -1, -1), values, strict=True):
        if not math.isfinite(value):
            raise KdcacheError(f"the loss became {value} at epoch {last.epoch + 1}, step {last.step + 1 - steps_back}")
    return values


def sgd(network: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Make the optimiser of the paper's settings: SGD with momentum, and weight decay on every parameter."""
    # Fused, a step takes 0.6 of what it takes with foreach (ResNet20 and WRN-16-2 on a processor).
    return torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter."""
    for group in optimiser.param_groups:
        group["lr"] = rate


class FrozenRunningStats:
    """Context in which a network normalises by the batch's statistics, but leaves the running ones as they are.

    Scoring candidates is no training: it must not move what the student will be evaluated with.

    Parameters
    ----------
    network : Module
        In training mode. Its normalisations are looked for here, once for all steps.
    """

    def __init__(self, network: nn.Module) -> None:
        norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
        # Attributes by their dictionaries, as torch takes ten times as long to set one.
        self._norms = [vars(norm) for norm in norms if norm.track_running_stats]

    def __enter__(self) -> None:
        self._track(False)

    def __exit__(self, *_: object) -> None:
        self._track(True)

    def _track(self, running: bool) -> None:
        for norm in self._norms:
            norm["track_running_stats"] = running


@dataclass(frozen=True)
class Accuracy:
    """How a network does on a split: percent of images, and mean cross-entropy in nats."""

    top1: float
    top5: float
    loss: float


@torch.inference_mode()
def evaluate(network: Network, split: Split, compute: Compute, batch_size: int = 250) -> Accuracy:
    """Measure the accuracy on the clean views of a split, of which each process takes a part.

    The network is left in the mode it was in.

    Parameters
    ----------
    network : Network
    split : Split
    compute : Compute
    batch_size : int
        Images of a forward.

    Returns
    -------
    Accuracy
    """
    was_training = network.training
    network.eval()
    totals = torch.zeros(3, dtype=torch.float64)
    mine = share(range(len(split)), distributed.rank(), distributed.world_size())
    # Where there are fewer images than processes, some have none, of which split would make a part.
    steps = torch.arange(mine.start, mine.stop).split(batch_size) if mine else ()
    for samples, images in zip(steps, prefetch_map(split.take, steps, split.workers), strict=True):
        labels = split.labels[samples].to(compute.device)
        work = f"an evaluation, {len(samples)} images at a time"
        with compute.memory_explained(work, SMALLER_FORWARD), compute.autocast():
            logits = network(images.to(compute.device))
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        figures = (best[:, 0].sum(), best.sum(), cross_entropy(logits, labels) * len(samples))
        totals += torch.stack([figure.float() for figure in figures]).cpu().double()
    network.train(was_training)
    top1, top5, loss = (distributed.all_reduce_sum(totals) / len(split)).tolist()
    return Accuracy(100 * top1, 100 * top5, loss)


def epoch_metrics(
    event: StepEvent,
    network: Network,
    data: Dataset,
    compute: Compute,
    config: TrainingConfig,
    *,
    epoch: int,
    started: float,
    **more: Any,
) -> EpochMetrics:
    """Evaluate a network after an epoch, if its turn has come, and say how the epoch went.

    The network has the buffers of the first process then.

    Parameters
    ----------
    event : StepEvent
        The last one of the epoch.
    network : Network
    data : Dataset
    compute : Compute
    config : TrainingConfig
    epoch : int
        Counted from 0.
    started : float
        When the epoch began, by ``time.perf_counter``.
    **more
        What else there is to say, by its name in `EpochMetrics`.
    """
    distributed.broadcast_buffers(network)
    turn = config.evaluates_after(epoch)
    test = evaluate(network, data.test, compute) if turn else None
    validation = evaluate(network, data.val, compute) if turn and data.val else None
    return EpochMetrics(
        epoch=epoch + 1,
        lr=config.learning_rate(epoch),
        train_loss=event.loss,
        test_loss=test.loss if test else None,
        test_top1=test.top1 if test else None,
        test_top5=test.top5 if test else None,
        val_loss=validation.loss if validation else None,
        val_top1=validation.top1 if validation else None,
        images_per_second=event.images_per_second,
        data_share=event.waited / event.seconds,
        seconds=time.perf_counter() - started,
        **more,
    )
