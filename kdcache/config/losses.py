"""The options of losses: constants that their papers vary. Nothing here imports torch.

The defaults are the published ones; where a paper has several, those for CIFAR-100, or what its code takes by default.
``docs/losses.md`` explains each option, and ``configs/recipes`` has the published combinations.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdcache.choices import LOSSES
from kdcache.config.settings import Invalid

__all__ = [
    "CRLDOptions",
    "CTKDOptions",
    "DISTOptions",
    "DKDOptions",
    "KDOptions",
    "LossOptions",
    "MLKDOptions",
    "MLKDTwoViewOptions",
    "NKDOptions",
    "OFAOptions",
    "RLDOptions",
    "TTMOptions",
    "WTTMOptions",
    "as_table",
    "loss_weights",
    "merge_loss_options",
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


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KDOptions(_Options):
    """Options of ``kd``. Its temperature is ``--temperature``."""

    standardize: bool = False


class DKDOptions(_Options):
    """Options of ``dkd``."""

    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Positive = 4.0
    standardize: bool = False
    target: Target = "teacher"
    warm_up: WarmUp = None


class DISTOptions(_Options):
    """Options of ``dist``."""

    beta: Weight = 1.0
    gamma: Weight = 1.0
    temperature: Positive = 4.0


class NKDOptions(_Options):
    """Options of ``nkd``."""

    gamma: Weight = 1.5
    temperature: Positive = 1.0
    target: Target = "teacher"


class RLDOptions(_Options):
    """Options of ``rld``."""

    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Positive = 4.0
    confidence_temperature: Positive = 1.0
    standardize: bool = False
    warm_up: WarmUp = None


class OFAOptions(_Options):
    """Options of ``ofa``."""

    exponent: Positive = 1.0
    temperature: Positive = 1.0
    target: Target = "teacher"


class TTMOptions(_Options):
    """Options of ``ttm``."""

    exponent: Positive = 0.1


class WTTMOptions(_Options):
    """Options of ``wttm``."""

    exponent: Positive = 0.2


class CTKDOptions(_Options):
    """Options of ``ctkd``."""

    lowest_temperature: Positive = 1.0
    temperature_range: Positive = 20.0
    ramp: Positive = 10.0


class MLKDOptions(_Options):
    """Options of ``mlkd-one-view``."""

    temperature: Positive = 4.0
    standardize: bool = False


class MLKDTwoViewOptions(MLKDOptions):
    """Options of ``mlkd``."""

    kd_weight: Weight = 0.9
    ce_weight: Weight = 0.1


class CRLDOptions(_Options):
    """Options of ``crld``."""

    ce_weight: Weight = 1.0
    within_weight: Weight = 2.0
    cross_weight: Weight = 0.5
    temperature: Positive = 4.0
    weak_threshold: Probability = 0.9
    strong_threshold: Probability = 0.2


class LossOptions(BaseModel):
    """The options of every loss that has some, by the name of the loss; ``None`` for a loss that is not in the sum."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

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

    def completed(self, names: Collection[str], epochs: int) -> "LossOptions":
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
        given = self.model_dump(exclude_unset=True, exclude_none=True)
        if unused := [name for loss in given.keys() - set(names) for name in _dotted(loss, given[loss]) or [loss]]:
            raise Invalid("options of losses in --loss", f"Leave out {', '.join(sorted(unused))}, or add the loss.")
        warm_up = min(LONGEST_WARM_UP, epochs / WARM_UP_SHARE)
        complete = {}
        for name, field in type(self).model_fields.items():
            loss = field.alias or name
            if loss in names:
                own = getattr(self, name) or _kind(field.annotation)()
                is_open = getattr(own, "warm_up", warm_up) is None
                complete[name] = own.model_copy(update={"warm_up": warm_up}) if is_open else own
        return self.model_copy(update=complete)

    @classmethod
    def names(cls) -> dict[str, tuple[str, ...]]:
        """Names of the options of each loss."""
        fields = cls.model_fields.items()
        return {field.alias or name: tuple(_kind(field.annotation).model_fields) for name, field in fields}

    def __str__(self) -> str:
        given = self.model_dump(exclude_none=True)
        texts = (f"{name}={value}" for loss, options in given.items() for name, value in _dotted(loss, options).items())
        return ", ".join(texts)


def _dotted(loss: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{loss}.{name}": value for name, value in options.items()}


def _kind(annotation: Any) -> type[_Options]:
    kind: type[_Options] = annotation.__args__[0]  # of ``kind | None``
    return kind


def as_table(given: Any) -> Any:
    """Turn texts such as ``dkd.beta=6`` into a table; anything else, or a text of another form, is left as it is."""
    if not isinstance(given, list | tuple):
        return given
    table: dict[str, dict[str, str]] = {}
    for text in given:
        key, equals, value = str(text).partition("=")
        loss, dot, option = key.partition(".")
        if not (equals and dot):
            return given
        table.setdefault(loss.strip(), {})[option.strip()] = value.strip()
    return table


def merge_loss_options(layers: Sequence[Any]) -> Any:
    """Combine the options of several layers, later ones first; a layer that is not a table hides the ones before."""
    merged: Any = {}
    for layer in map(as_table, layers):
        if not isinstance(layer, Mapping) or not isinstance(merged, Mapping):
            merged = layer
            continue
        merged = {**merged, **{loss: _overridden(merged.get(loss), options) for loss, options in layer.items()}}
    return merged


def _overridden(before: Any, after: Any) -> Any:
    return {**before, **after} if isinstance(before, Mapping) and isinstance(after, Mapping) else after


def loss_weights(loss: str, alpha: float) -> dict[str, float]:
    """Weight of each loss of a sum, including cross-entropy.

    Parameters
    ----------
    loss : str
        Such as ``crd:0.5+kd``.
    alpha : float
        Share of ``kd`` beside cross-entropy.
    """
    stated = dict(part.partition(":")[::2] for part in loss.split("+"))
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
