"""Losses that differ in the temperature: TTM and WTTM have none for the student, CTKD learns it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.config.losses import CTKDOptions, TTMOptions, WTTMOptions
from kdcache.losses.base import LossContext, LossWithOptions, ViewOutputs
from kdcache.losses.logits import expectation, kl_divergence, log_softmax

__all__ = ["CurriculumTemperature", "TransformedMatching", "WeightedMatching", "ttm_loss", "wttm_loss"]


def ttm_loss(student: Tensor, teacher: Tensor, exponent: float = 0.1) -> Tensor:
    """Transformed teacher matching: divergence of the student from a power of the teacher's distribution.

    Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", 2024, arXiv:2402.11148.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    exponent : float
        Called gamma in the paper. The student is at temperature 1.

    Returns
    -------
    Tensor, shape ()
    """
    return _power_divergence(student, teacher, exponent)[0].mean()


def wttm_loss(student: Tensor, teacher: Tensor, exponent: float = 0.2) -> Tensor:
    """`ttm_loss` with each row weighted by the sum of its powers, which is large where the teacher is unsure."""
    divergence, log_sum = _power_divergence(student, teacher, exponent)
    return (log_sum.exp() * divergence).mean()


def _power_divergence(student: Tensor, teacher: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    powers = exponent * log_softmax(teacher)
    log_sum = powers.logsumexp(1)
    log_p = powers - log_sum[:, None]
    return expectation(log_p, log_p - log_softmax(student)), log_sum


class TransformedMatching(LossWithOptions[TTMOptions]):
    """`ttm_loss`."""

    options_class = TTMOptions

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return ttm_loss(*views.logits(), self.options.exponent)


class WeightedMatching(LossWithOptions[WTTMOptions]):
    """`wttm_loss`."""

    options_class = WTTMOptions

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return wttm_loss(*views.logits(), self.options.exponent)


class _ScaledGradient(torch.autograd.Function):
    """The identity, with the gradient multiplied by a number."""

    @staticmethod
    def forward(context: Any, value: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.factor * gradients[0], None


class CurriculumTemperature(LossWithOptions[CTKDOptions]):
    """Knowledge distillation at a learned temperature, which is trained to make the loss larger.

    Li et al., "Curriculum Temperature for Knowledge Distillation", 2023, arXiv:2211.16231, with one temperature for
    all samples. The gradient of the temperature is reversed, and grows over the first epochs as a cosine.
    """

    options_class = CTKDOptions

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.raw_temperature = nn.Parameter(torch.ones(()))

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        raw: Tensor = _ScaledGradient.apply(self.raw_temperature, self.gradient_factor(views.epoch))
        options = self.options
        temperature = options.lowest_temperature + options.temperature_range * raw.sigmoid()
        return temperature**2 * kl_divergence(*views.logits(), temperature).mean()

    def gradient_factor(self, epoch: int) -> float:
        """Factor on the gradient of the temperature in an epoch, counted from 0: from 0 down to -1."""
        progress = min((epoch + 1) / self.options.ramp, 1.0)
        return (math.cos(math.pi * progress) - 1) / 2
