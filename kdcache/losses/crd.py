"""Contrastive representation distillation: Tian, Krishnan and Isola, 2020, arXiv:1910.10699."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache import distributed
from kdcache.losses.base import DistillLoss, LossContext, ViewOutputs

__all__ = ["CRD", "ContrastMemory"]

NEGATIVES = 16_384
"""Negatives for each sample."""

WIDTH = 128
"""Length of the embeddings."""

DENSE_LIMIT = 16
"""Up to this many training samples per negative, one product with the whole memory is taken, then gathered: it costs
less than gathering the rows first (measured: docs/results/crd.md)."""

_EPSILON = 1e-7


class ContrastMemory(nn.Module):
    """The noise-contrastive loss with its two memories: a row per training sample for the student and for the teacher.

    Parameters
    ----------
    samples : int
        Size of the training set, N.
    width : int
        Length of the embeddings, D.
    temperature : float
        Temperature of the noise-contrastive estimate.
    momentum : float
        Weight of the old row when a sample's row is updated.

    Notes
    -----
    The memories hold 2 N D float32 values: 51 MB for 50,000 samples of width 128. Components are initialized uniformly
    within sqrt(3 / D).
    """

    student: Tensor
    teacher: Tensor
    normalizer: Tensor

    def __init__(self, samples: int, width: int = 128, temperature: float = 0.07, momentum: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        bound = math.sqrt(3 / width)
        for name in ("student", "teacher"):
            self.register_buffer(name, torch.empty(samples, width).uniform_(-bound, bound))
        # Estimates of the partition functions: N times the mean over the first batch; 0 until then.
        self.register_buffer("normalizer", torch.zeros(2))
        self._normalizer_estimated = False

    def forward(self, student: Tensor, teacher: Tensor, samples: Tensor, negatives: Tensor) -> Tensor:
        """Compute the loss of a batch, and update the memories with it.

        Parameters
        ----------
        student, teacher : Tensor, shape (B, D)
            Unit-length embeddings.
        samples : Tensor of int64, shape (B,)
            Index of each row in the training set.
        negatives : Tensor of int64, shape (B, K)
            Samples of other classes.

        Returns
        -------
        Tensor, shape ()
        """
        rows = torch.cat([samples[:, None], negatives], 1)
        scores = [self._scores(student, self.teacher, rows), self._scores(teacher, self.student, rows)]
        if not self._normalizer_estimated:
            sums = torch.stack([score.detach().sum() for score in scores])
            count = distributed.all_reduce_sum(rows.new_full((), rows.numel()))
            self.normalizer.copy_(distributed.all_reduce_sum(sums) / count * len(self.student))
            self._normalizer_estimated = True
        losses = [_contrast(score / z, len(self.student)) for score, z in zip(scores, self.normalizer, strict=True)]
        # All processes hold the same memories: each is updated with the rows of all.
        student, teacher, samples = (
            torch.cat(distributed.all_gather(own.detach())) for own in (student, teacher, samples)
        )
        self.student = self._updated(self.student, student, samples, self._is_small(rows))
        self.teacher = self._updated(self.teacher, teacher, samples, self._is_small(rows))
        return losses[0] + losses[1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Take note of whether a checkpoint has estimates: reading the buffer in a step would wait for the device."""
        super()._load_from_state_dict(state_dict, prefix, *others)
        if (normalizer := state_dict.get(f"{prefix}normalizer")) is not None:
            self._normalizer_estimated = bool(normalizer[0] != 0)

    def _is_small(self, rows: Tensor) -> bool:
        """Whether one product with the whole memory is cheaper than gathering rows."""
        return len(self.student) <= DENSE_LIMIT * rows.shape[1]

    def _scores(self, embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
        if self._is_small(rows):
            products = (embeddings @ memory.T.to(embeddings.dtype)).gather(1, rows)
        else:
            products = torch.einsum("bd,bkd->bk", embeddings, memory[rows].to(embeddings.dtype))
        return (products / self.temperature).exp()

    @torch.no_grad()
    def _updated(self, memory: Tensor, embeddings: Tensor, samples: Tensor, keep_old: bool) -> Tensor:
        """Update the rows of a batch in a memory; in a copy where the backward pass needs the old values."""
        mixed = self.momentum * memory[samples] + (1 - self.momentum) * embeddings.to(memory.dtype)
        new = functional.normalize(mixed)
        return memory.index_copy(0, samples, new) if keep_old else memory.index_copy_(0, samples, new)


def _contrast(scores: Tensor, samples: int) -> Tensor:
    """Noise-contrastive loss of the positive pair in the first column against K uniform negatives."""
    negatives = scores.shape[1] - 1
    noise = negatives / samples
    true = (scores[:, 0] / (scores[:, 0] + noise + _EPSILON)).log()
    false = (noise / (scores[:, 1:] + noise + _EPSILON)).log()
    return -(true.sum() + false.sum()) / len(scores)


class CRD(DistillLoss):
    """Contrastive representation distillation, see `ContrastMemory`.

    Negatives are drawn uniformly with replacement from the samples of other classes, by hashing (seed, epoch, sample,
    number): they do not depend on the batch, and are computed on the device.
    """

    order: Tensor
    begin: Tensor
    count: Tensor

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.seed = context.seed
        widths = context.student_width, context.teacher_width
        self.student, self.teacher = (nn.Linear(width, WIDTH) for width in widths)
        self.memory = ContrastMemory(len(context.labels), WIDTH)
        count = torch.bincount(context.labels)
        self.register_buffer("order", context.labels.argsort(stable=True), persistent=False)
        self.register_buffer("begin", count.cumsum(0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        vectors = zip((self.student, self.teacher), views.vectors(), strict=True)
        student, teacher = (functional.normalize(embedding(vector)) for embedding, vector in vectors)
        return self.memory(student, teacher, views.samples, self.negatives(views.samples, views.labels, views.epoch))

    def negatives(self, samples: Tensor, labels: Tensor, epoch: int, number: int = NEGATIVES) -> Tensor:
        """Draw training samples of other classes: int64 (B, K)."""
        words = _hash(torch.arange(number, device=samples.device), samples[:, None], epoch, self.seed)
        begin, count = self.begin[labels][:, None], self.count[labels][:, None]
        place = (words >> 33 & 0x3FFFFFFF) * (len(self.order) - count) >> 30
        return self.order[place + count * (place >= begin)]


def _hash(first: Tensor, *numbers: Tensor | int) -> Tensor:
    """Hash integers elementwise to 64 pseudorandom bits: multiply, then fold the high bits back."""
    mixed = first
    for number in (0, *numbers):
        mixed = (mixed ^ number) * 0x5851F42D4C957F2D + 0x14057B7EF767814F
        mixed = (mixed ^ (mixed >> 29 & 0x7FFFFFFFF)) * 0x369DEA0F31A53F85
        mixed = mixed ^ (mixed >> 32 & 0xFFFFFFFF)
    return mixed
