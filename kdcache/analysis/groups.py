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
    for run in runs:
        found.setdefault(json.dumps(_settings(run.config, ignoring), sort_keys=True), []).append(run)
    members = sorted(found.values(), key=lambda runs: isinstance(runs[0].config, StudentConfig))
    configs = [runs[0].config for runs in members]
    names = _names(configs, ignoring)
    return [RunGroup(name, runs[0].config, tuple(runs)) for name, runs in zip(names, members, strict=True)]


def _settings(config: TrainingConfig, ignoring: Collection[str]) -> dict[str, Any]:
    excluded = IGNORED_SETTINGS | config.MAY_DIFFER_ON_RESUME | config.NOT_RECORDED | set(ignoring)
    settings: dict[str, Any] = {"kind": config.table}
    for name, value in config.model_dump(mode="json", exclude=set(excluded)).items():
        settings |= dotted(value) if isinstance(value, dict) else {name: value}
    return settings


def _names(configs: Sequence[TrainingConfig], ignoring: Collection[str]) -> list[str]:
    """Name each config by model, loss and augmentation, and by the settings that differ among those of equal name."""
    short = [_short_name(config) for config in configs]
    in_name = {"kind", "model", "loss", "aug", "pick"}
    names = []
    for name, config in zip(short, configs, strict=True):
        own = _settings(config, ignoring)
        others = [_settings(other, ignoring) for same, other in zip(short, configs, strict=True) if same == name]
        differing = [
            key for key in own if key not in in_name and any(other.get(key) != own.get(key) for other in others)
        ]
        names.append(", ".join([name, *(_describe(key, own[key]) for key in differing)]))
    return names


def _short_name(config: TrainingConfig) -> str:
    if not isinstance(config, StudentConfig):
        return f"{config.table} {config.model}"
    views = config.aug if config.pick is None else f"{config.aug} by {config.pick}"
    return f"{config.model} {config.loss} {views}"


def _describe(key: str, value: object) -> str:
    name = key.replace("_", " ")
    return f"{value} epochs" if key == "epochs" else f"{name} {value if value is not None else 'unset'}"
