"""Contrastive representation distillation: Tian, Krishnan and Isola (2020)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache import distributed

__all__ = ["ContrastMemory"]

PRODUCT = 16
"""Samples, as a multiple of what a sample is compared with, up to which the product with everything is taken."""

_EPSILON = 1e-7


class ContrastMemory(nn.Module):
    """The loss of CRD with its two memories, one row a training sample for the student and for the teacher.

    Parameters
    ----------
    samples : int
        Training samples, N.
    width : int
        Length of the embeddings, D.
    temperature : float
        Of the noise-contrastive estimate.
    momentum : float
        Share of a memory's row that stays when its sample comes up.

    Notes
    -----
    The memories take 2 N D numbers of float32: 51 MB for 50,000 samples of 128. Rows start with components that are
    uniform within sqrt(3 / D).
    """

    student: Tensor
    teacher: Tensor
    normaliser: Tensor

    def __init__(self, samples: int, width: int = 128, temperature: float = 0.07, momentum: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        bound = math.sqrt(3 / width)
        for name in ("student", "teacher"):
            self.register_buffer(name, torch.empty(samples, width).uniform_(-bound, bound))
        # Means over the first batch, times N, which stand for the sums over all samples; 0 until then.
        self.register_buffer("normaliser", torch.zeros(2))
        self._normalised = False

    def forward(self, student: Tensor, teacher: Tensor, samples: Tensor, negatives: Tensor) -> Tensor:
        """Compute the loss of a batch, and take the batch into the memories.

        Parameters
        ----------
        student, teacher : Tensor, shape (B, D)
            Embeddings of length 1.
        samples : Tensor of int64, shape (B,)
            Which sample each row is.
        negatives : Tensor of int64, shape (B, K)
            Samples of other classes.

        Returns
        -------
        Tensor, shape ()
        """
        rows = torch.cat([samples[:, None], negatives], 1)
        scores = [self._scores(student, self.teacher, rows), self._scores(teacher, self.student, rows)]
        if not self._is_normalised():
            sums = torch.stack([score.detach().sum() for score in scores])
            count = distributed.all_reduce_sum(torch.tensor(rows.numel(), device=rows.device))
            self.normaliser.copy_(distributed.all_reduce_sum(sums) / count * len(self.student))
        losses = [_contrast(score / z, len(self.student)) for score, z in zip(scores, self.normaliser, strict=True)]
        # The memories are alike in all processes: each takes in the batch of every one.
        student, teacher, samples = (
            torch.cat(distributed.all_gather(own.detach())) for own in (student, teacher, samples)
        )
        self.student = self._taken_in(self.student, student, samples, self._is_small(rows))
        self.teacher = self._taken_in(self.teacher, teacher, samples, self._is_small(rows))
        return losses[0] + losses[1]

    def _is_normalised(self) -> bool:
        """Look once whether the normaliser is known: a look waits for the device."""
        self._normalised = self._normalised or bool(self.normaliser[0] != 0)
        return self._normalised

    def _is_small(self, rows: Tensor) -> bool:
        """Whether one product with everything costs less than gathering the rows (measured: docs/results/crd.md)."""
        return len(self.student) <= PRODUCT * rows.shape[1]

    def _scores(self, embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
        if self._is_small(rows):
            products = (embeddings @ memory.T.to(embeddings.dtype)).gather(1, rows)
        else:
            products = torch.einsum("bd,bkd->bk", embeddings, memory[rows].to(embeddings.dtype))
        return (products / self.temperature).exp()

    @torch.no_grad()
    def _taken_in(self, memory: Tensor, embeddings: Tensor, samples: Tensor, keep_old: bool) -> Tensor:
        """Mix the embeddings of a batch into a memory; the gradient of a product with all of it needs the old one."""
        mixed = self.momentum * memory[samples] + (1 - self.momentum) * embeddings.to(memory.dtype)
        new = functional.normalize(mixed)
        return memory.index_copy(0, samples, new) if keep_old else memory.index_copy_(0, samples, new)


def _contrast(scores: Tensor, samples: int) -> Tensor:
    """Tell the true pair, in the first column, from K pairs of noise that is uniform over the samples."""
    negatives = scores.shape[1] - 1
    noise = negatives / samples
    true = (scores[:, 0] / (scores[:, 0] + noise + _EPSILON)).log()
    false = (noise / (scores[:, 1:] + noise + _EPSILON)).log()
    return -(true.sum() + false.sum()) / len(scores)
