"""The options of augmentations, and the names of kinds of views that state them. Nothing here imports torch."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from kdcache.choices import AUGMENTATIONS, MIXES, Augmentation
from kdcache.config.options import Options, OptionTables
from kdcache.config.settings import Invalid
from kdcache.extensions import is_address

__all__ = [
    "BETA_SHAPES",
    "AugOptions",
    "AutoAugmentOptions",
    "CodeOptions",
    "CutoutOptions",
    "ErasingOptions",
    "MixingOptions",
    "RandAugmentOptions",
    "augmentation_of",
    "format_mix",
    "parse_mix",
    "with_batch_size",
    "with_code",
    "with_mean_color",
]

BETA_SHAPES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.0, 2.0, 4.0)
"""The a of Beta(a, a) whose quantiles are in ``data/beta_quantiles.json``; 1 needs none."""


def _check_alpha(alpha: float) -> float:
    if alpha not in BETA_SHAPES:
        raise Invalid(f"one of {', '.join(map(_text, BETA_SHAPES))}")
    return alpha


def _check_fill(fill: str) -> str:
    if fill not in ("black", "mean") and not re.fullmatch("[0-9a-f]{6}", fill):
        raise Invalid("black, mean, or a color RRGGBB in hexadecimal")
    return "black" if fill == "000000" else fill


def _check_mode(mode: str) -> str:
    if not re.fullmatch("elem|batch([1-9][0-9]{0,6})?", mode):
        raise Invalid("elem, batch, or batchN for batches of N")
    return mode


Alpha = Annotated[float, AfterValidator(_check_alpha)]
Probability = Annotated[float, Field(ge=0.01, le=1)]
Mode = Annotated[str, AfterValidator(_check_mode)]
"""The name of the kind states the size of the batches: ``batch64``."""

Fill = Annotated[str, AfterValidator(_check_fill)]
"""``mean`` is the mean color of the dataset, from its card; the name of the kind states the color."""


class _NumbersAndWords(Options):
    @field_validator("*", mode="before")
    @classmethod
    def _refuse_flags(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise Invalid("a value other than true and false")
        return value


class MixingOptions(_NumbersAndWords):
    """Options of ``mixup`` and ``cutmix``.

    Attributes
    ----------
    alpha : float
        a of Beta(a, a), the distribution of lambda.
    probability : float
        Fraction of the samples that are mixed. The x' of the others is x.
    mode : str
        ``elem`` draws for every sample, ``batch`` once for all samples of a training step: whether they are mixed,
        lambda, and the box. Partners are drawn apart.
    """

    alpha: Alpha = 1.0
    probability: Probability = 1.0
    mode: Mode = "elem"


class CutoutOptions(_NumbersAndWords):
    """Options of ``cutout``.

    Attributes
    ----------
    side : float
        Side of the square, as a fraction of the image's.
    fill : str
    """

    side: Annotated[float, Field(ge=1 / 16, le=1)] = 0.5
    fill: Fill = "black"


class ErasingOptions(_NumbersAndWords):
    """Options of ``erasing``.

    Attributes
    ----------
    probability : float
        Fraction of the samples of which a part is erased. The x' of the others is x.
    fill : str
    """

    probability: Probability = 0.5
    fill: Fill = "black"


class AutoAugmentOptions(_NumbersAndWords):
    """Options of ``autoaugment``.

    Attributes
    ----------
    policy : str
        The dataset that the policy was learned on; ``auto`` is CIFAR-10 up to 64 pixels, else ImageNet.
    """

    policy: Literal["auto", "cifar10", "imagenet"] = "auto"


class RandAugmentOptions(_NumbersAndWords):
    """Options of ``randaugment``.

    Attributes
    ----------
    number : int
        Operations on each image.
    magnitude : int
        Of 30, the strongest.
    """

    number: Annotated[int, Field(ge=1, le=8)] = 2
    magnitude: Annotated[int, Field(ge=1, le=30)] = 9


class CodeOptions(Options):
    """What the name of a kind states of an augmentation of the user's own code.

    Attributes
    ----------
    code : str
        Digest of the code, see `kdcache.views.custom`.
    """

    code: Annotated[str, Field(pattern="[0-9a-f]{16}|")] = ""


class AugOptions(OptionTables):
    """The options of every augmentation that has some; ``None`` for one that is not in ``--aug``."""

    mixup: MixingOptions | None = None
    cutmix: MixingOptions | None = None
    cutout: CutoutOptions | None = None
    erasing: ErasingOptions | None = None
    autoaugment: AutoAugmentOptions | None = None
    randaugment: RandAugmentOptions | None = None


def augmentation_of(aug: str) -> Augmentation:
    """Find the views that a value of ``--aug`` names."""
    return AUGMENTATIONS.get(aug) or Augmentation(mixes=tuple(aug.split("+")))


def format_mix(name: str, options: Options | None) -> str:
    """Name a mix with its options, such as ``cutmix,alpha=0.2``; options that have their defaults are left out.

    Parameters
    ----------
    name : str
        A key of `kdcache.choices.MIXES`.
    options : Options or None
    """
    stated = options.model_dump(exclude_defaults=True) if options else {}
    return ",".join([name, *(f"{option}={_text(value)}" for option, value in stated.items())])


def parse_mix(text: str) -> tuple[str, Options | None]:
    """Parse the result of `format_mix` into the name and the options; any other text is a ``ValueError``."""
    name, *stated = text.split(",")
    options = _complete(name, dict(option.split("=", 1) for option in stated))
    if name not in MIXES or format_mix(name, options) != text:
        raise ValueError(f"not the name of a mix: {text}")
    return name, options


def with_mean_color(mix: str, mean: Sequence[float]) -> str:
    """Name a mix with the color of ``fill=mean`` instead of the word.

    Parameters
    ----------
    mix : str
    mean : sequence of float
        Mean of red, green and blue, on a scale of 0 to 1.
    """
    return _with(mix, "fill", "mean", bytes(round(255 * value) for value in mean).hex())


def with_batch_size(mix: str, batch_size: int) -> str:
    """Name a mix with the size of the batches of ``mode=batch``, on which its views depend."""
    return _with(mix, "mode", "batch", f"batch{batch_size}")


def _with(mix: str, option: str, word: str, value: str) -> str:
    """Replace the value of an option if it is a certain word."""
    name, options = parse_mix(mix)
    if options is None or getattr(options, option, None) != word:
        return mix
    return format_mix(name, _complete(name, {**options.model_dump(), option: value}))


def with_code(mix: str, digest: str) -> str:
    """Name an augmentation of the user's own code with the digest of its code."""
    return format_mix(parse_mix(mix)[0], CodeOptions(code=digest))


def _complete(name: str, options: Mapping[str, Any]) -> Options | None:
    """Validate the options of a mix; a mistake is a ``ValueError``. ``None`` for a mix that has none."""
    if is_address(name):
        return CodeOptions.model_validate(options)
    if not options and name not in AugOptions.names():
        return None
    return AugOptions.model_validate({name: options}).of(name)


def _text(value: float | str) -> str:
    return str(value).removesuffix(".0")
