"""Losses on logits and labels. They compute in float32 at least, whatever the dtype of their inputs."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "cross_entropy",
    "dkd_loss",
    "entropy",
    "kd_loss",
    "kl_divergence",
    "mixed_cross_entropy",
]


def _log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.log_softmax(wide / temperature, dim=1)


def _expectation(log_p: Tensor, values: Tensor) -> Tensor:
    """Sum p * values over the classes. Where p underflows to 0, log p is still finite, so p log p is 0."""
    return (log_p.exp() * values).sum(dim=1)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher, row by row: d of Equation 2.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
        Logits; q and p are their softmax at the temperature.
    temperature : float
        tau.

    Returns
    -------
    Tensor of float32 (float64 where both are), shape (B,)
        ``sum_c p log(p / q)``, in nats.
    """
    log_p, log_q = _log_softmax(teacher, temperature), _log_softmax(student, temperature)
    return _expectation(log_p, log_p - log_q)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation: the second term of Equation 1 without alpha.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    temperature : float
        tau.

    Returns
    -------
    Tensor, shape ()
        ``tau^2`` times the mean of `kl_divergence`.
    """
    return temperature**2 * kl_divergence(student, teacher, temperature).mean()


def dkd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Decoupled knowledge distillation: alpha times the target-class term plus beta times the non-target-class term.

    Zhao et al., "Decoupled Knowledge Distillation", 2022, arXiv:2203.08679, Equation 7.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    labels : Tensor of int64, shape (B,)
    temperature : float
    alpha, beta : float
        Weights of the two terms.

    Returns
    -------
    Tensor, shape ()
    """
    target = labels[:, None]
    other = torch.arange(teacher.shape[1] - 1, device=labels.device)
    other = other + (other >= target)  # every class but the label's; a boolean mask would make the host wait
    binary, non_target = [], []
    for logits in (teacher, student):
        log_p = _log_softmax(logits, temperature)
        rest = log_p.gather(1, other).logsumexp(1, keepdim=True)
        binary.append(torch.cat([log_p.gather(1, target), rest], 1))
        non_target.append(log_p.gather(1, other) - rest)
    terms = [_expectation(p, p - q).mean() for p, q in (binary, non_target)]
    return temperature**2 * (alpha * terms[0] + beta * terms[1])


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's softmax at temperature 1, in nats.

    Parameters
    ----------
    logits : Tensor, shape (B, C)

    Returns
    -------
    Tensor, shape (B,)
    """
    log_p = _log_softmax(logits)
    return -_expectation(log_p, log_p)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy: the first term of Equation 1 without 1 - alpha.

    Parameters
    ----------
    logits : Tensor, shape (B, C)
    labels : Tensor of int64, shape (B,)

    Returns
    -------
    Tensor, shape ()
    """
    return functional.nll_loss(_log_softmax(logits), labels)


def mixed_cross_entropy(logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor) -> Tensor:
    """Mean cross-entropy against mixed labels: ``lam`` of the one class, ``1 - lam`` of the other.

    The baseline that the paper argues against: it trusts the label even where the mix has hidden the object.

    Parameters
    ----------
    logits : Tensor, shape (B, C)
    labels, partner_labels : Tensor of int64, shape (B,)
    lam : Tensor, shape (B,)

    Returns
    -------
    Tensor, shape ()
    """
    log_q = _log_softmax(logits)
    own, partner = (functional.nll_loss(log_q, target, reduction="none") for target in (labels, partner_labels))
    return (lam * own + (1 - lam) * partner).mean()
