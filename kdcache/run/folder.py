"""The run folder: what a training writes. No other module knows the names of these files.

===========================  ==============================================================
``config.toml``              every setting, as a file that ``--config`` reads
``environment.json``         versions, processor, device, precision, commit, command
``metrics.jsonl``            one line per epoch
``model.safetensors``        the network after the last complete epoch
``best.safetensors``         the network after the best epoch so far, see `best_epoch`
``statistics.zarr``          per-sample statistics of a student, see `kdcache.run.statistics`
``answers``                  stores of a teacher's logits, see `kdcache.answers.teacher_stores`
``curves.png``               loss and accuracy over the epochs
``checkpoints``              where an unfinished run resumes, see `kdcache.run.checkpoint`
``tracking.json``            the run's identity in each tracker of ``--track``
``teacher_forwards.count``   the teacher forwards of an unfinished run
``run.lock``                 held by the process that writes the folder
``summary.json``             the result; without it the run is unfinished
===========================  ==============================================================

Each file is written atomically: it is complete or absent. Each one that is read has a checksum, see
`kdcache.checked_files`.
"""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from kdcache import checked_files
from kdcache.cards import same_dataset
from kdcache.checked_files import FILE, FOLDER, kind_of, require_kind
from kdcache.choices import SHIPPED
from kdcache.config import CONFIG_FILE, StudentConfig, TeacherConfig, TrainingConfig
from kdcache.errors import UsageError, problem
from kdcache.locks import FileLock
from kdcache.presets import ConfigFile
from kdcache.run.contents import EpochMetrics, check_environment, check_metrics, check_summary

__all__ = [
    "RUNS",
    "EpochMetrics",
    "FinishedRun",
    "RunFolder",
    "find_finished_runs",
    "newest_finished_run",
    "run_folders",
]

RUNS = Path("runs")
"""Parent of the run folders of trainings without ``--out``, relative to the current folder."""

CONFIGS: dict[str, type[TrainingConfig]] = {config.table: config for config in (TeacherConfig, StudentConfig)}
"""The config of each kind of run, by its table in ``config.toml``."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|old)")
"""Names that `kdcache.files` gives to what it has not finished."""

log = logging.getLogger("kdcache")


class RunFolder:
    """Paths, state and content of a run folder, which may be unfinished or not exist yet.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    config_file, environment_file, metrics_file, network_file, best_network_file, curves_file : Path
    summary_file, count_file, lock_file, tracking_file : Path
    statistics_store, answers_folder, checkpoints_folder : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / CONFIG_FILE
        self.environment_file = path / "environment.json"
        self.metrics_file = path / "metrics.jsonl"
        self.network_file = path / "model.safetensors"
        self.best_network_file = path / "best.safetensors"
        self.statistics_store = path / "statistics.zarr"
        self.answers_folder = path / "answers"
        self.curves_file = path / "curves.png"
        self.checkpoints_folder = path / "checkpoints"
        self.count_file = path / "teacher_forwards.count"
        self.lock_file = path / "run.lock"
        self.tracking_file = path / "tracking.json"
        self.summary_file = path / "summary.json"

    @property
    def holds_run(self) -> bool:
        """Whether a training has begun here."""
        return kind_of(self.config_file) is not None

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished."""
        return kind_of(self.summary_file) is not None

    def require_own_entries(self) -> None:
        """Check that the folder's files and folders are such, and not links that lead elsewhere, or FIFOs.

        Raises
        ------
        UsageError
        """
        files = (self.config_file, self.environment_file, self.metrics_file, self.network_file, self.best_network_file)
        for file in (*files, self.curves_file, self.summary_file, self.count_file, self.lock_file, self.tracking_file):
            require_kind(file, FILE)
        for folder in (self.statistics_store, self.checkpoints_folder):
            require_kind(folder, FOLDER)

    def read_config(self) -> TrainingConfig:
        """Read the settings; their type tells the kind of the run.

        Raises
        ------
        UsageError
            If the folder holds no run, or the settings are damaged or invalid.
        """
        if not self.holds_run:
            found = f"a folder without {CONFIG_FILE}" if os.path.isdir(self.path) else "nothing"
            raise UsageError(problem(f"run folder {self.path}", expected="a folder that a training wrote", got=found))
        self.require_own_entries()
        document = checked_files.read_toml(self.config_file)
        kind = next((kind for table, kind in CONFIGS.items() if table in document), None)
        if kind is None:
            tables = " or ".join(f"[{table}]" for table in CONFIGS)
            raise UsageError(problem(f"{self.config_file}: table", expected=tables, got="neither"))
        return kind.load(ConfigFile(self.config_file, document))

    def read_environment(self) -> dict[str, Any]:
        """Read the environment; empty for a run that was killed before it wrote the file.

        Raises
        ------
        UsageError
            If the file is damaged.
        """
        if kind_of(self.environment_file) is None:
            return {}
        return check_environment(self.environment_file, checked_files.read_json(self.environment_file))

    def read_metrics(self) -> list[EpochMetrics]:
        """Read the metrics of the completed epochs.

        Raises
        ------
        UsageError
            If the file is missing or damaged.
        """
        return check_metrics(self.metrics_file, checked_files.read_lines(self.metrics_file))

    def read_summary(self) -> dict[str, Any]:
        """Read the summary.

        Raises
        ------
        UsageError
            If the run is unfinished, or the file is damaged.
        """
        self.require_finished()
        return check_summary(self.summary_file, checked_files.read_json(self.summary_file))

    def require_finished(self) -> None:
        """Check that the run has finished.

        Raises
        ------
        UsageError
        """
        if self.is_finished:
            return
        state = "a folder without a run" if os.path.isdir(self.path) else "nothing"
        got, remedy = ("an unfinished run", "Finish it with --resume.") if self.holds_run else (state, None)
        if str(self.path) == SHIPPED:
            remedy = f"Make one with 'kdcache teacher-load --weights {SHIPPED}', and name its folder."
        raise UsageError(problem(f"run folder {self.path}", expected="a finished run", got=got, remedy=remedy))

    def in_use(self) -> bool:
        """Tell whether a training writes here."""
        if not self.lock_file.exists():
            return False
        with FileLock(self.lock_file).held(wait=False) as free:
            return not free

    def acquire_lock(self) -> FileLock:
        """Keep other processes from writing here until the lock is released or this process ends.

        Raises
        ------
        UsageError
            If another process writes here.
        """
        lock = FileLock(self.lock_file)
        if not lock.acquire(wait=False):
            got = "one that another process writes to"
            raise UsageError(problem(f"run folder {self.path}", expected="a folder that is not in use", got=got))
        return lock

    def entries(self) -> list[Path]:
        """List the content, except the lock and temporary files of killed processes."""
        ours = (entry for entry in self.path.iterdir() if not TEMPORARY.fullmatch(entry.name))
        return [entry for entry in ours if entry != self.lock_file]

    def clear(self) -> None:
        """Remove everything. Interrupted, the folder still holds a run, but never one that looks finished."""
        order = {self.summary_file: 0, self.config_file: 2}
        for entry in sorted(self.entries(), key=lambda entry: order.get(entry, 1)):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def remove_temporary_files(self) -> None:
        """Remove incomplete files of a process that was killed."""
        for folder in (self.path, self.checkpoints_folder, self.statistics_store):
            for entry in folder.iterdir() if kind_of(folder) == FOLDER else ():
                if TEMPORARY.fullmatch(entry.name):
                    shutil.rmtree(entry) if kind_of(entry) == FOLDER else entry.unlink()
        if kind_of(self.statistics_store) == FOLDER:
            for parent, _, names in os.walk(self.statistics_store):
                for name in names:
                    if name.endswith(".partial"):
                        Path(parent, name).unlink()


class FinishedRun(RunFolder):
    """A run folder with a finished run.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    summary : dict
    config : TrainingConfig

    Raises
    ------
    UsageError
        If the folder holds no finished run, or its summary or settings are damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.summary = self.read_summary()
        self.config = self.read_config()

    def chosen_network_file(self, best: bool) -> Path:
        """Locate the network after the last epoch, or, if `best`, after the best one.

        Raises
        ------
        UsageError
            If the network after the best epoch is missing.
        """
        if not best or self.summary["best_epoch"] == self.summary["epochs"]:
            return self.network_file
        if kind_of(self.best_network_file) is None:
            what = f"network of the best epoch, {self.best_network_file}"
            raise UsageError(problem(what, expected="a file", got="none", remedy="Use the last one instead."))
        return self.best_network_file

    def describe_network(self, file: Path) -> tuple[str, int]:
        """Name one of the run's networks, and tell after which epoch it was written."""
        if file == self.network_file:
            return str(self.path), self.summary["epochs"]
        best: int = self.summary["best_epoch"]
        return f"{self.path} (epoch {best})", best


def run_folders(parent: Path) -> list[RunFolder]:
    """List the run folders in a folder, finished or not, by name."""
    return [RunFolder(config.parent) for config in sorted(parent.glob(f"*/{CONFIG_FILE}"))]


def find_finished_runs(parent: Path = RUNS) -> list[FinishedRun]:
    """List the finished runs in a folder, the newest first; damaged ones are reported and skipped."""
    runs = []
    for folder in run_folders(parent):
        if folder.is_finished:
            try:
                runs.append(FinishedRun(folder.path))
            except UsageError as error:
                log.warning("skipping the run %s: %s", folder.path, error.problems[0])
    return sorted(runs, key=lambda run: float(run.summary["finished_at"]), reverse=True)


def newest_finished_run(
    kind: type[TrainingConfig], dataset: str | None = None, parent: Path = RUNS
) -> FinishedRun | None:
    """Find the newest finished run of a kind, for one dataset or for any; ``None`` if there is none."""
    runs = (run for run in find_finished_runs(parent) if isinstance(run.config, kind))
    return next((run for run in runs if dataset is None or same_dataset(dataset, run.config.dataset)), None)
