"""What every term of the training objective has in common: what it is given, and what it is built from."""

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kdcache.config.losses import LossOptions
from kdcache.config.options import Options
from kdcache.datasets.split import UNLABELLED
from kdcache.losses.logits import standardize
from kdcache.views.batch import hard_labels

__all__ = ["DistillLoss", "LossContext", "LossWithOptions", "ViewOutputs"]

AnyOptions = TypeVar("AnyOptions", bound=Options)
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ViewOutputs:
    """Both networks' outputs for the views of one kind in a step: x, or the mixed views x' that are trained on.

    Attributes
    ----------
    student : Tensor, shape (R, C)
        The student's logits.
    teacher : Tensor or None, shape (R, C)
        The teacher's logits; ``None`` in a run without a teacher.
    kl : Tensor or None, shape (R,)
        KL divergence of the student from the teacher at the run's temperature: d of Equation 2.
    labels : Tensor of int64, shape (R,)
    samples : Tensor of int64, shape (R,)
        Index of each row's image in the training set.
    epoch : int
        Counted from 0.
    partner_labels : Tensor of int64 or None, shape (R,)
        Labels of the images mixed in; ``None`` for x.
    lam : Tensor of float32 or None, shape (R,)
        Share of the label that belongs to ``labels``; ``partner_labels`` have the rest. ``None`` for x.
    student_features, teacher_features : tuple of Tensor
        Feature maps, first to last, and the vectors (`kdcache.models.Network.with_features`); empty unless a loss reads
        them, and for x': the teacher's are not stored.
    student_vectors, teacher_vectors : Tensor or None, shapes (R, D_s), (R, D_t)
        What the last layer of each network reads; ``None`` unless a loss reads them.
    process_weight : float
        Weight of a mean over these rows in the mean over all processes: 1 where each process has as many rows.
    labelled_share : Tensor or None, shape ()
        Share of the rows of all processes that have a label, if training images may be unlabelled: a label is -1 then.
    """

    student: Tensor
    teacher: Tensor | None
    kl: Tensor | None
    labels: Tensor
    samples: Tensor
    epoch: int = 0
    partner_labels: Tensor | None = None
    lam: Tensor | None = None
    student_features: tuple[Tensor, ...] = ()
    teacher_features: tuple[Tensor, ...] = ()
    student_vectors: Tensor | None = None
    teacher_vectors: Tensor | None = None
    process_weight: float = 1.0
    labelled_share: Tensor | None = None

    def logits(self, standardized: bool = False) -> tuple[Tensor, Tensor]:
        """Logits of the student and of the teacher, through `standardize` or as they are."""
        assert self.teacher is not None
        both = self.student, self.teacher
        return (standardize(both[0]), standardize(both[1])) if standardized else both

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors of the student and of the teacher."""
        assert self.student_vectors is not None
        assert self.teacher_vectors is not None
        return self.student_vectors, self.teacher_vectors

    def hard_labels(self) -> Tensor:
        """Labels of x, or the class with the larger part of each mixed label, int64 (R,); -1 where it is unknown."""
        if self.partner_labels is None or self.lam is None:
            return self.labels
        return hard_labels(self.labels, self.partner_labels, self.lam)

    def target_classes(self, target: str) -> Tensor:
        """Target class of each row, for losses that treat one class apart, int64 (R,).

        Parameters
        ----------
        target : str
            For an x', ``teacher`` takes the teacher's first class, which may be right where the mixed label is not,
            and ``label`` the larger part of the mixed label. For x it is the label. Rows without a label have the
            teacher's first class.
        """
        assert self.teacher is not None
        if target == "teacher" and self.lam is not None:
            return self.teacher.argmax(1)
        labels = self.hard_labels()
        if self.labelled_share is None:
            return labels
        return torch.where(labels == UNLABELLED, self.teacher.argmax(1), labels)


class LossContext(NamedTuple):
    """What a loss may depend on when it is built.

    Attributes
    ----------
    student_shapes, teacher_shapes : tuple of tuple of int
        Feature shapes of one image, first to last, without the batch dimension; empty where no loss reads features.
    labels : Tensor of int64, shape (N,)
        Labels of the training set; -1 of an image without one.
    temperature : float
        tau.
    seed : int
        For the random numbers that a loss draws.
    options : LossOptions
        The options of all losses; a loss whose options are ``None`` has the published ones.
    label_smoothing : float
        Of cross-entropy.
    class_weights : Tensor of float32, shape (C,), or None
        Of cross-entropy.
    student_width, teacher_width : int
        Length of the vectors; 0 where no loss reads them.
    """

    student_shapes: Shapes
    teacher_shapes: Shapes
    labels: Tensor
    temperature: float
    seed: int
    options: LossOptions = LossOptions()
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    student_width: int = 0
    teacher_width: int = 0


class DistillLoss(nn.Module):
    """One term of the objective: built from a `LossContext`, it maps `ViewOutputs` to a loss, shape ().

    `kdcache.choices.LOSSES` declares each loss: its class, what it reads, which views it acts on and its published
    weight. A loss that acts on pairs of x and x' is called with both records. Trainable layers are its parameters;
    what it remembers between steps are its buffers, which checkpoints hold. Under ``torchrun``, a loss that relates
    the rows of a batch to each other relates those of one process.

    Attributes
    ----------
    warm_up : float
        Epochs over which the weight of the loss rises linearly, W: in epoch e, counted from 1, it is min(e / W, 1)
        of the whole.
    """

    warm_up: float = 0.0

    def __init__(self, context: LossContext) -> None:
        super().__init__()


class LossWithOptions(DistillLoss, Generic[AnyOptions]):
    """A loss with options of its own, and the warm-up that is among them.

    Attributes
    ----------
    options_class : type of Options
        A field of `kdcache.config.losses.LossOptions` has this class.
    options : Options
    """

    options_class: type[AnyOptions]

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options.of_class(self.options_class)
        self.warm_up = getattr(self.options, "warm_up", None) or 0.0
