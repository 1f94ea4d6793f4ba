"""Picking: which mixed views of a step the student trains on.

A criterion gives each candidate of the batch a score from logits that are there already; the best scores of the whole
pool are kept. Nothing here holds a network.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache import distributed
from kdcache.losses import entropy

__all__ = ["SCORES", "Candidates", "Picks", "best"]


class Candidates(NamedTuple):
    """What is known of the M B candidates of a step.

    Attributes
    ----------
    teacher, student : Tensor or None, shape (M B, C)
        Logits; ``None`` where the criterion does not read them (`kdcache.choices.CRITERIA`).
    d : Tensor or None, shape (M B,)
        KL divergence of the student from the teacher (Equation 2), where both are known.
    random_score : Tensor of float32, shape (M B,)
        Uniform numbers drawn with the views.
    """

    teacher: Tensor | None
    student: Tensor | None
    d: Tensor | None
    random_score: Tensor


def _kld(candidates: Candidates) -> Tensor:
    assert candidates.d is not None
    return candidates.d


def _teacher_entropy(candidates: Candidates) -> Tensor:
    assert candidates.teacher is not None
    return entropy(candidates.teacher)


def _student_entropy(candidates: Candidates) -> Tensor:
    assert candidates.student is not None
    return entropy(candidates.student)


def _random(candidates: Candidates) -> Tensor:
    return candidates.random_score


SCORES: dict[str, Callable[[Candidates], Tensor]] = {
    "kld": _kld,
    "teacher-entropy": _teacher_entropy,
    "student-entropy": _student_entropy,
    "random": _random,
}
"""Score of every candidate, shape (M B,), larger being picked first (Section 3.2)."""


class Picks(NamedTuple):
    """Candidates of this process that are trained on.

    Attributes
    ----------
    rows : Tensor of int64, shape (P,)
        Indices among the M B candidates, ascending.
    own : int
        How many of these are picks: P, but 0 for a process that has none and takes its first candidate along, with no
        weight, because a network cannot be trained on nothing.
    everywhere : int
        Picks of all processes that train the network together.
    """

    rows: Tensor
    own: int
    everywhere: int

    @classmethod
    def all(cls, slots: int, size: int, whole: int, device: torch.device) -> "Picks":
        """Take every x' of a batch of `size` samples, of `whole` that all processes have."""
        return cls(torch.arange(slots * size, device=device), slots * size, slots * whole)

    @classmethod
    def best(cls, scores: Tensor, keep: float, globally: bool) -> "Picks":
        """Choose the candidates with the largest scores.

        Parameters
        ----------
        scores : Tensor, shape (M, B)
        keep : float
            Share of the pool that is picked.
        globally : bool
            Whether the pool is that of all processes together.
        """
        if distributed.world_size() == 1 or not globally:
            rows = best(scores.flatten(), _count(keep, scores))
            return cls(rows, len(rows), int(distributed.all_reduce_sum(torch.tensor(len(rows)))))
        # Rows of the pool in the order that one process would see them, so that equal scores fall alike.
        parts = [part.T for part in distributed.all_gather(scores.T.contiguous())]
        pool = torch.cat(parts, dim=1)
        chosen = best(pool.flatten(), _count(keep, pool))
        marks = torch.zeros(pool.numel(), dtype=torch.bool, device=pool.device)
        marks[chosen] = True
        start = sum(part.shape[1] for part in parts[: distributed.rank()])
        rows = marks.reshape(pool.shape)[:, start : start + scores.shape[1]].flatten().nonzero()[:, 0]
        return cls(rows if len(rows) else rows.new_zeros(1), len(rows), len(chosen))


def _count(keep: float, pool: Tensor) -> int:
    return max(2, round(keep * pool.numel()))  # batch-norm cannot normalize one row


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
