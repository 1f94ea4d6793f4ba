"""What a student is trained on: a weighted sum of losses, each of which says which views it acts on."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from kdcache.losses.logits import cross_entropy, kd, mixed_cross_entropy

__all__ = ["Mixed", "Objective", "Part", "Plain"]


class Plain(NamedTuple):
    """The x of a step.

    Attributes
    ----------
    student : Tensor, shape (B, C)
        Logits.
    teacher : Tensor or None, shape (B, C)
        Logits, if there is a teacher.
    d : Tensor or None, shape (B,)
        Divergence of the student from it (Equation 2).
    labels, samples : Tensor of int64, shape (B,)
    epoch : int
    student_features, teacher_features : tuple of Tensor
        Inner tensors, where a loss reads them; see `kdcache.models.Network.with_features`.
    share : float
        What a mean over these rows weighs in the mean over all processes: 1 if each has as many.
    """

    student: Tensor
    teacher: Tensor | None
    d: Tensor | None
    labels: Tensor
    samples: Tensor
    epoch: int = 0
    student_features: tuple[Tensor, ...] = ()
    teacher_features: tuple[Tensor, ...] = ()
    share: float = 1.0


class Mixed(NamedTuple):
    """The mixed views x' that a step trains on.

    Student logits (P, C), their divergence d (P,) from the teacher's if there is a teacher, the labels (P,) of both
    images, the share (P,) of the first, and what a mean over these rows weighs in the mean over all processes.
    """

    student: Tensor
    d: Tensor | None
    labels: Tensor
    partner_labels: Tensor
    lam: Tensor
    share: float = 1.0


class Part(nn.Module):
    """A loss that acts on x alone; what it trains are its parameters, what it remembers its buffers.

    Losses on features act on x alone because of the teacher: its logits of mixed views come from the store, which holds
    no features, and asking for them again would undo what the store is for. The paper's CRD rows do so too. Losses that
    need the label of a view act on x because a mixed view has none of its own. Where several processes train the
    network together, a loss that relates the rows of a batch to one another relates those of one process.
    """

    def forward(self, plain: Plain) -> Tensor:
        """Compute the loss of the x of a step, shape ()."""
        raise NotImplementedError


class Objective(nn.Module):
    """A weighted sum of losses, each a mean over its own rows.

    Cross-entropy and distillation are Equation 1 on x, and distillation alone on x' (Section 3.2). Cross-entropy alone
    trains on x' with mixed labels where there are mixed views, and not on x.

    Parameters
    ----------
    weights : mapping of str to float
        Of ``ce``, ``kd`` and the names of the parts.
    temperature : float
        tau.
    parts : mapping of str to Part
        The losses besides ``ce`` and ``kd``.
    """

    def __init__(
        self, weights: Mapping[str, float], temperature: float, parts: Mapping[str, Part] | None = None
    ) -> None:
        super().__init__()
        self.weights, self.temperature = dict(weights), temperature
        self.parts = nn.ModuleDict(parts or {})

    def wants_plain(self, mixing: bool) -> bool:
        """Whether x goes through the student too when there are mixed views."""
        return not mixing or self.weights.keys() != {"ce"}

    def forward(self, plain: Plain | None, mixed: Mixed | None) -> dict[str, Tensor]:
        """Compute each loss of a step with its weight, shape (); their sum is what is trained on."""
        found: dict[str, Tensor] = {}
        if plain is None:
            assert mixed is not None
            ce = mixed_cross_entropy(mixed.student, mixed.labels, mixed.partner_labels, mixed.lam)
            found["ce"] = mixed.share * ce
        else:
            if "ce" in self.weights:
                found["ce"] = plain.share * cross_entropy(plain.student, plain.labels)
            if "kd" in self.weights:
                assert plain.d is not None
                found["kd"] = plain.share * kd(plain.d, self.temperature)
                if mixed is not None:
                    assert mixed.d is not None
                    found["kd"] = found["kd"] + mixed.share * kd(mixed.d, self.temperature)
            found |= {name: plain.share * part(plain) for name, part in self.parts.items()}
        return {name: self.weights[name] * loss for name, loss in found.items()}
