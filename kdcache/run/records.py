"""Runs as far as they can be read: a missing or damaged file is reported and the rest is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kdcache.checked_files import kind_of
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.errors import UsageError
from kdcache.run.folder import EpochMetrics, RunFolder, run_folders

__all__ = ["LoadedRuns", "RunRecord", "load_runs"]

Content = TypeVar("Content")


@dataclass(frozen=True)
class RunRecord:
    """What could be read of a run, finished or not.

    Attributes
    ----------
    path : Path
    config : TrainingConfig
    metrics : tuple of EpochMetrics
        Of the completed epochs.
    summary : dict or None
        ``None`` for an unfinished run.
    environment : dict
    missing : tuple of str
        Messages about what is missing or damaged.
    summary_damaged, metrics_damaged : bool
        Whether the file is there and could not be read: figures over several runs that it is part of are not known.
    """

    path: Path
    config: TrainingConfig
    metrics: tuple[EpochMetrics, ...]
    summary: dict[str, Any] | None
    environment: dict[str, Any]
    missing: tuple[str, ...]
    summary_damaged: bool = False
    metrics_damaged: bool = False

    @property
    def folder(self) -> RunFolder:
        """The folder it was read from."""
        return RunFolder(self.path)

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return self.summary is not None

    def result(self, name: str) -> float | None:
        """One number of the summary; ``None`` for an unfinished run."""
        value = (self.summary or {}).get(name)
        return float(value) if isinstance(value, int | float) else None


class LoadedRuns(NamedTuple):
    """Runs, and messages about what is missing or damaged in them, each with its path.

    Attributes
    ----------
    runs : list of RunRecord
    problems : list of str
        All messages.
    damaged : list of str
        Those about results that are there and could not be read.
    """

    runs: list[RunRecord]
    problems: list[str]
    damaged: list[str]


def load_runs(paths: Sequence[Path]) -> LoadedRuns:
    """Read run folders, and folders of run folders; each run once."""
    runs: dict[Path, RunRecord] = {}
    problems: list[str] = []
    damaged: list[str] = []
    for path in paths:
        for folder in [RunFolder(path)] if RunFolder(path).holds_run else run_folders(path) or [RunFolder(path)]:
            try:
                runs.setdefault(folder.path.resolve(), _load(folder))
            except UsageError as error:
                problems += error.problems
                damaged += error.problems
    problems += [f"{run.path}: {line}" for run in runs.values() for line in run.missing]
    for run in runs.values():
        for file, is_damaged in (("summary", run.summary_damaged), ("metrics", run.metrics_damaged)):
            damaged += [f"the {file} of run {run.path} is damaged"] if is_damaged else []
    return LoadedRuns(list(runs.values()), problems, damaged)


def _load(folder: RunFolder) -> RunRecord:
    config, missing, damaged = folder.read_config(), list[str](), set[Path]()

    def read(file: Path, reader: Callable[[], Content], absent: str) -> Content | None:
        if kind_of(file) is None:
            missing.append(absent)
            return None
        try:
            return reader()
        except UsageError as error:
            damaged.add(file)
            missing.append(str(error))
            return None

    metrics = read(folder.metrics_file, folder.read_metrics, "no epoch is complete")
    summary = read(folder.summary_file, folder.read_summary, "unfinished")
    environment = read(folder.environment_file, folder.read_environment, f"no {folder.environment_file.name}")
    if isinstance(config, StudentConfig) and not folder.statistics_store.is_dir():
        missing.append(f"no {folder.statistics_store.name}")
    return RunRecord(
        folder.path,
        config,
        tuple(metrics or ()),
        summary,
        environment or {},
        tuple(missing),
        summary_damaged=folder.summary_file in damaged,
        metrics_damaged=folder.metrics_file in damaged,
    )
