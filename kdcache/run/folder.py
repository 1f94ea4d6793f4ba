"""The run folder: what a training leaves behind, each file whole or not there.

======================  =====================================================================
``config.toml``         every setting, as a file that ``--config`` reads
``environment.json``    versions, processor, device, precision, commit, command
``metrics.jsonl``       a line per epoch
``model.safetensors``   the network after the last whole epoch
``statistics.zarr``     per-sample statistics of a student, see `kdcache.run.statistics`
``answers.zarr``        a teacher's answers, see `kdcache.answers.store`
``curves.png``          loss and accuracy over the epochs
``checkpoints``         where an unfinished run can be gone on with, see `kdcache.run.checkpoint`
``summary.json``        the outcome; a run folder without it holds an unfinished run
======================  =====================================================================
"""

import json
import platform
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import kdcache
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.errors import KdcacheError, UsageError, first_line, problem

__all__ = [
    "KINDS",
    "RUNS",
    "EpochMetrics",
    "FinishedRun",
    "environment",
    "finished_runs",
    "newest",
    "read_environment",
    "read_metrics",
]

RUNS = Path("runs")
"""Where runs go without ``--out``, under the current folder."""

SUMMARY = (
    *("epochs", "last_top1", "last_top5", "best_top1", "best_epoch"),
    *("teacher_forwards", "cache_hits", "seconds", "finished_at"),
)
"""Numbers that every summary has."""

KINDS: dict[str, type[TrainingConfig]] = {kind.table: kind for kind in (TeacherConfig, StudentConfig)}
"""The config of each kind of run."""


@dataclass(frozen=True)
class EpochMetrics:
    """A line of ``metrics.jsonl``.

    Attributes
    ----------
    epoch : int
        Counted from 1; 0 for a network that was evaluated as it came.
    seconds : float
        The whole epoch.
    test_loss : float or None
        Mean cross-entropy on the test set, in nats; ``None`` of an epoch after which nothing was evaluated.
    test_top1, test_top5 : float or None
        Accuracy on the test set, in percent.
    val_loss, val_top1 : float or None
        Likewise on what was kept from training for validation.
    lr : float or None
    train_loss : float or None
        Mean of the training loss over the steps.
    images_per_second : float or None
        Training samples a second, evaluation aside.
    data_share, teacher_share : float or None
        Share of that time in which the step waited for views, and for the teacher's answers; on a GPU the host's time.
    kl_ratio : float or None
        Mean over the steps of r (Equation 3); ``None`` where nothing is picked, or d of all candidates is not known.
    label_disagreement : float or None
        Share of the mixed views whose label the teacher disputes.
    loss_parts : dict of str to float
        Mean over the steps of each loss of a sum, with its weight.
    teacher_forwards, cache_hits : int
        Views the teacher was asked about, and views answered from the store.
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


class FinishedRun:
    """A run folder that is read.

    Parameters
    ----------
    path : Path

    Raises
    ------
    UsageError
        Where the folder holds no finished run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.summary: dict[str, Any] = json.loads((path / "summary.json").read_text("utf-8"))
            kind = KINDS[self.summary["kind"]]
            if odd := [name for name in SUMMARY if type(self.summary[name]) not in (int, float)]:
                raise TypeError(f"{', '.join(odd)} should be numbers")
        except FileNotFoundError:
            raise UsageError(problem("run folder", expected="a folder with a finished run", got=path)) from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(problem(f"{path / 'summary.json'}: not a summary of a run", got=repr(error))) from None
        self.config = kind.load(path / "config.toml")

    def metrics(self) -> list[EpochMetrics]:
        """Read the metrics of every epoch; a `UsageError` where they are damaged."""
        return read_metrics(self.path)


def read_metrics(run: Path) -> list[EpochMetrics]:
    """Read the metrics of every epoch that ended, of a run folder that need not be finished.

    Raises
    ------
    UsageError
        Where they are missing or damaged.
    """
    path = run / "metrics.jsonl"
    try:
        return [EpochMetrics(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(problem(f"{path}: not the metrics of a run", got=first_line(error))) from None


def finished_runs(folder: Path = RUNS) -> list[FinishedRun]:
    """Find the finished runs in a folder, the newest first; what cannot be read as one is passed over."""
    runs = []
    for summary in folder.glob("*/summary.json"):
        with suppress(UsageError):
            runs.append(FinishedRun(summary.parent))
    return sorted(runs, key=lambda run: float(run.summary["finished_at"]), reverse=True)


def newest(kind: type[TrainingConfig], dataset: str | None = None, folder: Path = RUNS) -> FinishedRun | None:
    """Find the newest finished run of a kind, of one dataset or of any."""
    fitting = (
        run for run in finished_runs(folder) if isinstance(run.config, kind) and dataset in (None, run.config.dataset)
    )
    return next(fitting, None)


def environment(compute: Compute) -> dict[str, Any]:
    """Describe what a run depends on besides its settings."""
    packages = ("torch", "torchvision", "numpy", "zarr", "h5py", "safetensors")
    device = (
        torch.cuda.get_device_name() if compute.device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "kdcache": kdcache.__version__,
        "commit": _commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "platform": platform.platform(),
        "device": f"{compute.device.type} ({device})",
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
        "started_at": time.time(),
    }


def _commit() -> str | None:
    """Commit of the source tree that the code runs from, if it runs from one."""
    source = Path(kdcache.__file__).parents[1]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def read_environment(path: Path) -> dict[str, Any]:
    """Read what a run depended on besides its settings; nothing of one that was killed before it wrote that."""
    try:
        found = json.loads((path / "environment.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise KdcacheError(problem(f"{path / 'environment.json'} cannot be read", got=first_line(error))) from None
    return found if isinstance(found, dict) else {}
