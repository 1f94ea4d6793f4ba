"""Comparison of two sets of runs: the difference of their accuracies, and settings that make it unfair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.analysis.estimates import MeanStd
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.errors import UsageError, problem
from kdcache.run.records import RunRecord
from kdcache.study.intervals import Interval, mean_difference_interval, mean_interval

__all__ = ["Comparison", "compare_runs"]

FAIRNESS_SETTINGS = ("dataset", "train_fraction", "val_fraction", "image_size", "epochs", "batch_size", "views")
"""Settings that both sides should share, unless they are what is compared."""


@dataclass(frozen=True)
class Comparison:
    """Two sets of runs compared by their top-1 accuracy after the last epoch.

    Attributes
    ----------
    left, right : MeanStd
        In percent.
    difference : Interval or None
        Left minus right as independent samples (Welch's t-test), in points; ``None`` if a side has one run.
    paired : Interval or None
        Left minus right by seed (paired t-test), in points; ``None`` with fewer than two common seeds, or if a side
        has several runs of a seed.
    unfair : tuple of str
        A description of each of `FAIRNESS_SETTINGS` that is not the same in all runs.
    """

    left: MeanStd
    right: MeanStd
    difference: Interval | None
    paired: Interval | None
    unfair: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {
            "left": self.left.as_json(),
            "right": self.right.as_json(),
            "difference": self.difference.as_json() if self.difference else None,
            "paired": self.paired.as_json() if self.paired else None,
            "unfair": list(self.unfair),
        }


def compare_runs(left: Sequence[RunRecord], right: Sequence[RunRecord], confidence_level: float = 0.95) -> Comparison:
    """Compare the finished ones of two sets of runs.

    Raises
    ------
    UsageError
        If a side has no finished run.
    """
    sides = {name: [run for run in runs if run.finished] for name, runs in (("left", left), ("right", right))}
    if empty := [name for name, runs in sides.items() if not runs]:
        raise UsageError(*(problem(f"{name} side", expected="at least one finished run", got="none") for name in empty))
    a, b = ([_accuracy(run) for run in runs] for runs in sides.values())
    return Comparison(
        MeanStd.of(a),
        MeanStd.of(b),
        mean_difference_interval(a, b, confidence_level),
        mean_interval(_differences_by_seed(*sides.values()), confidence_level),
        tuple(_unfair(sides)),
    )


def _accuracy(run: RunRecord) -> float:
    accuracy = run.result("last_top1")
    assert accuracy is not None
    return accuracy


def _differences_by_seed(left: Sequence[RunRecord], right: Sequence[RunRecord]) -> list[float]:
    """Subtract the accuracies of runs with the same seed; empty if a side has several runs of a seed."""
    a, b = ({run.config.seed: _accuracy(run) for run in runs} for runs in (left, right))
    if len(a) < len(left) or len(b) < len(right):
        return []
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def _unfair(sides: dict[str, list[RunRecord]]) -> list[str]:
    """Describe the settings that are not the same in all runs."""
    lines = []
    for name in FAIRNESS_SETTINGS:
        left, right = (sorted({_describe(run.config, name) for run in runs}) for runs in sides.values())
        if left != right or len(left) > 1:
            lines.append(f"{name.replace('_', ' ')}: {' and '.join(left)} versus {' and '.join(right)}")
    return lines


def _describe(config: TrainingConfig, name: str) -> str:
    if name != "views":
        return str(getattr(config, name))
    if not isinstance(config, StudentConfig):
        return "standard"
    augmentation = config.augmentation
    if not augmentation.pick:
        return config.views
    return f"{config.views}, {augmentation.keep:g} of {len(augmentation.mixes)} by {augmentation.pick}"
