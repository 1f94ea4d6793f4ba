"""The settings of the optimizer and of its schedule, which teachers and students share."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, ValidationError, ValidationInfo, field_validator

from kdcache.config.layers import LayeredConfig
from kdcache.config.settings import SET_BY_PRESET, Choice, Invalid, flag_of, setting, setting_problem
from kdcache.errors import UsageError, problem

__all__ = ["OPTIMIZERS", "OptimizationConfig", "known_epochs"]

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("steps", "cosine")

MAX_COUNT = 10**6
"""Largest number of epochs, and of images in a batch: more is a typing error."""

MAX_STEPS = 10**9

WARM_UP_START = 0.01
"""Fraction of the learning rate with which a warm-up begins."""

UNUSED = {"steps": ("min_lr",), "cosine": ("milestones", "gamma")}
"""Settings that a schedule does not use."""

Optimizer = Annotated[str, AfterValidator(Choice(OPTIMIZERS))]
Schedule = Annotated[str, AfterValidator(Choice(SCHEDULES))]
ClassWeights = Annotated[str, AfterValidator(Choice(("none", "balanced")))]


class Length(NamedTuple):
    """The length of a training: a number of ``epochs`` or ``steps``."""

    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.number} {self.unit}"


class OptimizationConfig(LayeredConfig):
    """How the weights are trained."""

    steps: int | None = setting(
        "recipe",
        None,
        "Length of the training in steps, rounded up to whole epochs; in place of --epochs.",
        ge=1,
        le=MAX_STEPS,
    )
    epochs: int = setting("recipe", 24, "Passes over the training set.", shown=SET_BY_PRESET, ge=1, le=MAX_COUNT)
    batch_size: int = setting("recipe", 64, "Images per step.", shown=SET_BY_PRESET, ge=2, le=MAX_COUNT)
    optimizer: Optimizer = setting("recipe", "sgd", "Optimizer.")
    lr: float = setting("recipe", 0.05, "Highest learning rate.", shown=SET_BY_PRESET, gt=0, allow_inf_nan=False)
    momentum: float = setting(
        "recipe", 0.9, "Momentum of SGD; the first beta of AdamW.", shown=SET_BY_PRESET, ge=0, lt=1
    )
    nesterov: bool = setting("recipe", False, "Nesterov momentum, with SGD.")
    weight_decay: float = setting("recipe", 5e-4, "Weight decay.", shown=SET_BY_PRESET, ge=0, allow_inf_nan=False)
    decay_norm_and_bias: bool = setting(
        "recipe", True, "Decay one-dimensional parameters too: biases, and the weights of normalization layers."
    )
    schedule: Schedule = setting("recipe", "steps", "How the learning rate falls: at milestones, or along a cosine.")
    milestones: tuple[float, ...] = setting(
        "recipe",
        (0.625, 0.75, 0.875),
        "Fractions of the epochs after which the learning rate drops, in rising order.",
        shown=SET_BY_PRESET,
    )
    gamma: float = setting(
        "recipe", 0.1, "Factor on the learning rate at each milestone.", shown=SET_BY_PRESET, gt=0, le=1
    )
    min_lr: float = setting("recipe", 0.0, "Learning rate at the end of a cosine.", ge=0, allow_inf_nan=False)
    warmup_epochs: float = setting(
        "recipe",
        0.0,
        "Epochs, or parts of one, in which the learning rate rises linearly from a hundredth.",
        ge=0,
        validate_default=True,
    )
    clip_grad: float | None = setting(
        "recipe",
        None,
        "Largest norm of the gradient; a larger one is scaled down.",
        shown="none",
        gt=0,
        allow_inf_nan=False,
    )
    label_smoothing: float = setting(
        "recipe", 0.0, "Part of each label that is spread over all classes, in cross-entropy.", ge=0, lt=1
    )
    class_weights: ClassWeights = setting(
        "recipe",
        "none",
        "Weights of the classes in cross-entropy. balanced: in inverse proportion to their numbers of images.",
    )
    ema: float | None = setting(
        "recipe",
        None,
        "Decay per step of an exponential moving average of the weights, which is evaluated and saved in their place, "
        "such as 0.999.",
        shown="none",
        gt=0,
        lt=1,
    )

    @field_validator("milestones")
    @classmethod
    def _check_milestones(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < each < 1 for each in milestones) or list(milestones) != sorted(set(milestones)):
            raise Invalid("rising numbers between 0 and 1")
        return milestones

    @field_validator("nesterov")
    @classmethod
    def _check_nesterov(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("optimizer") == "adamw":
            raise Invalid("false with --optimizer adamw", "Give --no-nesterov.")
        if nesterov and info.data.get("momentum") == 0:
            raise Invalid("false with --momentum 0", "Give --no-nesterov.")
        return nesterov

    @field_validator("min_lr")
    @classmethod
    def _check_min_lr(cls, min_lr: float, info: ValidationInfo) -> float:
        lr = info.data.get("lr")
        if lr is not None and min_lr > lr:
            raise Invalid(f"at most --lr {lr:g}", "Give --min-lr 0, or a larger --lr.")
        return min_lr

    @field_validator("warmup_epochs")
    @classmethod
    def _check_warmup_epochs(cls, warmup_epochs: float, info: ValidationInfo) -> float:
        epochs = known_epochs(info)
        if epochs is not None and not warmup_epochs < epochs:
            raise Invalid(f"less than the {epochs} epochs", "Give --warmup-epochs 0, or more --epochs.")
        return warmup_epochs

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Learning rate of a step.

        With the schedule ``steps``, ``lr`` is multiplied by ``gamma`` at each milestone (Section 4 of the paper). With
        ``cosine`` it falls to ``min_lr`` along half a cosine after the warm-up: Loshchilov and Hutter, "SGDR", 2017,
        arXiv:1608.03983, Equation 5, without restarts.

        Parameters
        ----------
        epoch, step : int
            Counted from 0.
        steps : int
            Number of steps of an epoch.
        """
        passed = epoch + step / steps
        if passed < self.warmup_epochs:
            return self.lr * (WARM_UP_START + (1 - WARM_UP_START) * passed / self.warmup_epochs)
        if self.schedule == "steps":
            return self.lr * self.gamma ** sum(epoch >= round(each * self.epochs) for each in self.milestones)
        fraction = (passed - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * fraction)) / 2

    @classmethod
    def _put_over(cls, below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
        """Combine layers as `LayeredConfig` does; epochs override the steps of what is below, too."""
        kept = {name: value for name, value in below.items() if name != "steps" or "epochs" not in layer}
        return super()._put_over(kept, layer)

    def _problems_of(self, options: Mapping[str, Any], below: Mapping[str, Any]) -> list[str]:
        fields, found = type(self).model_fields, []
        for name, why in self.unused.items():
            if name in options:
                found.append(problem(flag_of(name, fields[name]), expected=f"no value {why}", got=options[name]))
        if options.keys() >= {"epochs", "steps"}:
            flag = flag_of("steps", fields["steps"])
            found.append(problem(flag, expected="no value with --epochs", got=options["steps"]))
        before = below.get("optimizer", fields["optimizer"].default)
        if self.optimizer != before and "lr" not in options:
            expected = f"a rate for {self.optimizer}, since {self.lr:g} is that of {before}"
            found.append(problem("--lr", expected=expected, got="none"))
        return found

    @property
    def length(self) -> Length:
        """The length of the training as it was given."""
        return Length("epochs", self.epochs) if self.steps is None else Length("steps", self.steps)

    def lasting(self, epochs: int) -> Self:
        """Complete settings whose length is given in steps, by the number of epochs that they take.

        Raises
        ------
        UsageError
            If other settings do not fit this number.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            complete = type(self).model_validate({**values, "epochs": epochs}, context={"epochs": epochs})
        except ValidationError as error:
            length = f"{flag_of('steps', type(self).model_fields['steps'])} {self.steps}, which are {epochs} epochs"
            where = ((detail["loc"][0], detail) for detail in error.errors())
            fields = type(self).model_fields
            lines = (setting_problem(flag_of(str(name), fields[str(name)]), detail) for name, detail in where)
            raise UsageError(*(f"{length}: {line}" for line in lines)) from None
        complete._downloadable = self._downloadable
        return complete

    def lasting_as(self, run: Self) -> Self:
        """Complete settings of as many steps as a run has: on the same images, they take as many epochs."""
        return self if self.steps is None or self.length != run.length else self.lasting(run.epochs)

    @property
    def balances_classes(self) -> bool:
        """Whether the classes have different weights in cross-entropy."""
        return self.class_weights == "balanced"

    @property
    def unused(self) -> dict[str, str]:
        """Settings without effect, with the reason: a preset may have them, but they are refused as options."""
        return dict.fromkeys(UNUSED[self.schedule], f"with --schedule {self.schedule}")


def known_epochs(info: ValidationInfo) -> int | None:
    """Number of epochs that a validator may rely on: that of ``--steps`` is known when the images are."""
    if info.data.get("steps") is not None and not info.context:
        return None
    return info.data.get("epochs")
