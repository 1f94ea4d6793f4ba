"""Losses on logits and labels. They compute in float32 at least, whatever the dtype of their inputs."""

import torch
from torch import Tensor
from torch.nn import functional

from kdcache import distributed
from kdcache.datasets.split import UNLABELLED

__all__ = [
    "at_least_float32",
    "balanced_class_weights",
    "cross_entropy",
    "entropy",
    "expectation",
    "kd_loss",
    "kl_divergence",
    "labelled_share",
    "log_softmax",
    "mixed_cross_entropy",
    "standardize",
]

_EPSILON = 1e-7


def at_least_float32(logits: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def log_softmax(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Logarithm of the softmax over classes at a temperature, in float32 at least, shape (B, C)."""
    return functional.log_softmax(at_least_float32(logits) / temperature, dim=1)


def expectation(log_p: Tensor, values: Tensor) -> Tensor:
    """Sum p * values over the classes. Where p underflows to 0, log p is still finite, so p log p is 0."""
    return (log_p.exp() * values).sum(dim=1)


def standardize(logits: Tensor) -> Tensor:
    """Standardize the logits of each row: mean 0 and standard deviation 1 over the classes.

    Sun et al., "Logit Standardization in Knowledge Distillation", 2024, arXiv:2403.01427, Algorithm 1.

    Parameters
    ----------
    logits : Tensor, shape (B, C)

    Returns
    -------
    Tensor, shape (B, C)
        The deviation has the divisor C - 1, as in the authors' code.
    """
    wide = at_least_float32(logits)
    return (wide - wide.mean(1, keepdim=True)) / (_EPSILON + wide.std(1, keepdim=True))


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher, row by row: d of Equation 2.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
        Logits; q and p are their softmax at the temperature.
    temperature : float or Tensor, shape ()
        tau.

    Returns
    -------
    Tensor of float32 (float64 where both are), shape (B,)
        ``sum_c p log(p / q)``, in nats.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if student.shape != teacher.shape:  # they would be broadcast
        raise ValueError(
            f"logits of the student have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
        )
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    return expectation(log_p, log_p - log_q)


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


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's softmax at temperature 1, in nats.

    Parameters
    ----------
    logits : Tensor, shape (B, C)

    Returns
    -------
    Tensor, shape (B,)
    """
    log_p = log_softmax(logits)
    return -expectation(log_p, log_p)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    labelled_share: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy: the first term of Equation 1 without 1 - alpha.

    Parameters
    ----------
    logits : Tensor, shape (B, C)
    labels : Tensor of int64, shape (B,)
        `UNLABELLED` only with `labelled_share`.
    label_smoothing : float
        Part of each label that is spread over all classes: Szegedy et al., "Rethinking the Inception Architecture for
        Computer Vision", 2016, arXiv:1512.00567, Section 7.
    class_weights : Tensor of float32, shape (C,), optional
        The mean is over the rows, not over their weights, so that it does not depend on which rows share a batch.
    labelled_share : Tensor, shape (), optional
        Share of the rows of all processes that have a label: the mean is over these, see `labelled_share`.

    Returns
    -------
    Tensor, shape ()
    """
    if class_weights is None and labelled_share is None:
        return functional.cross_entropy(at_least_float32(logits), labels, label_smoothing=label_smoothing)
    return _mean(_cross_entropies(logits, labels, label_smoothing, class_weights), labels, labelled_share)


def labelled_share(labels: Tensor) -> Tensor:
    """Share of the rows of all processes that have a label, shape ().

    A mean over this process's rows, divided by it, is what this process contributes to the mean over all rows with
    labels, as its mean contributes to that over all rows.
    """
    return distributed.global_mean((labels != UNLABELLED).float())


def _cross_entropies(logits: Tensor, labels: Tensor, label_smoothing: float, class_weights: Tensor | None) -> Tensor:
    """Cross-entropy of each row, shape (B,); 0 without a label."""
    wide = at_least_float32(logits)
    weights = None if class_weights is None else class_weights.to(wide.dtype)
    return functional.cross_entropy(
        wide, labels, weights, ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
    )


def _mean(values: Tensor, labels: Tensor, share: Tensor | None) -> Tensor:
    """Mean over the rows, or over those with labels; 0 if none of any process has one."""
    if share is None:
        return values.mean()
    known = torch.where(labels != UNLABELLED, values, 0.0)
    return known.mean() / torch.where(share > 0, share, 1.0)


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights of the classes for `cross_entropy`, in inverse proportion to their numbers of images.

    Parameters
    ----------
    labels : Tensor of int64, shape (N,)
        Samples without a label do not count.
    num_classes : int
        C.

    Returns
    -------
    Tensor of float32, shape (C,)
        N / (K n_c) for n_c > 0 images of the class and K classes with images, so that the mean over the images is 1.
    """
    labels = labels[labels != UNLABELLED]
    counts = torch.bincount(labels, minlength=num_classes)
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts.clamp(min=1)), 0.0)


def mixed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor,
    lam: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    labelled_share: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy against mixed labels: ``lam`` of the one class, ``1 - lam`` of the other.

    The baseline that the paper argues against: it trusts the label even where the mix has hidden the object.

    Parameters
    ----------
    logits : Tensor, shape (B, C)
    labels, partner_labels : Tensor of int64, shape (B,)
    lam : Tensor, shape (B,)
    label_smoothing, class_weights, labelled_share
        As in `cross_entropy`. A row has a label if both of its images do.

    Returns
    -------
    Tensor, shape ()
    """
    own, partner = (
        _cross_entropies(logits, target, label_smoothing, class_weights) for target in (labels, partner_labels)
    )
    known = torch.where(partner_labels == UNLABELLED, UNLABELLED, labels)
    return _mean(lam * own + (1 - lam) * partner, known, labelled_share)
