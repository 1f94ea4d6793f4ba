"""Losses that treat one class of each row apart from the others: DKD, NKD, RLD, and OFA's loss on logits."""

import torch
from torch import Tensor

from kdcache.config.losses import DKDOptions, NKDOptions, OFAOptions, RLDOptions
from kdcache.losses.base import LossWithOptions, ViewOutputs
from kdcache.losses.logits import at_least_float32, expectation, log_softmax

__all__ = [
    "DecoupledKD",
    "NormalizedKD",
    "OneForAll",
    "RefinedLogits",
    "dkd_loss",
    "nkd_loss",
    "ofa_loss",
    "rld_loss",
]

EXCLUDED = -1e9
"""Logit of a class that is left out: its probability is exactly 0 in float32 and wider."""


def _other_classes(target: Tensor, classes: int) -> Tensor:
    """Every class but the target, int64 (B, C - 1); a boolean mask would make the host wait."""
    other = torch.arange(classes - 1, device=target.device)
    return other + (other >= target)


def dkd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Decoupled knowledge distillation: alpha times the target-class term plus beta times the non-target-class term.

    Zhao et al., "Decoupled Knowledge Distillation", 2022, arXiv:2203.08679, Equation 7.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    labels : Tensor of int64, shape (B,)
        Target class of each row.
    temperature : float
    alpha, beta : float
        Weights of the two terms.

    Returns
    -------
    Tensor, shape ()
    """
    target = labels[:, None]
    other = _other_classes(target, teacher.shape[1])
    binary, non_target = [], []
    for logits in (teacher, student):
        log_p = log_softmax(logits, temperature)
        rest = log_p.gather(1, other).logsumexp(1, keepdim=True)
        binary.append(torch.cat([log_p.gather(1, target), rest], 1))
        non_target.append(log_p.gather(1, other) - rest)
    terms = [expectation(p, p - q).mean() for p, q in (binary, non_target)]
    return temperature**2 * (alpha * terms[0] + beta * terms[1])


def nkd_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0, gamma: float = 1.5) -> Tensor:
    """Normalized knowledge distillation: cross-entropies of the target class and, normalized, of the other classes.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
    and Customized Soft Labels", 2023, arXiv:2303.13005.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    labels : Tensor of int64, shape (B,)
        Target class of each row.
    temperature : float
        Of the second term; the first has temperature 1.
    gamma : float
        Weight of the second term, which is multiplied by the squared temperature too.

    Returns
    -------
    Tensor, shape ()
        Its minimum is not 0, since both terms are cross-entropies.
    """
    target = labels[:, None]
    other = _other_classes(target, teacher.shape[1])
    targets = log_softmax(teacher).gather(1, target).exp() * log_softmax(student).gather(1, target)
    log_p, log_q = (logits.gather(1, other) for logits in (teacher, student))
    others = expectation(log_softmax(log_p, temperature), log_softmax(log_q, temperature))
    return -targets.mean() - gamma * temperature**2 * others.mean()


def rld_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    confidence_temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Refined logit distillation: the teacher's confidence, and its order of the classes that it puts below the label.

    Sun et al., "Knowledge Distillation with Refined Logits", 2024, arXiv:2408.07703. The first term moves
    the student's probability of the label to the teacher's largest one. The second compares the classes whose logit is
    below that of the label in the teacher; the label and whatever the teacher prefers to it are left out.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    labels : Tensor of int64, shape (B,)
    temperature, confidence_temperature : float
        Of the second and of the first term.
    alpha, beta : float
        Weights of the first and of the second term.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    target = labels[:, None]
    sure = log_softmax(teacher, confidence_temperature), teacher.argmax(1, keepdim=True)
    pair = [_binary(*sure), _binary(log_softmax(student, confidence_temperature), target)]
    confidence = expectation(pair[0], pair[0] - pair[1]).mean()
    excluded = teacher >= teacher.gather(1, target)
    log_p, log_q = (
        log_softmax((logits / temperature).masked_fill(excluded, EXCLUDED)) for logits in (teacher, student)
    )
    order = expectation(log_p, log_p - log_q).mean()
    return alpha * confidence_temperature**2 * confidence + beta * temperature**2 * order


def _binary(log_p: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities of the target class and of all others together, (B, 2)."""
    rest = log_p.gather(1, _other_classes(target, log_p.shape[1])).logsumexp(1, keepdim=True)
    return torch.cat([log_p.gather(1, target), rest], 1)


def ofa_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, exponent: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """One-for-all distillation: a cross-entropy against the teacher in which the target class has more weight.

    Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation", 2023,
    arXiv:2310.19444. This is the loss of the final logits; the authors also train a classifier at each stage.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    labels : Tensor of int64, shape (B,)
        Target class of each row.
    exponent : float
        Called gamma in the paper; the larger, the more weight the target class has.
    temperature : float

    Returns
    -------
    Tensor, shape ()
        Not multiplied by the squared temperature.
    """
    target = labels[:, None]
    p, log_q = log_softmax(teacher, temperature).exp(), log_softmax(student, temperature)
    weights = (p**exponent).scatter(1, target, (p.gather(1, target) + 1) ** exponent - 1)
    return -(weights * log_q).sum(1).mean()


class DecoupledKD(LossWithOptions[DKDOptions]):
    """`dkd_loss`."""

    options_class = DKDOptions

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        options, logits = self.options, views.logits(self.options.standardize)
        labels = views.target_classes(options.target)
        return dkd_loss(*logits, labels, options.temperature, options.alpha, options.beta)


class NormalizedKD(LossWithOptions[NKDOptions]):
    """`nkd_loss`."""

    options_class = NKDOptions

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        options, labels = self.options, views.target_classes(self.options.target)
        return nkd_loss(*views.logits(), labels, options.temperature, options.gamma)


class RefinedLogits(LossWithOptions[RLDOptions]):
    """`rld_loss`. On x' the label is the larger part of the mixed label: with the teacher's class it would be DKD."""

    options_class = RLDOptions

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        options, logits = self.options, views.logits(self.options.standardize)
        temperatures = options.temperature, options.confidence_temperature
        return rld_loss(*logits, views.hard_labels(), *temperatures, options.alpha, options.beta)


class OneForAll(LossWithOptions[OFAOptions]):
    """`ofa_loss`."""

    options_class = OFAOptions

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        options, labels = self.options, views.target_classes(self.options.target)
        return ofa_loss(*views.logits(), labels, options.exponent, options.temperature)
