"""Multi-level logit distillation, on x and x' of an image or on each view by itself."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache.config.losses import MLKDOptions, MLKDTwoViewOptions
from kdcache.losses.base import LossWithOptions, ViewOutputs
from kdcache.losses.logits import cross_entropy, kd_loss, log_softmax, standardize

__all__ = ["MultiLevelKD", "OneViewMultiLevelKD", "mlkd_loss", "mlkd_strong_loss"]

ON_STRONG_VIEW, ON_WEAK_VIEW = (3.0, 5.0), (2.0, 6.0)
"""Temperatures besides the one of the options. In the authors' code, the strong view's part takes the second two from
the weak view."""


def mlkd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0, standardized: bool = False) -> Tensor:
    """Multi-level logit distillation of one view: of instances at five temperatures, of the batch, and of classes.

    Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023, as in the authors' code, which weights whole terms
    by the shares of rows and classes that its masks of confidence keep.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    temperature : float
        The first of the five temperatures; the others are 3, 5, 2 and 6.
    standardized : bool
        Whether instances are compared by standardized logits.

    Returns
    -------
    Tensor, shape ()
    """
    terms = mlkd_terms(student, teacher, temperature, standardized)
    return terms.instances + terms.classes + terms.batch


class MLKDTerms(NamedTuple):
    """The terms of `mlkd_loss`, each of shape ()."""

    instances: Tensor
    classes: Tensor
    batch: Tensor


def mlkd_terms(student: Tensor, teacher: Tensor, temperature: float, standardized: bool) -> MLKDTerms:
    """Compute the terms of `mlkd_loss`."""
    p = log_softmax(teacher).exp()
    row_share, class_share = _share_up_to_median(p.amax(1)), _share_up_to_median(p.sum(0))
    temperatures = (temperature, *ON_STRONG_VIEW, *ON_WEAK_VIEW)
    classes = torch.stack([class_correlation(student, teacher, each) for each in temperatures]).sum()
    batch = torch.stack([batch_correlation(student, teacher, each) for each in temperatures]).sum()
    instances = _instances(student, teacher, temperatures, standardized)
    return MLKDTerms(row_share * instances, class_share * classes, row_share * batch)


def mlkd_strong_loss(
    weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor], temperature: float = 4.0, standardized: bool = False
) -> Tensor:
    """Add the distillation of the strong view, at three of the temperatures; the other two take the weak view.

    Parameters
    ----------
    weak, strong : tuple of Tensor, shape (B, C)
        Logits of the student and of the teacher.
    temperature, standardized
        See `mlkd_loss`.

    Returns
    -------
    Tensor, shape ()
    """
    on_strong = _instances(*strong, (temperature, *ON_STRONG_VIEW), standardized)
    return on_strong + _instances(*weak, ON_WEAK_VIEW, standardized)


def _instances(student: Tensor, teacher: Tensor, temperatures: Sequence[float], standardized: bool) -> Tensor:
    if standardized:
        student, teacher = standardize(student), standardize(teacher)
    return torch.stack([kd_loss(student, teacher, temperature) for temperature in temperatures]).sum()


def class_correlation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Squared difference of the C x C products of the probabilities, divided by C."""
    q, p = (log_softmax(logits, temperature).exp() for logits in (student, teacher))
    return (p.T @ p - q.T @ q).pow(2).sum() / p.shape[1]


def batch_correlation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Squared difference of the B x B products of the probabilities, divided by B."""
    q, p = (log_softmax(logits, temperature).exp() for logits in (student, teacher))
    return (p @ p.T - q @ q.T).pow(2).sum() / p.shape[0]


def _share_up_to_median(values: Tensor) -> Tensor:
    """Share of the values that are at most their median: of an even number, halfway between the middle two."""
    ordered = values.sort().values
    median = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
    return (values <= median).to(values.dtype).mean()


class OneViewMultiLevelKD(LossWithOptions[MLKDOptions]):
    """`mlkd_loss`."""

    options_class = MLKDOptions

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return mlkd_loss(*views.logits(), self.options.temperature, self.options.standardize)


class MultiLevelKD(LossWithOptions[MLKDTwoViewOptions]):
    """`mlkd_loss` of x and `mlkd_strong_loss` of x', with the cross-entropy of both."""

    options_class = MLKDTwoViewOptions

    def forward(self, x: ViewOutputs, mixed: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        options = self.options
        how = options.temperature, options.standardize
        distilled = mlkd_loss(*x.logits(), *how) + mlkd_strong_loss(x.logits(), mixed.logits(), *how)
        labels = _cross_entropy(x) + _cross_entropy(mixed)
        return options.kd_weight * distilled + options.ce_weight * labels


def _cross_entropy(views: ViewOutputs) -> Tensor:
    return cross_entropy(views.student, views.labels, labelled_share=views.labelled_share)
