"""Picking: which mixed views of a step the student trains on.

A criterion gives each candidate of the batch a score from logits that are there already; the best scores of the whole
pool are kept. Nothing here holds a network.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache.losses import entropy, kld

__all__ = ["SCORES", "Candidates", "best"]


class Candidates(NamedTuple):
    """What is known of the M B candidates of a step.

    Attributes
    ----------
    teacher, student : Tensor or None, shape (M B, C)
        Logits; ``None`` where the criterion does not read them (`kdcache.words.CRITERIA`).
    lot : Tensor of float32, shape (M B,)
        Uniform numbers drawn with the views.
    temperature : float
        tau of Equation 2.
    """

    teacher: Tensor | None
    student: Tensor | None
    lot: Tensor
    temperature: float


def _kld(candidates: Candidates) -> Tensor:
    assert candidates.teacher is not None
    assert candidates.student is not None
    return kld(candidates.teacher, candidates.student, candidates.temperature)


def _teacher_entropy(candidates: Candidates) -> Tensor:
    assert candidates.teacher is not None
    return entropy(candidates.teacher)


def _student_entropy(candidates: Candidates) -> Tensor:
    assert candidates.student is not None
    return entropy(candidates.student)


def _random(candidates: Candidates) -> Tensor:
    return candidates.lot


SCORES: dict[str, Callable[[Candidates], Tensor]] = {
    "kld": _kld,
    "teacher-entropy": _teacher_entropy,
    "student-entropy": _student_entropy,
    "random": _random,
}
"""Score of every candidate, shape (M B,), larger being picked first (Section 3.2)."""


def best(scores: Tensor, count: int) -> Tensor:
    """Choose the candidates with the largest scores from the pool.

    Parameters
    ----------
    scores : Tensor, shape (M B,)
    count : int
        How many to keep.

    Returns
    -------
    Tensor of int64, shape (count,)
        Indices of the picks, ascending; among equal scores the earlier candidate is picked.
    """
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values
