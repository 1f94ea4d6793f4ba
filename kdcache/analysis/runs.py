"""Run folders as analyses see them: whatever is there of each, and the runs that differ in nothing but the seed."""

import json
import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.config import StudentConfig, TrainingConfig
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.run.folder import KINDS, EpochMetrics, read_metrics
from kdcache.run.statistics import StatisticsReader

__all__ = ["Figure", "Group", "RunRecord", "group", "load_runs"]

SEEDS_AND_PLACE = frozenset({"seed", "view_seed", "device"})
"""Settings in which the runs of a group may differ, besides those without effect."""


@dataclass(frozen=True)
class Figure:
    """Mean and spread of one figure over the runs that have it.

    Attributes
    ----------
    n : int
        Runs.
    mean, std : float or None
        ``None`` of too few: the standard deviation (n - 1) takes two.
    """

    n: int
    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Figure":
        """Summarise the values that are known and finite."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        mean = statistics.fmean(known) if known else None
        return cls(len(known), mean, statistics.stdev(known) if len(known) > 1 else None)

    def as_json(self) -> dict[str, Any]:
        """The figure as plain data."""
        return {"n": self.n, "mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class RunRecord:
    """A run folder, finished or not, with all that could be read of it.

    Attributes
    ----------
    path : Path
    config : TrainingConfig
    metrics : tuple of EpochMetrics
        Of the epochs that ended.
    summary : dict or None
        ``None`` of an unfinished run.
    environment : dict
    missing : tuple of str
        What is not there or cannot be read, for people.
    """

    path: Path
    config: TrainingConfig
    metrics: tuple[EpochMetrics, ...]
    summary: dict[str, Any] | None
    environment: dict[str, Any]
    missing: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary is not None

    def outcome(self, name: str) -> float | None:
        """One of the numbers of the summary; ``None`` of an unfinished run."""
        value = (self.summary or {}).get(name)
        return float(value) if isinstance(value, int | float) else None

    def statistics(self) -> StatisticsReader:
        """Open the per-sample statistics.

        Raises
        ------
        KdcacheError
            Where there are none, as in a teacher's run.
        """
        return StatisticsReader.open(self.path / "statistics.zarr")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes
    ----------
    name : str
        Says in what this group differs from the others, for people.
    config : TrainingConfig
        Of the first run.
    runs : tuple of RunRecord
    """

    name: str
    config: TrainingConfig
    runs: tuple[RunRecord, ...]

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that came to their end: figures of an outcome rest on these alone."""
        return tuple(run for run in self.runs if run.finished)

    def figure(self, name: str) -> Figure:
        """Summarise a number of the summaries."""
        return Figure.of(run.outcome(name) for run in self.finished)

    def by_epoch(self, name: str) -> list[tuple[int, Figure]]:
        """Summarise a figure of the metrics, epoch by epoch, over the runs that came that far."""
        found: dict[int, list[float | None]] = {}
        for run in self.runs:
            for line in run.metrics:
                found.setdefault(line.epoch, []).append(getattr(line, name))
        figures = [(epoch, Figure.of(values)) for epoch, values in sorted(found.items())]
        return [(epoch, figure) for epoch, figure in figures if figure.n]


def load_runs(paths: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """Read run folders, and folders that hold runs.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    runs : list of RunRecord
        Each once, in the order given.
    problems : list of str
        A line for each folder that could not be read as a run, and for each thing that a run lacks.
    """
    runs: dict[Path, RunRecord] = {}
    problems = []
    for path in paths:
        inner = sorted(config.parent for config in path.glob("*/config.toml")) if _holds_runs(path) else [path]
        for folder in inner:
            try:
                runs.setdefault(folder.resolve(), _read(folder))
            except KdcacheError as error:
                problems += str(error).splitlines()
    problems += [f"{run.path}: {line}" for run in runs.values() for line in run.missing]
    return list(runs.values()), problems


def _holds_runs(path: Path) -> bool:
    return not (path / "config.toml").exists() and any(path.glob("*/config.toml"))


def _read(path: Path) -> RunRecord:
    if not (path / "config.toml").is_file():
        given = "a folder without config.toml" if path.is_dir() else "nothing"
        raise UsageError(problem(f"run folder {path}", expected="a folder that a training wrote", got=given))
    config, missing = _config(path), []
    documents: dict[str, dict[str, Any] | None] = {}
    for name, absent in (("summary.json", "unfinished: no summary.json"), ("environment.json", "no environment.json")):
        try:
            documents[name] = _json(path / name)
        except FileNotFoundError:
            missing.append(absent)
        except (OSError, ValueError, RecursionError) as error:
            missing.append(f"{name} cannot be read ({first_line(error)})")
    metrics: tuple[EpochMetrics, ...] = ()
    try:
        metrics = tuple(read_metrics(path))
    except UsageError as error:
        there = (path / "metrics.jsonl").exists()
        missing.append(f"metrics.jsonl cannot be read ({first_line(error)})" if there else "no epoch ended")
    if isinstance(config, StudentConfig) and not (path / "statistics.zarr").is_dir():
        missing.append("no statistics.zarr")
    summary, environment = documents.get("summary.json"), documents.get("environment.json")
    return RunRecord(path, config, metrics, summary, environment or {}, tuple(missing))


def _config(path: Path) -> TrainingConfig:
    lines = (path / "config.toml").read_text("utf-8", errors="replace").splitlines()
    kind = next((kind for table, kind in KINDS.items() if f"[{table}]" in lines), None)
    if kind is None:
        tables = " or ".join(f"[{table}]" for table in KINDS)
        raise UsageError(problem(f"{path / 'config.toml'}: table", expected=tables, got="none"))
    return kind.load(path / "config.toml")


def _json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text("utf-8"))
    if not isinstance(document, dict):
        raise ValueError("no object")
    return document


def group(runs: Iterable[RunRecord], apart_from: Collection[str] = ()) -> list[Group]:
    """Put runs together that differ in nothing but the seed, and name each group by what tells it from the others.

    Parameters
    ----------
    runs : iterable of RunRecord
    apart_from : collection of str
        Further settings in which the runs of a group may differ.

    Returns
    -------
    list of Group
        Teachers first, then in the order in which they came.
    """
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(json.dumps(_settings(run.config, apart_from), sort_keys=True), []).append(run)
    members = sorted(found.values(), key=lambda runs: isinstance(runs[0].config, StudentConfig))
    configs = [runs[0].config for runs in members]
    names = _names(configs, apart_from)
    return [Group(name, runs[0].config, tuple(runs)) for name, runs in zip(names, members, strict=True)]


def _settings(config: TrainingConfig, apart_from: Collection[str]) -> dict[str, Any]:
    left_out = SEEDS_AND_PLACE | config.MAY_DIFFER_ON_RESUME | config.NOT_RECORDED | set(apart_from)
    return {"kind": config.table, **config.model_dump(mode="json", exclude=set(left_out))}


def _names(configs: Sequence[TrainingConfig], apart_from: Collection[str]) -> list[str]:
    """Name each by model, loss and augmentation, and by each further setting in which namesakes differ."""
    short = [_short_name(config) for config in configs]
    named = {"kind", "model", "loss", "aug", "pick"}
    names = []
    for name, config in zip(short, configs, strict=True):
        own = _settings(config, apart_from)
        others = [_settings(other, apart_from) for like, other in zip(short, configs, strict=True) if like == name]
        differing = [key for key in own if key not in named and any(other.get(key) != own.get(key) for other in others)]
        names.append(", ".join([name, *(f"{_said(key, own[key])}" for key in differing)]))
    return names


def _short_name(config: TrainingConfig) -> str:
    if not isinstance(config, StudentConfig):
        return f"{config.table} {config.model}"
    views = config.aug if config.pick is None else f"{config.aug} by {config.pick}"
    return f"{config.model} {config.loss} {views}"


def _said(key: str, value: object) -> str:
    word = key.replace("_", " ")
    return f"{value} epochs" if key == "epochs" else f"{word} {value if value is not None else 'unset'}"
