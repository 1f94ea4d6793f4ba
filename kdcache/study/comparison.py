"""Comparison of two sets of runs: the difference of their accuracies, and of their settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kdcache.analysis.estimates import MeanStd
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.config.options import OptionTables, dotted
from kdcache.errors import UsageError, problem
from kdcache.run.records import RunRecord
from kdcache.study.intervals import Interval, mean_difference_interval, mean_interval

__all__ = ["Comparison", "compare_runs"]

GROUPS = ("data", "network", "recipe", "views", "loss")
"""Groups of the settings that both sides should share, unless they are what is compared."""

SEEDS = {"seed", "view_seed"}

DESCRIBED_AS_VIEWS = {"aug", "augs", "pick", "candidates", "keep"}


@dataclass(frozen=True)
class Comparison:
    """Two sets of runs compared by their top-1 accuracy after the last epoch.

    Attributes
    ----------
    left, right : MeanStd
        In percent.
    difference : Interval or None
        Left minus right as independent samples (Welch's t-test), in points; ``None`` if that cannot be estimated, see
        `kdcache.study.intervals`.
    differences : tuple of float
        Left minus right of each seed that both sides have, in points; empty if a side has several runs of a seed.
    paired : Interval or None
        Their mean (paired t-test); ``None`` if that cannot be estimated.
    different_settings : tuple of str
        A description of each setting, except seeds, that is not the same in all runs. What is compared is among them.
    """

    left: MeanStd
    right: MeanStd
    difference: Interval | None
    differences: tuple[float, ...]
    paired: Interval | None
    different_settings: tuple[str, ...]

    @property
    def mean_difference(self) -> float:
        """Left minus right, in points; known without an interval too."""
        assert self.left.mean is not None
        assert self.right.mean is not None
        return self.left.mean - self.right.mean

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {
            "left": self.left.as_json(),
            "right": self.right.as_json(),
            "mean_difference": self.mean_difference,
            "difference": self.difference.as_json() if self.difference else None,
            "differences": list(self.differences),
            "paired": self.paired.as_json() if self.paired else None,
            "different_settings": list(self.different_settings),
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
    differences = _differences_by_seed(*sides.values())
    return Comparison(
        MeanStd.of(a),
        MeanStd.of(b),
        mean_difference_interval(a, b, confidence_level),
        differences,
        mean_interval(differences, confidence_level),
        tuple(_different_settings(sides)),
    )


def _accuracy(run: RunRecord) -> float:
    accuracy = run.result("last_top1")
    assert accuracy is not None
    return accuracy


def _differences_by_seed(left: Sequence[RunRecord], right: Sequence[RunRecord]) -> tuple[float, ...]:
    """Subtract the accuracies of runs with the same seed; empty if a side has several runs of a seed."""
    a, b = ({run.config.seed: _accuracy(run) for run in runs} for runs in (left, right))
    if len(a) < len(left) or len(b) < len(right):
        return ()
    return tuple(a[seed] - b[seed] for seed in sorted(a.keys() & b.keys()))


def _different_settings(sides: dict[str, list[RunRecord]]) -> list[str]:
    """Describe the settings that are not the same in all runs."""
    left, right = ([_settings(run) for run in runs] for runs in sides.values())
    lines = []
    for name in dict.fromkeys(name for settings in (*left, *right) for name in settings):
        a, b = ({settings.get(name, ABSENT) for settings in side} for side in (left, right))
        if len({one.identity for one in a | b}) > 1:
            texts = (" and ".join(sorted({one.text for one in side})) for side in (a, b))
            lines.append(f"{name.replace('_', ' ')}: {' versus '.join(texts)}")
    return lines


class _Setting(NamedTuple):
    identity: str
    text: str


ABSENT = _Setting("None", "none")


def _settings(run: RunRecord) -> dict[str, _Setting]:
    """Find what the accuracy of a run depends on, besides its seeds and the machine."""
    config, origin = run.config, run.environment.get("origin", {})
    free = SEEDS | DESCRIBED_AS_VIEWS | config.NOT_RECORDED | config.MAY_DIFFER_ON_RESUME
    values = {name: getattr(config, name) for group in GROUPS for name in config.in_group(group) if name not in free}
    values |= {"views": _views(config), "precision": run.environment.get("precision", config.precision)}
    settings = {name: _Setting(str(value), _text(value)) for name, value in values.items()}
    # The images and the teacher are known by their content: their place says little.
    for name in settings.keys() & origin.keys() & {"dataset", "teacher"}:
        settings[name] = _Setting(origin[name], f"{settings[name].text} ({origin[name][:8]})")
    return settings


def _text(value: Any) -> str:
    if isinstance(value, OptionTables):
        options = dotted(value.model_dump(exclude_none=True))
        return ", ".join(f"{name}={option}" for name, option in options.items()) or ABSENT.text
    return ABSENT.text if value is None else str(value)


def _views(config: TrainingConfig) -> str:
    if not isinstance(config, StudentConfig):
        return "standard"
    augmentation = config.augmentation
    if not augmentation.pick:
        return config.views
    return f"{config.views}, {augmentation.keep:g} of {len(augmentation.mixes)} by {augmentation.pick}"
