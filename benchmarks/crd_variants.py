"""CRD with one constant changed in each class, to find out why it fails on few images (docs/results/crd_cause.md).

All take the expectation over the negatives instead of drawing them: every sample of another class counts, with the
weight of the draws that it would get on average. With 900 of them and 16,384 draws that changes little, and is fast.
"""

import torch
from torch import Tensor
from torch.nn import functional

import kdcache
from kdcache.losses import LossContext, ViewOutputs
from kdcache.losses.crd import CRD, NEGATIVES, WIDTH, ContrastMemory

_EPSILON = 1e-7


class ExpectedContrast(ContrastMemory):
    """`ContrastMemory` against all samples of other classes, (B, N), with the weight of `number` draws in total."""

    def contrast(self, student: Tensor, teacher: Tensor, samples: Tensor, others: Tensor, number: int) -> Tensor:
        """Compute the loss of a batch, and update the memories with it."""
        weights = number * others / others.sum(1, keepdim=True)
        directions = ((student, self.teacher), (teacher, self.student))
        scores = [(own @ memory.T / self.temperature).exp() for own, memory in directions]
        pairs = [score.gather(1, samples[:, None])[:, 0] for score in scores]
        if not self._normalizer_estimated:
            sums = [(pair + (weights * score).sum(1)).mean() for score, pair in zip(scores, pairs, strict=True)]
            self.normalizer.copy_(torch.stack(sums).detach() / (1 + number) * len(self.student))
            self._normalizer_estimated = True
        noise = number / len(self.student)
        total = student.new_zeros(())
        for score, pair, z in zip(scores, pairs, self.normalizer, strict=True):
            true = (pair / z / (pair / z + noise + _EPSILON)).log()
            false = (noise / (score / z + noise + _EPSILON)).log()
            total = total - (true + (weights * false).sum(1)).mean()
        with torch.no_grad():
            self.student = self._updated(self.student, student, samples, True)
            self.teacher = self._updated(self.teacher, teacher, samples, True)
        return total


@kdcache.register_loss("crd-expected", reads="vectors", weight=0.8)
class Expected(CRD):
    """CRD with the expectation over its negatives."""

    memory: ExpectedContrast
    number, temperature, momentum = NEGATIVES, 0.07, 0.5

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.labels = context.labels
        self.memory = ExpectedContrast(len(context.labels), WIDTH, self.temperature, self.momentum)

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        student_vectors, teacher_vectors = views.vectors()
        student = functional.normalize(self.student(student_vectors))
        teacher = functional.normalize(self.teacher(teacher_vectors))
        others = (views.labels[:, None] != self.labels).to(student.dtype)
        return self.memory.contrast(student, teacher, views.samples, others, self.number)


@kdcache.register_loss("crd-256-negatives", reads="vectors", weight=0.8)
class FewNegatives(Expected):
    """256 negatives."""

    number = 256


@kdcache.register_loss("crd-temperature-0_2", reads="vectors", weight=0.8)
class HigherTemperature(Expected):
    """A temperature of 0.2."""

    temperature = 0.2


@kdcache.register_loss("crd-momentum-0", reads="vectors", weight=0.8)
class NoMomentum(Expected):
    """Memories that hold the last embedding."""

    momentum = 0.0
