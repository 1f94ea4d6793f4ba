"""Runs as far as they can be read: a missing or damaged file is reported and the rest is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdcache.config import StudentConfig, TrainingConfig
from kdcache.errors import UsageError
from kdcache.run.folder import EpochMetrics, RunFolder, run_folders

__all__ = ["RunRecord", "load_runs"]

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
    """

    path: Path
    config: TrainingConfig
    metrics: tuple[EpochMetrics, ...]
    summary: dict[str, Any] | None
    environment: dict[str, Any]
    missing: tuple[str, ...]

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


def load_runs(paths: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """Read run folders, and folders of run folders; each run once.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    runs : list of RunRecord
    problems : list of str
        Messages about what is missing or damaged, each with its path.
    """
    runs: dict[Path, RunRecord] = {}
    problems: list[str] = []
    for path in paths:
        for folder in [RunFolder(path)] if RunFolder(path).holds_run else run_folders(path) or [RunFolder(path)]:
            try:
                runs.setdefault(folder.path.resolve(), _load(folder))
            except UsageError as error:
                problems += error.problems
    problems += [f"{run.path}: {line}" for run in runs.values() for line in run.missing]
    return list(runs.values()), problems


def _load(folder: RunFolder) -> RunRecord:
    config, missing = folder.read_config(), []

    def read(file: Path, reader: Callable[[], Content], absent: str) -> Content | None:
        if not file.exists():
            missing.append(absent)
            return None
        try:
            return reader()
        except UsageError as error:
            missing.append(str(error))
            return None

    metrics = read(folder.metrics_file, folder.read_metrics, "no epoch is complete")
    summary = read(folder.summary_file, folder.read_summary, "unfinished")
    environment = read(folder.environment_file, folder.read_environment, f"no {folder.environment_file.name}")
    if isinstance(config, StudentConfig) and not folder.statistics_store.is_dir():
        missing.append(f"no {folder.statistics_store.name}")
    return RunRecord(folder.path, config, tuple(metrics or ()), summary, environment or {}, tuple(missing))
