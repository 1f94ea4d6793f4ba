"""The settings that say where the logits of a student come from: one teacher or several, or what was pulled."""

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from kdcache.choices import CRITERIA, LOSSES
from kdcache.config.augs import augmentation_of
from kdcache.config.losses import loss_weights
from kdcache.config.settings import Choice, Invalid, flag_of, has_no_effect, setting
from kdcache.config.student import StudentSettings
from kdcache.errors import problem
from kdcache.extensions import is_trusted

__all__ = ["StudentConfig"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mean = Annotated[str, AfterValidator(Choice(("logits", "probabilities")))]


class StudentConfig(StudentSettings):
    """Stage two: a student, trained with the paper's step."""

    table = "student"

    teacher_best: bool = setting(
        "network", False, "Learn from the network of the teacher's best epoch instead of the last."
    )
    further_teachers: tuple[Path, ...] = setting("network", (), "Teachers beside the first.", flag="--teacher")
    teacher_weights: tuple[Positive, ...] = setting(
        "network", (), "Weight of each --teacher in the mean.", shown="the same for all", validate_default=True
    )
    teacher_mean: Mean = setting(
        "loss",
        "logits",
        "With several --teacher, learn from the mean of their logits, or of their probabilities at the temperature.",
        validate_default=True,
    )
    answers: str | None = setting(
        "network",
        None,
        "Folder or URL (https://..., s3://...) where cache push wrote a teacher's logits: train on these, without a "
        "teacher.",
        shown="none",
        min_length=1,
    )

    @field_validator("teacher_best")
    @classmethod
    def _check_teacher_best(cls, best: bool, info: ValidationInfo) -> bool:
        if best and info.data.get("loss") == "ce":
            raise has_no_effect("teacher-best", "with --loss ce, which has no teacher")
        return best

    @field_validator("further_teachers")
    @classmethod
    def _check_further_teachers(cls, further: tuple[Path, ...], info: ValidationInfo) -> tuple[Path, ...]:
        first, loss, store = (info.data.get(name) for name in ("teacher", "loss", "store"))
        if not further:
            return further
        expanded = tuple(Path(os.path.expanduser(path)) for path in further)
        if first is None:
            raise Invalid("a teacher first", "Name it as teacher, and the others as further_teachers.")
        if len({os.path.realpath(path) for path in (first, *expanded)}) <= len(expanded):
            raise Invalid("run folders that differ")
        if store is not None:
            raise Invalid("one, since --store is for the logits of one teacher")
        reads = {LOSSES[name].reads for name in loss_weights(loss, 0.9)} if loss and is_trusted(loss) else {"logits"}
        if reads - {"labels"} != {"logits"}:
            raise Invalid(f"one, with --loss {loss}, which does not learn from logits alone")
        return expanded

    @field_validator("teacher_weights", mode="before")
    @classmethod
    def _split_teacher_weights(cls, weights: Any) -> Any:
        return weights.split(",") if isinstance(weights, str) else weights

    @field_validator("teacher_weights")
    @classmethod
    def _check_teacher_weights(cls, weights: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        count = 1 + len(info.data.get("further_teachers", ()))
        if weights and count == 1:
            raise Invalid("none with one --teacher")
        if weights and len(weights) != count:
            raise Invalid(f"{count} numbers, one for each --teacher")
        return weights

    @field_validator("teacher_mean")
    @classmethod
    def _check_teacher_mean(cls, mean: str, info: ValidationInfo) -> str:
        loss = info.data.get("loss")
        if mean == "logits" or loss is None or "further_teachers" not in info.data:
            return mean
        if not info.data["further_teachers"]:
            raise Invalid("logits with one --teacher")
        if is_trusted(loss) and not loss_weights(loss, alpha=0.9).keys() <= {"ce", "kd"}:
            raise Invalid(f"logits with --loss {loss}, since only kd compares probabilities at the temperature alone")
        return mean

    @property
    def teachers(self) -> tuple[Path, ...]:
        """All teachers that are named."""
        return (*([self.teacher] if self.teacher else []), *self.further_teachers)

    @field_validator("answers")
    @classmethod
    def _check_answers(cls, answers: str | None, info: ValidationInfo) -> str | None:
        if answers is None:
            return answers
        unused = {"teacher": None, "teacher_best": False, "cache": "auto", "cache_limit": None, "store": None}
        for name, default in unused.items():
            if info.data.get(name, default) != default:
                flag = flag_of(name, cls.model_fields[name])
                raise Invalid(f"no value with {flag}, since the answers are read from there alone")
        loss, aug, pick = (info.data.get(name) for name in ("loss", "aug", "pick"))
        if loss is None or aug is None or not is_trusted(f"{loss} {pick}"):  # they have problems of their own
            return answers
        if features := [name for name in loss_weights(loss, alpha=0.9) if LOSSES[name].features]:
            raise Invalid(f"no value with --loss {features[0]}, which reads features: answers have none")
        criterion = pick or augmentation_of(aug).pick
        if loss == "ce" and not (criterion and CRITERIA[criterion].teacher):
            raise has_no_effect("answers", "with --loss ce, which has no teacher")
        return answers

    def differences(self, run: Self, moved: bool = False) -> list[str]:
        """See `TrainingConfig.differences`; answers may have been moved, but take the place of a teacher."""
        found = super().differences(run, moved)
        if (self.answers is None) != (run.answers is None):
            found.append(problem("--answers", expected=f"{run.answers or 'no value'}, as in the run", got=self.answers))
        return found
