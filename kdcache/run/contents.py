"""What the JSON files of a run folder hold, and the check that a file holds that."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from kdcache.choices import INTERPOLATIONS, PRECISIONS
from kdcache.config.settings import expected_by
from kdcache.errors import UsageError, problem

__all__ = ["EpochMetrics", "check_environment", "check_metrics", "check_summary"]

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, le=1e11)]
"""A duration, or a time since 1970 that a calendar has."""

Number = Annotated[float, Field(ge=-1e39, le=1e39)]
"""What a float32 can be, so that it can be added up and plotted."""

Percent = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``.

    Attributes
    ----------
    epoch : int
        Counted from 1; 0 for a network that was loaded and evaluated, not trained.
    seconds : float
        Duration of the epoch, evaluation included.
    test_loss : float or None
        Mean cross-entropy on the test set, in nats; ``None`` if the epoch was not evaluated.
    test_top1, test_top5 : float or None
        Accuracy on the test set, in percent.
    val_loss, val_top1 : float or None
        The same on the part of the training set held out for validation.
    lr : float or None
    train_loss : float or None
        Mean of the training loss over the steps.
    train_top1 : float or None
        Accuracy on the labelled x in percent, as the steps of the epoch saw them, each before its update. Of a student
        that is not trained on x, it is that on x', by the class of the larger part of the label.
    images_per_second : float or None
        Training samples per second, without evaluation.
    data_share, teacher_share : float or None
        Share of the training time spent waiting for views, and for the teacher's logits; on a GPU, the
        former is the host's time.
    kl_ratio : float or None
        Mean over the steps of r, the mean d of the picks over the mean d of all candidates (Equation 3); ``None``
        without picking, or where d of some candidate is unknown.
    label_disagreement : float or None
        Share of the mixed views whose label the teacher disagrees with.
    loss_parts : dict of str to float
        Mean over the steps of each loss of a sum, times its weight.
    skipped_steps : int or None
        Steps that changed no weight, because gradients in float16 overflowed; ``None`` in other precisions.
    teacher_forwards, cache_hits : int
        Views that went through the teacher, and views whose logits came from the cache.
    statistics_sha256 : str or None
        Checksum of the statistics of the epoch, see `kdcache.run.statistics_store`.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    epoch: int
    seconds: Seconds
    test_loss: Number | None = None
    test_top1: Percent | None = None
    test_top5: Percent | None = None
    val_loss: Number | None = None
    val_top1: Percent | None = None
    lr: Number | None = None
    train_loss: Number | None = None
    train_top1: Percent | None = None
    images_per_second: Number | None = None
    data_share: Number | None = None
    teacher_share: Number | None = None
    kl_ratio: Number | None = None
    label_disagreement: Number | None = None
    loss_parts: dict[str, Number] = field(default_factory=dict)
    skipped_steps: Count | None = None
    teacher_forwards: Count = 0
    cache_hits: Count = 0
    statistics_sha256: str | None = None


def best_epoch(metrics: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """Find the epoch with the best accuracy, the first one if tied; ``None`` if none was evaluated.

    Accuracy on validation images decides, where some are held out, else that on test images.
    """
    evaluated = [line for line in metrics if line.test_top1 is not None]
    if not evaluated:
        return None
    return max(evaluated, key=lambda line: float(line.val_top1 if line.val_top1 is not None else line.test_top1 or 0))


class _Summary(BaseModel):
    model_config = ConfigDict(strict=True)

    kind: str
    dataset: str
    model: str
    epochs: Count
    last_top1: Percent
    last_top5: Percent
    best_top1: Percent
    best_epoch: Count
    best_on: str = "test"
    teacher_forwards: Count
    cache_hits: Count
    seconds: Seconds
    teacher_forwards_lost: Count | None = None
    resumed: list[dict[str, Count]] = []
    finished_at: Seconds
    loaded: dict[str, str] = {}


Channels = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
"""A number for each channel."""


class _InitialWeights(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    digest: str
    mean: Channels
    std: Channels
    shorter_side: Annotated[int, Field(ge=1)]
    interpolation: Literal[INTERPOLATIONS]  # type: ignore[valid-type]


class _Environment(BaseModel):
    model_config = ConfigDict(strict=True)

    command: list[str] = []
    origin: dict[str, str] = {}
    init: _InitialWeights | None = None
    precision: Literal[PRECISIONS]  # type: ignore[valid-type]
    threads: Annotated[int, Field(ge=1, le=2**20)]
    started_at: Seconds


_METRICS = TypeAdapter(list[EpochMetrics])


def check_metrics(path: Path, lines: Sequence[dict[str, Any]]) -> list[EpochMetrics]:
    """Check the metrics of the completed epochs.

    Raises
    ------
    UsageError
        If a value has another type, or an epoch is missing.
    """
    try:
        metrics = _METRICS.validate_json(json.dumps(lines))
    except ValidationError as error:
        raise UsageError(_describe(path, error)) from None
    epochs = [line.epoch for line in metrics]
    if epochs not in ([0], [*range(1, 1 + len(epochs))]):  # 0 for a network that was loaded
        raise UsageError(problem(f"{path}: epochs", expected="1, 2, and so on", got=epochs))
    return metrics


def check_summary(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Check a summary, and return it; errors as for `check_metrics`."""
    return _checked(_Summary, path, document)


def check_environment(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Check an environment, and return it; errors as for `check_metrics`."""
    return _checked(_Environment, path, document)


def _checked(kind: type[BaseModel], path: Path, document: dict[str, Any]) -> dict[str, Any]:
    try:
        kind.model_validate(document)
    except ValidationError as error:
        raise UsageError(_describe(path, error)) from None
    return document


def _describe(path: Path, error: ValidationError) -> str:
    detail = error.errors()[0]
    return problem(f"{path}: {'.'.join(map(str, detail['loc']))}", expected=expected_by(detail), got=detail["input"])
