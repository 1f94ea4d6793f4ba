"""The run folder: what a training leaves behind, each file whole or not there.

======================  =====================================================================
``config.toml``         every setting, as a file that ``--config`` reads
``environment.json``    versions, processor, device, precision, commit, command
``metrics.jsonl``       a line per epoch
``model.safetensors``   the network after the last whole epoch
``statistics.zarr``     per-sample statistics of a student, see `kdcache.store.statistics`
``answers.zarr``        a teacher's answers, see `kdcache.store.answers`
``curves.png``          loss and accuracy over the epochs
``summary.json``        the outcome; a run folder without it holds an unfinished run
======================  =====================================================================
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import kdcache
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.errors import KdcacheError, UsageError, fault
from kdcache.files import write_json, write_text
from kdcache.models import Network
from kdcache.models.checkpoint import save

__all__ = ["RUNS", "EpochMetrics", "FinishedRun", "Run", "check_folder", "environment", "finished_runs", "newest"]

RUNS = Path("runs")
"""Where runs go without ``--out``, under the current folder."""

KINDS: dict[str, type[TrainingConfig]] = {kind.table: kind for kind in (TeacherConfig, StudentConfig)}


@dataclass(frozen=True)
class EpochMetrics:
    """A line of ``metrics.jsonl``.

    Attributes
    ----------
    epoch : int
        Counted from 1; 0 for a network that was evaluated as it came.
    test_loss : float
        Mean cross-entropy on the test set, in nats.
    test_top1, test_top5 : float
        Accuracy on the test set, in percent.
    seconds : float
        The whole epoch.
    lr : float or None
    train_loss : float or None
        Mean of the training loss over the steps.
    images_per_second : float or None
        Training samples a second, evaluation aside.
    kl_ratio : float or None
        Mean over the steps of r (Equation 3); ``None`` where nothing is picked, or d of all candidates is not known.
    label_disagreement : float or None
        Share of the mixed views whose label the teacher disputes.
    loss_parts : dict of str to float
        Mean over the steps of each loss of a sum, with its weight.
    questions_asked, questions_answered : int
        Views the teacher was asked about, and views answered from the store.
    """

    epoch: int
    test_loss: float
    test_top1: float
    test_top5: float
    seconds: float
    lr: float | None = None
    train_loss: float | None = None
    images_per_second: float | None = None
    kl_ratio: float | None = None
    label_disagreement: float | None = None
    loss_parts: dict[str, float] = field(default_factory=dict)
    questions_asked: int = 0
    questions_answered: int = 0


class Run:
    """A run folder that is being written.

    Parameters
    ----------
    config : TrainingConfig
        ``config.out`` names the folder; without it a new one under `RUNS` is made.
    compute : Compute
        Recorded in the environment.
    class_names : tuple of str
        Kept with the network, so that it can name what it sees.

    Raises
    ------
    UsageError
        Where the folder holds something already, unless that is a run and ``config.overwrite`` is set.
    """

    def __init__(self, config: TrainingConfig, compute: Compute, class_names: tuple[str, ...] = ()) -> None:
        self.config, self.class_names = config, class_names
        self.path = _new_folder(config)
        self.metrics: list[EpochMetrics] = []
        self.extra_questions = 0
        self._started = time.perf_counter()
        write_text(self.path / "config.toml", config.to_toml())
        write_json(self.path / "environment.json", environment(compute))

    def end_epoch(self, metrics: EpochMetrics, network: Network) -> None:
        """Write the network and the metrics of an epoch that ended well.

        Raises
        ------
        KdcacheError
            Where the network does not give finite answers any more, as after a last step that diverged; what the epoch
            before left is kept.
        """
        if not math.isfinite(metrics.test_loss):
            raise KdcacheError(f"the test loss became {metrics.test_loss} after the last step of epoch {metrics.epoch}")
        facts = {"epoch": metrics.epoch, "top1": metrics.test_top1, "class_names": self.class_names}
        save(network, self.path / "model.safetensors", **facts)
        self.metrics.append(metrics)
        write_text(
            self.path / "metrics.jsonl",
            "".join(json.dumps(asdict(line), allow_nan=False) + "\n" for line in self.metrics),
        )

    def finish(self, questions_asked: int = 0, questions_answered: int = 0) -> "FinishedRun":
        """Write the summary, which makes the run a finished one.

        Parameters
        ----------
        questions_asked, questions_answered : int
            Questions outside the epochs, as by filling a store.
        """
        best = max(self.metrics, key=lambda line: line.test_top1)  # the first of equals
        summary = {
            "kind": self.config.table,
            "dataset": self.config.dataset,
            "model": self.config.model,
            "epochs": self.metrics[-1].epoch,
            "last_top1": self.metrics[-1].test_top1,
            "last_top5": self.metrics[-1].test_top5,
            "best_top1": best.test_top1,
            "best_epoch": best.epoch,
            "questions_asked": questions_asked + sum(line.questions_asked for line in self.metrics),
            "questions_answered": questions_answered + sum(line.questions_answered for line in self.metrics),
            "seconds": time.perf_counter() - self._started,
            "finished_at": time.time(),
        }
        write_json(self.path / "summary.json", summary)
        return FinishedRun(self.path)


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
        except FileNotFoundError:
            raise UsageError(fault("run folder", allowed="a folder with a finished run", given=path)) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(fault(f"{path / 'summary.json'}: not a summary of a run", given=repr(error))) from None
        self.config = kind.load(path / "config.toml")

    def metrics(self) -> list[EpochMetrics]:
        """Read the metrics of every epoch."""
        text = (self.path / "metrics.jsonl").read_text("utf-8")
        return [EpochMetrics(**json.loads(line)) for line in text.splitlines()]


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


def check_folder(config: TrainingConfig) -> None:
    """Refuse a run folder that holds something already, unless that is a run and ``config.overwrite`` is set."""
    path = config.out
    store = config.store if isinstance(config, StudentConfig) else None
    if path is not None and store is not None and Path(store).resolve().is_relative_to(path.resolve()):
        raise UsageError(fault(f"--store {store}", allowed="a place outside the run folder", given=f"--out {path}"))
    if path is None or not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / "config.toml").is_file():
        raise UsageError(fault(f"--out {path}", allowed="a new or empty folder, or a run", given="other files"))
    if not config.overwrite:
        state = "a finished" if (path / "summary.json").exists() else "an unfinished"
        raise UsageError(fault(f"--out {path} holds {state} run", allowed="another folder, or --overwrite"))


def _new_folder(config: TrainingConfig) -> Path:
    check_folder(config)
    path = config.out
    if path is None:
        return _numbered_folder(config)
    if path.is_dir() and any(path.iterdir()):
        # The summary goes first: half removed, the folder must not look like a finished run.
        (path / "summary.json").unlink(missing_ok=True)
        shutil.rmtree(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(fault(f"--out {path}", allowed="a folder that can be made", given=error.strerror)) from None
    return path


def _numbered_folder(config: TrainingConfig) -> Path:
    """Make ``runs/<kind>-<dataset>-<model>[-<loss>-<aug>]-seed<seed>``, numbered from the second of a name on."""
    words = [config.table, config.dataset.replace(":", "-").replace(os.sep, "-"), config.model]
    if isinstance(config, StudentConfig):
        words += [config.loss.replace(":", "-"), config.aug] + ([config.pick] if config.pick else [])
    name = "-".join([*words, f"seed{config.seed}"])
    number = 1
    while True:
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path
