"""Groups of runs that differ only in the seed, and their means over the seeds."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.analysis.estimates import DAMAGED, MeanStd
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.config.options import dotted
from kdcache.run.records import RunRecord

__all__ = ["RunGroup", "group_runs"]

IGNORED_SETTINGS = frozenset({"seed", "view_seed", "device"})
"""Settings that may differ within a group, besides those without effect on the result."""

IN_NAME = {"kind", "model", "loss", "aug", "pick"}
"""Settings that the name of each group states."""


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the seed.

    Attributes
    ----------
    name : str
        Describes how this group differs from the others.
    config : TrainingConfig
        Of the first run.
    runs : tuple of RunRecord
    """

    name: str
    config: TrainingConfig
    runs: tuple[RunRecord, ...]

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The finished runs."""
        return tuple(run for run in self.runs if run.finished)

    def result(self, name: str) -> MeanStd:
        """Summarize a number of the summaries over the finished runs."""
        if any(run.summary_damaged for run in self.runs):
            return DAMAGED
        return MeanStd.of(run.result(name) for run in self.finished)

    def has(self, name: str, epochs: int = 1) -> bool:
        """Whether a run has a field of the metrics for so many epochs; not if the metrics of one are damaged."""
        counts = (sum(getattr(line, name) is not None for line in run.metrics) for run in self.runs)
        return not any(run.metrics_damaged for run in self.runs) and any(count >= epochs for count in counts)

    def by_epoch(self, name: str) -> list[tuple[int, MeanStd]]:
        """Summarize a field of the metrics epoch by epoch, over the runs that have it; empty if a run's are damaged."""
        if any(run.metrics_damaged for run in self.runs):
            return []
        values: dict[int, list[float | None]] = {}
        for run in self.runs:
            for line in run.metrics:
                values.setdefault(line.epoch, []).append(getattr(line, name))
        means = [(epoch, MeanStd.of(values[epoch])) for epoch in sorted(values)]
        return [(epoch, mean) for epoch, mean in means if mean.n]

    def mean_over_epochs(self, name: str) -> MeanStd:
        """Summarize, over the runs, the mean of a field of the metrics over the epochs that have it."""
        if any(run.metrics_damaged for run in self.runs):
            return DAMAGED
        return MeanStd.of(MeanStd.of(getattr(line, name) for line in run.metrics).mean for run in self.runs)


def group_runs(runs: Iterable[RunRecord], ignoring: Collection[str] = ()) -> list[RunGroup]:
    """Group runs that differ only in the seed, and name each group by what sets it apart.

    Parameters
    ----------
    runs : iterable of RunRecord
    ignoring : collection of str
        Further settings that may differ within a group.

    Returns
    -------
    list of RunGroup
        Teachers first, else in the order of the runs.
    """
    found: dict[str, list[RunRecord]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        own = _settings(run.config, ignoring)
        key = json.dumps(own, sort_keys=True)
        settings[key] = own
        found.setdefault(key, []).append(run)
    keys = sorted(found, key=lambda key: isinstance(found[key][0].config, StudentConfig))
    names = _names([(found[key][0].config, settings[key]) for key in keys])
    return [RunGroup(name, found[key][0].config, tuple(found[key])) for name, key in zip(names, keys, strict=True)]


def _settings(config: TrainingConfig, ignoring: Collection[str]) -> dict[str, Any]:
    excluded = IGNORED_SETTINGS | config.MAY_DIFFER_ON_RESUME | config.NOT_RECORDED | set(ignoring)
    settings: dict[str, Any] = {"kind": config.table}
    for name, value in config.model_dump(mode="json", exclude=set(excluded)).items():
        settings |= dotted(value) if isinstance(value, dict) else {name: value}
    return settings


def _names(configs: Sequence[tuple[TrainingConfig, dict[str, Any]]]) -> list[str]:
    """Name each config by model, loss and augmentation, and by the settings that differ among those of equal name."""
    same: dict[str, list[dict[str, Any]]] = {}
    for config, settings in configs:
        same.setdefault(_short_name(config), []).append(settings)
    differing = {
        name: {key for key in set().union(*alike) if len({repr(one.get(key)) for one in alike}) > 1}
        for name, alike in same.items()
    }
    names = []
    for config, settings in configs:
        name = _short_name(config)
        further = (_describe(key, settings[key]) for key in settings if key in differing[name] - IN_NAME)
        names.append(", ".join([name, *further]))
    return names


def _short_name(config: TrainingConfig) -> str:
    if not isinstance(config, StudentConfig):
        return f"{config.table} {config.model}"
    views = config.aug if config.pick is None else f"{config.aug} by {config.pick}"
    return f"{config.model} {config.loss} {views}"


def _describe(key: str, value: object) -> str:
    name = key.replace("_", " ")
    return f"{value} epochs" if key == "epochs" else f"{name} {value if value is not None else 'unset'}"
