"""Cross-entropy, distillation, and losses on features as terms of an objective, with the layers that they train."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.config.losses import EmbedOptions, KDOptions
from kdcache.losses.base import DistillLoss, LossContext, LossWithOptions, ViewOutputs
from kdcache.losses.features import (
    at_loss,
    cc_loss,
    embed_loss,
    fitnet_loss,
    nst_loss,
    pkt_loss,
    rkd_loss,
    sp_loss,
    vid_loss,
)
from kdcache.losses.logits import cross_entropy, kd_loss, mixed_cross_entropy

__all__ = [
    "AttentionTransfer",
    "CorrelationCongruence",
    "CrossEntropy",
    "EmbeddingDistillation",
    "FitNet",
    "KnowledgeDistillation",
    "NeuronSelectivity",
    "ProbabilisticTransfer",
    "RelationalKD",
    "SimilarityPreserving",
    "VariationalInformation",
]


class CrossEntropy(DistillLoss):
    """`cross_entropy` on x, `mixed_cross_entropy` on mixed views."""

    class_weights: Tensor | None

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.label_smoothing = context.label_smoothing
        self.register_buffer("class_weights", context.class_weights, persistent=False)

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        how = self.label_smoothing, self.class_weights, views.labelled_share
        if views.lam is None or views.partner_labels is None:
            return cross_entropy(views.student, views.labels, *how)
        return mixed_cross_entropy(views.student, views.labels, views.partner_labels, views.lam, *how)


class KnowledgeDistillation(LossWithOptions[KDOptions]):
    """`kd_loss`, from the divergence that the step has computed already, or of standardized logits."""

    options_class = KDOptions

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.temperature = context.temperature

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        if self.options.standardize:
            return kd_loss(*views.logits(standardized=True), self.temperature)
        assert views.kl is not None
        return self.temperature**2 * views.kl.mean()


class MapsLoss(DistillLoss):
    """A function of a pair of maps, summed over the pairs between the first map and the vector."""

    maps_loss: Callable[[Tensor, Tensor], Tensor]

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return torch.stack([self.maps_loss(student, teacher) for student, teacher in _inner_maps(views)]).sum()


def _inner_maps(views: ViewOutputs) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(views.student_features[1:-1], views.teacher_features[1:-1], strict=False)


class AttentionTransfer(MapsLoss):
    """`at_loss` of each pair of inner maps."""

    maps_loss = staticmethod(at_loss)


class NeuronSelectivity(MapsLoss):
    """`nst_loss` of each pair of inner maps."""

    maps_loss = staticmethod(nst_loss)


class SimilarityPreserving(DistillLoss):
    """`sp_loss` of the last maps."""

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return sp_loss(views.student_features[-2], views.teacher_features[-2])


class RelationalKD(DistillLoss):
    """`rkd_loss` of the vectors, with the published weights 25 and 50."""

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return rkd_loss(*views.vectors())


class ProbabilisticTransfer(DistillLoss):
    """`pkt_loss` of the vectors."""

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return pkt_loss(*views.vectors())


class EmbeddingDistillation(LossWithOptions[EmbedOptions]):
    """`embed_loss` of the student's vectors after a trained linear projection to the length of the teacher's."""

    options_class = EmbedOptions

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.projection = nn.Linear(context.student_width, context.teacher_width)

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        student, teacher = views.vectors()
        return embed_loss(self.projection(student), teacher, self.options.distance)


class FitNet(DistillLoss):
    """`fitnet_loss` of the middle map, after a trained convolution from the student's shape to the teacher's."""

    MAP = 2

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        (inputs, size, _), (outputs, wanted, _) = context.student_shapes[self.MAP], context.teacher_shapes[self.MAP]
        convolution: nn.Module
        if size == 2 * wanted:
            convolution = nn.Conv2d(inputs, outputs, 3, 2, padding=1)
        elif 2 * size == wanted:
            convolution = nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1)
        else:
            convolution = nn.Conv2d(inputs, outputs, 1)  # `fitnet_loss` pools the larger map
        self.regressor = nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return fitnet_loss(self.regressor(views.student_features[self.MAP]), views.teacher_features[self.MAP])


class CorrelationCongruence(DistillLoss):
    """`cc_loss` of trained linear embeddings of both vectors."""

    WIDTH = 128

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        widths = context.student_width, context.teacher_width
        self.student, self.teacher = (nn.Linear(width, self.WIDTH) for width in widths)

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        student, teacher = views.vectors()
        return cc_loss(self.student(student), self.teacher(teacher))


class VariationalInformation(DistillLoss):
    """`vid_loss` of each pair of inner maps: trained means, and a trained variance for each channel."""

    INITIAL_VARIANCE, MIN_VARIANCE = 5.0, 1e-5

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        shapes = list(zip(context.student_shapes[1:-1], context.teacher_shapes[1:-1], strict=False))
        self.means = nn.ModuleList(self._regressor(student[0], teacher[0]) for student, teacher in shapes)
        initial = math.log(math.exp(self.INITIAL_VARIANCE - self.MIN_VARIANCE) - 1)  # the inverse of softplus
        self.raw_variances = nn.ParameterList(torch.full((teacher[0],), initial) for _, teacher in shapes)

    @staticmethod
    def _regressor(inputs: int, outputs: int) -> nn.Module:
        widths = pairwise((inputs, outputs, outputs, outputs))
        first, second, third = (nn.Conv2d(narrow, wide, 1, bias=False) for narrow, wide in widths)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        losses = []
        for mean, raw, (student, teacher) in zip(self.means, self.raw_variances, _inner_maps(views), strict=True):
            losses.append(vid_loss(mean(student), teacher, functional.softplus(raw) + self.MIN_VARIANCE))
        return torch.stack(losses).sum()
