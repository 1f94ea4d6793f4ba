"""Which mixed views of a step the student is trained on.

A criterion gives each candidate a score from logits that are known already; the highest scores of the pool are picked
(Section 3.2). Criteria are declared in `kdcache.choices.CRITERIA`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kdcache import distributed
from kdcache.choices import CRITERIA
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.extensions import explained, import_object, is_address
from kdcache.losses import entropy, kl_divergence
from kdcache.views import Batch

__all__ = ["Candidates", "Selection", "pick", "score", "select_all", "select_top", "top_scores"]


class Candidates(NamedTuple):
    """What is known about the M B candidates of a step, slot by slot.

    Attributes
    ----------
    teacher, student : Tensor or None, shape (M B, C)
        Logits; ``None`` where the criterion does not read them.
    kl : Tensor or None, shape (M B,)
        KL divergence of the student from the teacher (d of Equation 2), where both are known.
    labels, partner_labels : Tensor of int64, shape (M B,)
        Labels of each view's two images; -1 of an image without one.
    lam : Tensor of float32, shape (M B,)
        Share of the label that belongs to ``labels``; ``partner_labels`` have the rest.
    random_score : Tensor of float32, shape (M B,)
        Uniform numbers drawn with the views.
    """

    teacher: Tensor | None
    student: Tensor | None
    kl: Tensor | None
    labels: Tensor
    partner_labels: Tensor
    lam: Tensor
    random_score: Tensor


def kl_divergence_score(candidates: Candidates) -> Tensor:
    """Score by the divergence of the student from the teacher: the paper's criterion."""
    assert candidates.kl is not None
    return candidates.kl


def teacher_entropy_score(candidates: Candidates) -> Tensor:
    """Score by the entropy of the teacher's prediction."""
    assert candidates.teacher is not None
    return entropy(candidates.teacher)


def student_entropy_score(candidates: Candidates) -> Tensor:
    """Score by the entropy of the student's prediction."""
    assert candidates.student is not None
    return entropy(candidates.student)


def score_at_random(candidates: Candidates) -> Tensor:
    """Score at random, alike for all students of a view seed."""
    return candidates.random_score


def score(criterion: str, candidates: Candidates) -> Tensor:
    """Score the candidates by a criterion of `kdcache.choices.CRITERIA`.

    Returns
    -------
    Tensor, shape (M B,)
        The higher scores are picked first.
    """
    with explained(f"criterion {criterion}", criterion):
        scores = import_object(CRITERIA[criterion].implementation)(candidates)
    shape = candidates.random_score.shape
    if not isinstance(scores, Tensor) or scores.shape != shape or scores.is_complex():
        got = f"one of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        expected = f"a tensor with a score per candidate, of shape {tuple(shape)}"
        raise KdcacheError(problem(f"criterion {criterion}: what it returns", expected=expected, got=got))
    if is_address(criterion) and scores.isnan().any():  # which would be picked first
        raise KdcacheError(problem(f"criterion {criterion}: what it returns", expected="numbers", got="NaN"))
    return scores


class Selection(NamedTuple):
    """The candidates of this process that the student is trained on.

    Attributes
    ----------
    rows : Tensor of int64, shape (P,)
        Indices among the M B candidates, ascending.
    num_picked : int
        How many of the rows are picks: P, except 0 in a process without any, which runs its first candidate through
        the student with weight 0, since a forward needs at least one row.
    global_num_picked : int
        Picks of all processes together.
    """

    rows: Tensor
    num_picked: int
    global_num_picked: int


def select_all(slots: int, batch_size: int, global_batch_size: int, device: torch.device) -> Selection:
    """Select every x' of a step.

    Parameters
    ----------
    slots : int
        Mixed views of each sample, M.
    batch_size, global_batch_size : int
        Samples of this process, and of all.
    device : torch.device
    """
    return Selection(torch.arange(slots * batch_size, device=device), slots * batch_size, slots * global_batch_size)


def select_top(scores: Tensor, keep: float, across_ranks: bool) -> Selection:
    """Select the candidates with the highest scores.

    Parameters
    ----------
    scores : Tensor, shape (M, B)
    keep : float
        Share of the pool that is picked.
    across_ranks : bool
        Whether the pool is that of all processes together.
    """
    if distributed.world_size() == 1 or not across_ranks:
        rows = top_scores(scores.flatten(), _num_picked(keep, scores))
        return Selection(rows, len(rows), int(distributed.all_reduce_sum(torch.tensor(len(rows)))))
    # The pool in the order in which a single process would see it, so that ties are broken alike.
    parts = [part.T for part in distributed.all_gather(scores.T.contiguous())]
    pool = torch.cat(parts, dim=1)
    top = top_scores(pool.flatten(), _num_picked(keep, pool))
    picked = torch.zeros(pool.numel(), dtype=torch.bool, device=pool.device)
    picked[top] = True
    start = sum(part.shape[1] for part in parts[: distributed.rank()])
    rows = picked.reshape(pool.shape)[:, start : start + scores.shape[1]].flatten().nonzero()[:, 0]
    return Selection(rows if len(rows) else rows.new_zeros(1), len(rows), len(top))


@torch.no_grad()
def pick(
    batch: Batch,
    teacher: Tensor | None = None,
    student: Tensor | None = None,
    criterion: str = "kld",
    keep: float = 0.5,
    temperature: float = 4.0,
) -> Tensor:
    """Pick the mixed views of a batch that a student learns most from (Section 3.2), for a training loop of one's own.

    Parameters
    ----------
    batch : Batch
    teacher, student : Tensor, optional, shape (M B, C)
        Logits of both networks for ``batch.mixed_views()``, as far as the criterion reads them. The student's are best
        computed without updating its batch norms, see `kdcache.forwards.FrozenRunningStats`.
    criterion : str
        A key of `kdcache.choices.CRITERIA`.
    keep : float
        Share of the views that is picked; under ``torchrun``, of those of all processes together.
    temperature : float
        tau of d, the divergence that ``kld`` compares.

    Returns
    -------
    Tensor of int64, shape (P,)
        Rows of ``batch.mixed_views()``, ascending.

    Raises
    ------
    UsageError
        If the criterion is unknown, or reads logits that are not given.
    """
    if criterion not in CRITERIA:
        raise UsageError(problem("criterion", expected=f"one of {', '.join(CRITERIA)}", got=criterion))
    if not 0 < keep <= 1:
        raise UsageError(problem("share to keep", expected="more than 0, at most 1", got=keep))
    for name, logits in (("teacher", teacher), ("student", student)):
        rows = batch.slots * len(batch)
        if (logits is not None or getattr(CRITERIA[criterion], name)) and (logits is None or len(logits) != rows):
            what, got = f"{name}'s logits for {criterion}", "none" if logits is None else f"{len(logits)}"
            raise UsageError(problem(what, expected=f"{rows} rows, one for each mixed view", got=got))
    kl = None if teacher is None or student is None else kl_divergence(student.float(), teacher.float(), temperature)
    labels = batch.labels.repeat(batch.slots)
    candidates = Candidates(teacher, student, kl, labels, batch.partner_labels, batch.lam, batch.random_score)
    selection = select_top(score(criterion, candidates).reshape(batch.slots, -1), keep, across_ranks=True)
    return selection.rows[: selection.num_picked]


def _num_picked(keep: float, pool: Tensor) -> int:
    return max(2, round(keep * pool.numel()))  # batch norm cannot normalize a single row


def top_scores(scores: Tensor, count: int) -> Tensor:
    """Find the highest scores.

    Parameters
    ----------
    scores : Tensor, shape (M B,)
    count : int

    Returns
    -------
    Tensor of int64, shape (count,)
        Their indices, ascending; among equal scores the earlier ones are taken.
    """
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values
