"""The options of losses: constants that their papers vary. Nothing here imports torch.

The defaults are the published ones; where a paper has several, those for CIFAR-100, or what its code takes by default.
``docs/losses.md`` explains each option, and ``configs/recipes`` has the published combinations.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import Field

from kdcache.choices import LOSSES
from kdcache.config.options import Options, OptionTables
from kdcache.config.settings import split_weight

__all__ = [
    "CRLDOptions",
    "CTKDOptions",
    "DISTOptions",
    "DKDOptions",
    "EmbedOptions",
    "KDOptions",
    "LossOptions",
    "MLKDOptions",
    "MLKDTwoViewOptions",
    "NKDOptions",
    "OFAOptions",
    "RLDOptions",
    "TTMOptions",
    "WTTMOptions",
    "loss_names",
    "loss_weights",
    "trains_on_mixed_views",
]

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Target = Literal["teacher", "label"]
"""The target class of an x': the teacher's first class, or the larger part of the mixed label."""

WarmUp = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
"""Epochs over which the weight of a loss rises; ``None`` until a config completes it."""

LONGEST_WARM_UP, WARM_UP_SHARE = 20.0, 12
"""A warm-up takes this many epochs, but at most one in so many of a training: 20 of the published 240."""


class KDOptions(Options):
    """Options of ``kd``. Its temperature is ``--temperature``."""

    standardize: bool = False


class DKDOptions(Options):
    """Options of ``dkd``."""

    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Positive = 4.0
    standardize: bool = False
    target: Target = "teacher"
    warm_up: WarmUp = None


class DISTOptions(Options):
    """Options of ``dist``."""

    beta: Weight = 1.0
    gamma: Weight = 1.0
    temperature: Positive = 4.0


class NKDOptions(Options):
    """Options of ``nkd``."""

    gamma: Weight = 1.5
    temperature: Positive = 1.0
    target: Target = "teacher"


class RLDOptions(Options):
    """Options of ``rld``."""

    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Positive = 4.0
    confidence_temperature: Positive = 1.0
    standardize: bool = False
    warm_up: WarmUp = None


class OFAOptions(Options):
    """Options of ``ofa``."""

    exponent: Positive = 1.0
    temperature: Positive = 1.0
    target: Target = "teacher"


class TTMOptions(Options):
    """Options of ``ttm``."""

    exponent: Positive = 0.1


class WTTMOptions(Options):
    """Options of ``wttm``."""

    exponent: Positive = 0.2


class CTKDOptions(Options):
    """Options of ``ctkd``."""

    lowest_temperature: Positive = 1.0
    temperature_range: Positive = 20.0
    ramp: Positive = 10.0


class MLKDOptions(Options):
    """Options of ``mlkd-one-view``."""

    temperature: Positive = 4.0
    standardize: bool = False


class MLKDTwoViewOptions(MLKDOptions):
    """Options of ``mlkd``."""

    kd_weight: Weight = 0.9
    ce_weight: Weight = 0.1


class CRLDOptions(Options):
    """Options of ``crld``."""

    ce_weight: Weight = 1.0
    within_weight: Weight = 2.0
    cross_weight: Weight = 0.5
    temperature: Positive = 4.0
    weak_threshold: Probability = 0.9
    strong_threshold: Probability = 0.2


class EmbedOptions(Options):
    """Options of ``embed``."""

    distance: Literal["cosine", "mse"] = "cosine"


class LossOptions(OptionTables):
    """The options of every loss that has some, by the name of the loss; ``None`` for a loss that is not in the sum."""

    kd: KDOptions | None = None
    dkd: DKDOptions | None = None
    dist: DISTOptions | None = None
    nkd: NKDOptions | None = None
    rld: RLDOptions | None = None
    ofa: OFAOptions | None = None
    ttm: TTMOptions | None = None
    wttm: WTTMOptions | None = None
    ctkd: CTKDOptions | None = None
    mlkd: MLKDTwoViewOptions | None = None
    mlkd_one_view: MLKDOptions | None = Field(None, alias="mlkd-one-view")
    crld: CRLDOptions | None = None
    embed: EmbedOptions | None = None

    def completed_for(self, names: Collection[str], epochs: int) -> "LossOptions":
        """Add the defaults of the losses in a sum.

        Parameters
        ----------
        names : collection of str
            The losses.
        epochs : int
            Length of the training, from which a warm-up follows.

        Raises
        ------
        Invalid
            If there are options of other losses.
        """
        self.require_used(names, "losses in --loss", "loss")
        complete, warm_up = self.completed(names), min(LONGEST_WARM_UP, epochs / WARM_UP_SHARE)
        warming = {
            name: own.model_copy(update={"warm_up": warm_up})
            for name, own in complete
            if own is not None and getattr(own, "warm_up", warm_up) is None
        }
        return complete.model_copy(update=warming)


def loss_names(loss: str) -> set[str]:
    """Names of the losses that a sum states, without looking them up."""
    return {split_weight(part)[0] for part in loss.split("+")}


def loss_weights(loss: str, alpha: float) -> dict[str, float]:
    """Weight of each loss of a sum, including cross-entropy.

    Parameters
    ----------
    loss : str
        Such as ``crd:0.5+kd``.
    alpha : float
        Share of ``kd`` beside cross-entropy.
    """
    stated = dict(map(split_weight, loss.split("+")))
    weights = {name: float(weight) if weight else LOSSES[name].weight for name, weight in stated.items()}
    if "ce" in weights:
        return weights
    if "kd" in weights:
        return {"ce": 1 - alpha, **weights, "kd": alpha * weights["kd"]}
    ce = min(LOSSES[name].cross_entropy for name in weights)
    return {"ce": ce, **weights} if ce else weights


def trains_on_mixed_views(weights: Mapping[str, float]) -> bool:
    """Whether a loss of a sum acts on x'; cross-entropy does if it is alone."""
    return weights.keys() == {"ce"} or any(weight and LOSSES[name].acts_on != "x" for name, weight in weights.items())
