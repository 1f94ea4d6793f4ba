"""Decorators that make the user's own code known by a name in this process, and say what kdcache has to know of it.

They have an effect whenever they are called before the name is used. Nothing here imports torch.
"""

from collections.abc import Callable
from typing import TypeVar

from kdcache.cards import CUSTOM_DATASETS
from kdcache.choices import CRITERIA, CUSTOM_MODELS, LOSSES, MIXES, ActsOn, Reads

__all__ = ["register_aug", "register_dataset", "register_loss", "register_model", "register_pick"]

Code = TypeVar("Code")


def register_loss(
    name: str,
    *,
    reads: Reads,
    acts_on: ActsOn = "x",
    weight: float = 1.0,
    cross_entropy: float = 1.0,
    needs_labels: bool = True,
) -> Callable[[Code], Code]:
    """Register a `kdcache.losses.DistillLoss`; it is built from a `kdcache.losses.LossContext`.

    Parameters
    ----------
    name : str
        For ``--loss``, besides ``python:MODULE:CLASS``.
    reads, acts_on, weight, cross_entropy, needs_labels
        See `kdcache.choices.LossInfo`. It is not used on unlabelled images unless `needs_labels` is false.
    """
    return LOSSES.register(
        name,
        reads=reads,
        acts_on=acts_on,
        weight=weight,
        cross_entropy=cross_entropy,
        needs_labels=needs_labels,
    )


def register_aug(name: str, *, takes_partner: bool) -> Callable[[Code], Code]:
    """Register a function without parameters that returns a `kdcache.views.mixes.Mix`.

    Parameters
    ----------
    name : str
        For ``--aug``, besides ``python:MODULE:FUNCTION``.
    takes_partner : bool
        Whether x' is made from two images; if not, the label stays.
    """
    return MIXES.register(name, takes_partner=takes_partner)


def register_pick(name: str, *, teacher: bool, student: bool, needs_labels: bool = True) -> Callable[[Code], Code]:
    """Register a function that scores `kdcache.selection.Candidates`.

    Parameters
    ----------
    name : str
        For ``--pick``, besides ``python:MODULE:FUNCTION``.
    teacher, student : bool
        Whether it reads the teacher's logits of the candidates, and the student's.
    needs_labels : bool
        See `kdcache.choices.Criterion`. It is not used on unlabelled images unless this is false.
    """
    return CRITERIA.register(name, teacher=teacher, student=student, needs_labels=needs_labels)


def register_model(name: str) -> Callable[[Code], Code]:
    """Register a function of ``num_classes`` that returns a ``torch.nn.Module``, for ``--model``."""
    return CUSTOM_MODELS.register(name)


def register_dataset(name: str) -> Callable[[Code], Code]:
    """Register a function without parameters that returns a `kdcache.datasets.ImageData`, for ``--dataset``."""
    return CUSTOM_DATASETS.register(name)
