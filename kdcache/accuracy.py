"""Evaluation of a network on the clean views of a split."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache import distributed
from kdcache.compute import Compute, to_device
from kdcache.datasets import Split
from kdcache.datasets.workers import prefetch_map
from kdcache.losses import cross_entropy
from kdcache.models import Network
from kdcache.models.modes import evaluating
from kdcache.views import rank_part

__all__ = ["EVALUATION_REMEDY", "Accuracy", "evaluate"]

EVALUATION_REMEDY = "a smaller network or --image-size"


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on a split, in percent, and mean cross-entropy, in nats."""

    top1: float
    top5: float
    loss: float


@torch.inference_mode()
def evaluate(network: Network, split: Split, compute: Compute, batch_size: int = 250) -> Accuracy:
    """Evaluate a network on the clean views of a split, divided among the processes.

    The network and its modules stay in the mode they were in.

    Parameters
    ----------
    network : Network
    split : Split
    compute : Compute
    batch_size : int
        Images per forward.
    """
    sums: list[Tensor] = []
    mine = rank_part(range(len(split)), distributed.rank(), distributed.world_size())
    # A process may have no images at all, for which torch.split would give one empty part.
    steps = torch.arange(mine.start, mine.stop).split(batch_size) if mine else ()
    ahead = prefetch_map(split.take, steps, split.workers, pin=compute.device.type == "cuda")
    with evaluating(network):
        for samples, images in zip(steps, ahead, strict=True):
            labels = to_device(split.labels[samples], compute.device)
            work = f"an evaluation of {len(samples)} images at a time"
            with compute.memory_explained(work, EVALUATION_REMEDY), compute.autocast():
                logits = network(to_device(images, compute.device))
            logits = logits.float()
            correct = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            figures = (correct[:, 0].sum(), correct.sum(), cross_entropy(logits, labels) * len(samples))
            sums.append(torch.stack([figure.float() for figure in figures]))
    totals = torch.zeros(3, dtype=torch.float64)
    if sums:
        for figures in torch.stack(sums).cpu().double():  # one copy from the device, for which the host waits
            totals += figures
    top1, top5, loss = (distributed.all_reduce_sum(totals) / len(split)).tolist()
    return Accuracy(100 * top1, 100 * top5, loss)
