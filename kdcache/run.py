"""A training that writes its run folder: begun, gone on with, and brought to its end; see `kdcache.record`."""

import json
import math
import os
import shutil
import time
import tomllib
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from kdcache import ranks
from kdcache.checkpoints import Checkpoints, Progress
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.datasets import Dataset
from kdcache.errors import KdcacheError, UsageError, fault, first_line
from kdcache.files import write_json, write_text
from kdcache.models import Network
from kdcache.models.checkpoint import save
from kdcache.record import KINDS, RUNS, EpochMetrics, FinishedRun, environment, read_environment
from kdcache.store.place import Place

__all__ = ["Run", "check_folder", "compute_of", "settle"]

COUNT = "questions.count"
"""File that says how many questions an unfinished run has asked."""


class Run:
    """A run folder that is being written.

    Parameters
    ----------
    config : TrainingConfig
        ``config.out`` names the folder; without it a new one under `RUNS` is made.
    compute : Compute
        Recorded in the environment.
    data : Dataset
        Its class names, and how a picture becomes a clean view, are kept with the network, so that it can name what it
        sees.
    teacher : Compute, optional
        How precisely the teacher answers.

    Raises
    ------
    UsageError
        Where the folder holds something already, unless that is a run and ``config.overwrite`` is set.
    """

    def __init__(
        self,
        config: TrainingConfig,
        compute: Compute,
        data: Dataset,
        teacher: Compute | None = None,
    ) -> None:
        self.config, self.data = config, data
        self.metrics: list[EpochMetrics] = []
        self.resumed: list[dict[str, int]] = []
        self._before, self._started = 0.0, time.perf_counter()
        self._checkpoints: Checkpoints | None = None
        self.path = ranks.from_first(self._open(compute, teacher) if ranks.first() else Path())

    def _open(self, compute: Compute, teacher: Compute | None) -> Path:
        path = self.config.out if self.config.resume else _new_folder(self.config)
        assert path is not None
        _hold(path)
        found = {**environment(compute), "precision_of_teacher": teacher.precision if teacher else None}
        if self.config.resume:
            then, now = (of.get("precision_of_teacher") for of in (read_environment(path), found))
            if then != now:  # its store is gone, or another one
                raise UsageError(fault(f"run {path}: precision of the teacher's answers", allowed=then, given=now))
        else:
            write_json(path / "environment.json", found)
        write_text(path / "config.toml", self.config.to_toml())
        return path

    def restore(self, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> Progress:
        """Begin, or go back to where an unfinished run came to.

        Parameters
        ----------
        modules : mapping of str to Module
            All that the training changes, by name.
        optimiser : Optimizer
            Of their parameters.

        Raises
        ------
        UsageError
            Where the run has other epochs, and those that are done had other rates than they would have now.
        KdcacheError
            Where its checkpoints fit something else.
        """
        self._checkpoints = Checkpoints(self.path / "checkpoints", self.config.checkpoint_minutes, modules, optimiser)
        progress = (self._checkpoints.latest() if self.config.resume else None) or Progress()
        self.metrics = [EpochMetrics(**line) for line in progress.metrics]
        done = len(self.metrics)
        if self.config.epochs < done:
            raise UsageError(fault("--epochs", allowed=f"at least the {done} that are done", given=self.config.epochs))
        for line in self.metrics:
            if line.lr != self.config.rate(line.epoch - 1):
                now = f"a rate of {self.config.rate(line.epoch - 1):g} in epoch {line.epoch}, which had {line.lr:g}"
                raise UsageError(fault("--epochs", allowed="those of the run: the rate falls by them", given=now))
        self.resumed, self._before = progress.resumed, progress.seconds
        if self.config.resume:
            counted = sum(progress.questions[:1]) + sum(line.questions_asked for line in self.metrics)
            lost = max(0, _read_count(self.path / COUNT) - counted)
            _write_count(self.path / COUNT, counted)
            self.resumed.append({"epoch": progress.epoch + 1, "step": progress.step, "questions_lost": lost})
        return progress

    def keep(self, progress: Progress) -> None:
        """Write a checkpoint; where the work is to stop, stop it.

        Parameters
        ----------
        progress : Progress
            Of the epoch; what the run knows itself is filled in.
        """
        assert self._checkpoints is not None
        progress.metrics = [asdict(line) for line in self.metrics]
        progress.resumed, progress.seconds = self.resumed, self._seconds()
        self._checkpoints.keep(progress)

    def due(self, questions_asked: int = 0) -> bool:
        """Tell whether it is time for a checkpoint; note how many questions this process has asked in the epoch."""
        assert self._checkpoints is not None
        asked = questions_asked + sum(line.questions_asked for line in self.metrics)
        if asked and ranks.first():
            _write_count(self.path / COUNT, asked)
        return self._checkpoints.due()

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

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
        self.metrics.append(metrics)
        if not ranks.first():
            return
        facts = {"class_names": self.data.class_names, "shorter_side": self.data.card.shorter_side}
        save(network, self.path / "model.safetensors", epoch=metrics.epoch, top1=metrics.test_top1, **facts)
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
        validated = self.metrics[-1].val_top1 is not None
        judge = "val_top1" if validated else "test_top1"
        best = max(self.metrics, key=lambda line: float(getattr(line, judge)))  # the first of equals
        summary = {
            "kind": self.config.table,
            "dataset": self.config.dataset,
            "model": self.config.model,
            "epochs": self.metrics[-1].epoch,
            "last_top1": self.metrics[-1].test_top1,
            "last_top5": self.metrics[-1].test_top5,
            "best_top1": best.test_top1,
            "best_epoch": best.epoch,
            "best_on": "validation" if validated else "test",
            "skipped_images": self.data.skipped,
            "questions_asked": questions_asked + sum(line.questions_asked for line in self.metrics),
            "questions_answered": questions_answered + sum(line.questions_answered for line in self.metrics),
            "seconds": self._seconds(),
            "resumed": self.resumed,
            "finished_at": time.time(),
        }
        if ranks.first():
            write_json(self.path / "summary.json", summary)
            if self._checkpoints is not None:
                self._checkpoints.remove()
            (self.path / COUNT).unlink(missing_ok=True)
        ranks.wait()
        return FinishedRun(self.path)


Config = TypeVar("Config", bound=TrainingConfig)


def settle(config: Config) -> tuple[Config, FinishedRun | None]:
    """Settle which folder a training writes, before anything is read or written; alike in all its processes.

    Returns
    -------
    config : TrainingConfig
        With ``resume`` only where there is a run to go on with, whose folder is ``out`` then.
    finished : FinishedRun or None
        The run, where it needs nothing any more.

    Raises
    ------
    UsageError
        Where the folder holds something already, unless that is a run and ``overwrite`` is set; or a run of other
        settings, where it is to be gone on with.
    """
    return ranks.from_first(_settled(config) if ranks.first() else (config, None))


def _settled(config: Config) -> tuple[Config, FinishedRun | None]:
    path = config.out or _unfinished(config) if config.resume else None
    if path is None or not (path / "config.toml").is_file():
        check_folder(config)
        return config.model_copy(update={"resume": False}), None
    recorded = _recorded(path, type(config))
    if faults := config.differences(recorded):
        raise UsageError(*(f"{path} cannot be gone on with: {line}" for line in faults))
    kept = {"teacher": recorded.teacher} if isinstance(recorded, StudentConfig) else {}
    finished = (path / "summary.json").is_file()
    if finished and config.epochs != recorded.epochs:
        raise UsageError(fault(f"--epochs: {path} is finished", allowed=recorded.epochs, given=config.epochs))
    return config.model_copy(update={"out": path, **kept}), FinishedRun(path) if finished else None


def compute_of(config: TrainingConfig) -> Compute:
    """Settle where and how precisely to compute; a run that is gone on with keeps its precision."""
    then = read_environment(config.out) if config.resume and config.out else {}
    return Compute.choose(config.device, then.get("precision", config.precision))


def _recorded(path: Path, kind: type[Config]) -> Config:
    settings = path / "config.toml"
    try:
        found = next((table for table in KINDS if table in tomllib.loads(settings.read_text("utf-8"))), None)
    except (OSError, ValueError) as error:
        raise UsageError(fault(f"{settings}: not the settings of a run", given=first_line(error))) from None
    if found != kind.table:
        raise UsageError(fault(f"run {path}", allowed=f"a {kind.table}", given=f"a {found}"))
    return kind.load(settings)


def _unfinished(config: TrainingConfig) -> Path | None:
    """Find the newest run of the same settings that did not come to its end."""
    for settings in sorted(RUNS.glob("*/config.toml"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(UsageError):
            recorded = _recorded(settings.parent, type(config))
            unfinished = not (settings.parent / "summary.json").exists() and recorded.epochs == config.epochs
            if unfinished and not config.differences(recorded):
                return settings.parent
    return None


def _hold(path: Path) -> None:
    """Keep other processes out of a run folder, until this one ends."""
    lock = Place(path / "run").lock(None, wait=False)
    if not lock.__enter__():
        raise UsageError(fault(f"run folder {path}", allowed="a folder that nobody writes to", given="one in use"))
    _held.append(lock)


_held: list[AbstractContextManager[bool]] = []


def _write_count(path: Path, count: int) -> None:
    path.write_text(f"{count:020}", "utf-8")  # of one length, so that a reader finds the old or the new number


def _read_count(path: Path) -> int:
    try:
        return int(path.read_text("utf-8"))
    except (OSError, ValueError):
        return 0


def check_folder(config: TrainingConfig) -> None:
    """Refuse a run folder that holds something already, unless that is a run and ``config.overwrite`` is set."""
    path = config.out
    store = config.store if isinstance(config, StudentConfig) else None
    if path is not None and store is not None and Path(store).resolve().is_relative_to(path.resolve()):
        raise UsageError(fault(f"--store {store}", allowed="a place outside the run folder", given=f"--out {path}"))
    if path is None or not path.is_dir() or not _content(path):
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
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(fault(f"--out {path}", allowed="a folder that can be made", given=error.strerror)) from None
    _hold(path)
    # The summary goes first: half removed, the folder must not look like a finished run.
    (path / "summary.json").unlink(missing_ok=True)
    for entry in _content(path):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return path


def _content(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.name != "run.lock"]


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
