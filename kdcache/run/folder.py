"""The run folder: what a training writes. No other module knows the names of these files.

===========================  ==============================================================
``config.toml``              every setting, as a file that ``--config`` reads
``environment.json``         versions, processor, device, precision, commit, command
``metrics.jsonl``            one line per epoch
``model.safetensors``        the network after the last complete epoch
``statistics.zarr``          per-sample statistics of a student, see `kdcache.run.statistics`
``answers.zarr``             a teacher's logits, see `kdcache.answers.store`
``curves.png``               loss and accuracy over the epochs
``checkpoints``              where an unfinished run resumes, see `kdcache.run.checkpoint`
``teacher_forwards.count``   the teacher forwards of an unfinished run
``run.lock``                 held by the process that writes the folder
``summary.json``             the result; without it the run is unfinished
===========================  ==============================================================

Each file is written atomically: it is complete or absent.
"""

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcache.cards import same_dataset
from kdcache.config import CONFIG_FILE, StudentConfig, TeacherConfig, TrainingConfig
from kdcache.errors import UsageError, first_line, problem
from kdcache.locks import FileLock
from kdcache.presets import read_toml

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

SUMMARY_NUMBERS = (
    *("epochs", "last_top1", "last_top5", "best_top1", "best_epoch"),
    *("teacher_forwards", "cache_hits", "seconds", "finished_at"),
)
"""Numbers that every summary has."""

CONFIGS: dict[str, type[TrainingConfig]] = {config.table: config for config in (TeacherConfig, StudentConfig)}
"""The config of each kind of run, by its table in ``config.toml``."""


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
    images_per_second : float or None
        Training samples per second, without evaluation.
    data_share, teacher_share : float or None
        Share of the training time spent waiting for views, and for the teacher's logits; on a GPU, host time.
    kl_ratio : float or None
        Mean over the steps of r, the mean d of the picks over the mean d of all candidates (Equation 3); ``None``
        without picking, or where d of some candidate is unknown.
    label_disagreement : float or None
        Share of the mixed views whose label the teacher disagrees with.
    loss_parts : dict of str to float
        Mean over the steps of each loss of a sum, times its weight.
    teacher_forwards, cache_hits : int
        Views that went through the teacher, and views whose logits came from the cache.
    """

    epoch: int
    seconds: float
    test_loss: float | None = None
    test_top1: float | None = None
    test_top5: float | None = None
    val_loss: float | None = None
    val_top1: float | None = None
    lr: float | None = None
    train_loss: float | None = None
    images_per_second: float | None = None
    data_share: float | None = None
    teacher_share: float | None = None
    kl_ratio: float | None = None
    label_disagreement: float | None = None
    loss_parts: dict[str, float] = field(default_factory=dict)
    teacher_forwards: int = 0
    cache_hits: int = 0


class RunFolder:
    """Paths, state and content of a run folder, which may be unfinished or not exist yet.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    config_file, environment_file, metrics_file, network_file, curves_file, summary_file, count_file, lock_file : Path
    statistics_store, checkpoints_folder : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / CONFIG_FILE
        self.environment_file = path / "environment.json"
        self.metrics_file = path / "metrics.jsonl"
        self.network_file = path / "model.safetensors"
        self.statistics_store = path / "statistics.zarr"
        self.curves_file = path / "curves.png"
        self.checkpoints_folder = path / "checkpoints"
        self.count_file = path / "teacher_forwards.count"
        self.lock_file = path / "run.lock"
        self.summary_file = path / "summary.json"

    def answers_store(self, format: str | None = None) -> Path:
        """Locate the store of a teacher's logits in a format; by default in the default format."""
        return self.path / ("answers.zarr" if format is None else f"answers-{format}.zarr")

    @property
    def holds_run(self) -> bool:
        """Whether a training has begun here."""
        return self.config_file.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished."""
        return self.summary_file.is_file()

    def read_config(self) -> TrainingConfig:
        """Read the settings; their type tells the kind of the run.

        Raises
        ------
        UsageError
            If the folder holds no run, or the settings are invalid.
        """
        if not self.holds_run:
            found = f"a folder without {CONFIG_FILE}" if self.path.is_dir() else "nothing"
            raise UsageError(problem(f"run folder {self.path}", expected="a folder that a training wrote", got=found))
        document = read_toml(self.config_file, str(self.config_file), "preset")
        kind = next((kind for table, kind in CONFIGS.items() if table in document), None)
        if kind is None:
            tables = " or ".join(f"[{table}]" for table in CONFIGS)
            raise UsageError(problem(f"{self.config_file}: table", expected=tables, got="neither"))
        return kind.load(self.config_file)

    def read_environment(self) -> dict[str, Any]:
        """Read the environment; empty for a run that was killed before it wrote the file.

        Raises
        ------
        UsageError
            If the file is damaged.
        """
        return _read_json(self.environment_file) if self.environment_file.exists() else {}

    def read_metrics(self) -> list[EpochMetrics]:
        """Read the metrics of the completed epochs.

        Raises
        ------
        UsageError
            If the file is missing or damaged.
        """
        try:
            lines = self.metrics_file.read_text("utf-8").splitlines()
            return [EpochMetrics(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UsageError(problem(f"could not read {self.metrics_file}: {first_line(error)}")) from None

    def read_summary(self) -> dict[str, Any]:
        """Read the summary.

        Raises
        ------
        UsageError
            If the run is unfinished, or the file is damaged.
        """
        if not self.is_finished:
            state = "an unfinished run" if self.holds_run else "a folder without a run" if self.path.is_dir() else None
            remedy = "Finish it with --resume." if self.holds_run else None
            line = problem(f"run folder {self.path}", expected="a finished run", got=state or "nothing", remedy=remedy)
            raise UsageError(line)
        summary = _read_json(self.summary_file)
        if wrong := [name for name in SUMMARY_NUMBERS if type(summary.get(name)) not in (int, float)]:
            raise UsageError(problem(f"{self.summary_file}: {', '.join(wrong)}", expected="numbers"))
        return summary

    def in_use(self) -> bool:
        """Tell whether another process writes here; not for the process that holds the lock, which would release it."""
        if not self.path.is_dir():
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
        ignored = re.compile(rf"{re.escape(self.lock_file.name)}|\..*\.tmp")
        return [entry for entry in self.path.iterdir() if not ignored.fullmatch(entry.name)]

    def clear(self) -> None:
        """Remove everything. Interrupted, the folder still holds a run, but never one that looks finished."""
        order = {self.summary_file: 0, self.config_file: 2}
        for entry in sorted(self.entries(), key=lambda entry: order.get(entry, 1)):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def remove_temporary_files(self) -> None:
        """Remove incomplete files of a process that was killed."""
        for folder in (self.path, self.checkpoints_folder):
            for temporary in folder.glob(".*.tmp"):
                shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        for partial in self.statistics_store.rglob("*.partial"):
            partial.unlink()


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(problem(f"could not read {path}: {first_line(error)}")) from None
    if not isinstance(document, dict):
        raise UsageError(problem(str(path), expected="a JSON object", got=f"a {type(document).__name__}"))
    return document


def run_folders(parent: Path) -> list[RunFolder]:
    """List the run folders in a folder, finished or not, by name."""
    return [RunFolder(config.parent) for config in sorted(parent.glob(f"*/{CONFIG_FILE}"))]


def find_finished_runs(parent: Path = RUNS) -> list[FinishedRun]:
    """List the finished runs in a folder, the newest first; damaged ones are skipped."""
    runs = []
    for folder in run_folders(parent):
        with suppress(UsageError):
            runs.append(FinishedRun(folder.path))
    return sorted(runs, key=lambda run: float(run.summary["finished_at"]), reverse=True)


def newest_finished_run(
    kind: type[TrainingConfig], dataset: str | None = None, parent: Path = RUNS
) -> FinishedRun | None:
    """Find the newest finished run of a kind, for one dataset or for any; ``None`` if there is none."""
    runs = (run for run in find_finished_runs(parent) if isinstance(run.config, kind))
    return next((run for run in runs if dataset is None or same_dataset(dataset, run.config.dataset)), None)
