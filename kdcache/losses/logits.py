"""Losses that read logits and labels only."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cross_entropy", "decoupled", "entropy", "kd", "kld", "mixed_cross_entropy"]


def _log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.log_softmax(wide / temperature, dim=1)


def _sum_p_times(log_p: Tensor, values: Tensor) -> Tensor:
    """Sum p * values over the classes; where p underflows log p is still finite, so p log p is 0 as in the limit."""
    return (log_p.exp() * values).sum(dim=1)


def kld(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of each row: d of Equation 2.

    Parameters
    ----------
    teacher, student : Tensor, shape (B, C)
        Logits; p and q are their softmax at ``temperature``.
    temperature : float
        tau.

    Returns
    -------
    Tensor of float32 (float64 where both are), shape (B,)
        ``sum_c p log(p / q)``, in nats.
    """
    log_p, log_q = _log_probabilities(teacher, temperature), _log_probabilities(student, temperature)
    return _sum_p_times(log_p, log_p - log_q)


def kd(d: Tensor, temperature: float) -> Tensor:
    """Loss of the soft targets: the second term of Equation 1 without alpha.

    Parameters
    ----------
    d : Tensor, shape (B,)
        What `kld` gives at the temperature.
    temperature : float
        tau.

    Returns
    -------
    Tensor, shape ()
        ``tau^2`` times the mean of ``d``.
    """
    return temperature**2 * d.mean()


def decoupled(
    teacher: Tensor, student: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Decoupled knowledge distillation: the divergence about the label's class, and that among the other classes.

    Zhao et al., "Decoupled Knowledge Distillation" (2022).

    Parameters
    ----------
    teacher, student : Tensor, shape (B, C)
    labels : Tensor of int64, shape (B,)
    temperature : float
    alpha, beta : float
        Weights of the two divergences.

    Returns
    -------
    Tensor, shape ()
    """
    target = labels[:, None]
    other = torch.arange(teacher.shape[1] - 1, device=labels.device)
    other = other + (other >= target)  # the classes but for the label's; a mask would make the host wait
    pairs, others = [], []
    for logits in (teacher, student):
        log_p = _log_probabilities(logits, temperature)
        rest = log_p.gather(1, other).logsumexp(1, keepdim=True)
        pairs.append(torch.cat([log_p.gather(1, target), rest], 1))
        others.append(log_p.gather(1, other) - rest)
    parts = [_sum_p_times(p, p - q).mean() for p, q in (pairs, others)]
    return temperature**2 * (alpha * parts[0] + beta * parts[1])


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's softmax at temperature 1, in nats.

    Parameters
    ----------
    logits : Tensor, shape (B, C)

    Returns
    -------
    Tensor, shape (B,)
    """
    log_p = _log_probabilities(logits)
    return -_sum_p_times(log_p, log_p)


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
    return functional.nll_loss(_log_probabilities(logits), labels)


def mixed_cross_entropy(logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor) -> Tensor:
    """Mean cross-entropy against mixed labels, ``lam`` of the one and ``1 - lam`` of the other.

    The baseline that the paper argues against: the label is taken at its word even where the mix hid its object.

    Parameters
    ----------
    logits : Tensor, shape (B, C)
    labels, partner_labels : Tensor of int64, shape (B,)
    lam : Tensor, shape (B,)

    Returns
    -------
    Tensor, shape ()
    """
    log_q = _log_probabilities(logits)
    own, partner = (functional.nll_loss(log_q, target, reduction="none") for target in (labels, partner_labels))
    return (lam * own + (1 - lam) * partner).mean()
