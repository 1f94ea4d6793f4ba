"""What a student is trained on: each objective says which views it acts on, and puts the pure losses together."""

from typing import NamedTuple, Protocol

from torch import Tensor

from kdcache.losses.logits import cross_entropy, kd, mixed_cross_entropy

__all__ = ["OBJECTIVES", "CrossEntropy", "Distillation", "Mixed", "Objective", "Plain"]


class Plain(NamedTuple):
    """The x of a step: student logits (B, C), teacher logits (B, C) if there is a teacher, labels (B,)."""

    student: Tensor
    teacher: Tensor | None
    labels: Tensor


class Mixed(NamedTuple):
    """The mixed views x' that a step trains on.

    Student logits (P, C), teacher logits (P, C) if there is a teacher, the labels (P,) of both images, and the share
    (P,) of the first.
    """

    student: Tensor
    teacher: Tensor | None
    labels: Tensor
    partner_labels: Tensor
    kept: Tensor


class Objective(Protocol):
    """A loss of a step. Each part is a mean over its own rows."""

    def __init__(self, temperature: float, alpha: float) -> None: ...

    def wants_plain(self, mixing: bool) -> bool:
        """Whether x goes through the student too when there are mixed views."""
        ...

    def __call__(self, plain: Plain | None, mixed: Mixed | None) -> Tensor:
        """Compute the loss of a step, shape ()."""
        ...


class CrossEntropy:
    """Cross-entropy with the labels; with mixed views, on these alone and with the labels that the mix gives them."""

    def __init__(self, temperature: float, alpha: float) -> None:
        pass  # labels have no temperature and are not weighed

    def wants_plain(self, mixing: bool) -> bool:
        """See `Objective`."""
        return not mixing

    def __call__(self, plain: Plain | None, mixed: Mixed | None) -> Tensor:
        """See `Objective`."""
        if mixed is not None:
            return mixed_cross_entropy(mixed.student, mixed.labels, mixed.partner_labels, mixed.kept)
        assert plain is not None
        return cross_entropy(plain.student, plain.labels)


class Distillation:
    """Knowledge distillation: Equation 1 on x, and its second term alone on x' (Section 3.2).

    Parameters
    ----------
    temperature : float
        tau.
    alpha : float
        Weight of the soft targets.
    """

    def __init__(self, temperature: float, alpha: float) -> None:
        self.temperature, self.alpha = temperature, alpha

    def wants_plain(self, mixing: bool) -> bool:
        """See `Objective`."""
        return True

    def __call__(self, plain: Plain | None, mixed: Mixed | None) -> Tensor:
        """See `Objective`."""
        assert plain is not None
        assert plain.teacher is not None
        loss = (1 - self.alpha) * cross_entropy(plain.student, plain.labels)
        loss = loss + self.alpha * kd(plain.teacher, plain.student, self.temperature)
        if mixed is not None:
            assert mixed.teacher is not None
            loss = loss + self.alpha * kd(mixed.teacher, mixed.student, self.temperature)
        return loss


OBJECTIVES: dict[str, type[Objective]] = {"ce": CrossEntropy, "kd": Distillation}
