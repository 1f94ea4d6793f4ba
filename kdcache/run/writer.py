"""A training that writes its run folder: begun, gone on with, and brought to its end; see `kdcache.run.folder`."""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from kdcache import distributed
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.config import TrainingConfig
from kdcache.datasets import Dataset
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.files import write_json, write_text
from kdcache.models import Network
from kdcache.models.checkpoint import save
from kdcache.run.checkpoint import Checkpoints, Progress
from kdcache.run.folder import EpochMetrics, FinishedRun, environment, read_environment
from kdcache.run.output import clear_litter, hold, new_folder

__all__ = ["Run"]

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
    teacher : Teacher, optional
        Which has to be the same one, and as precise, when the run is gone on with.

    Raises
    ------
    UsageError
        Where the folder holds something already, unless that is a run and ``config.overwrite`` is set; or where a run
        that is gone on with had other images or another teacher.
    """

    def __init__(
        self,
        config: TrainingConfig,
        compute: Compute,
        data: Dataset,
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.data = config, data
        self.metrics: list[EpochMetrics] = []
        self.resumed: list[dict[str, int]] = []
        self._before, self._started = 0.0, time.perf_counter()
        self._checkpoints: Checkpoints | None = None
        self._lost = 0
        self._held = ExitStack()
        self.path = distributed.broadcast(self._open(compute, teacher) if distributed.is_main() else Path())

    def _open(self, compute: Compute, teacher: Teacher | None) -> Path:
        origin = {"dataset": self.data.train.fingerprint}
        if teacher is not None:
            origin |= {"teacher": teacher.fingerprint, "teacher precision": teacher.compute.precision}
        if self.config.resume:
            assert self.config.out is not None
            path, self._held = self.config.out, hold(self.config.out)
            _check_unfinished(path, origin)
            clear_litter(path)
        else:
            path, self._held = new_folder(self.config)
            write_text(path / "config.toml", self.config.to_toml())
        if not (path / "environment.json").exists():
            write_json(path / "environment.json", {**environment(compute), "origin": origin})
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
            raise UsageError(problem("--epochs", expected=f"at least the {done} that are done", got=self.config.epochs))
        for line in self.metrics:
            lr = self.config.learning_rate(line.epoch - 1)
            if line.lr != lr:
                now = f"a rate of {lr:g} in epoch {line.epoch}, which had {line.lr:g}"
                raise UsageError(problem("--epochs", expected="those of the run: the rate falls by them", got=now))
        at = (progress.epoch, progress.step)
        if distributed.any_rank(at != distributed.broadcast(at)):
            raise KdcacheError(f"the processes read different checkpoints: each must see the run folder {self.path}")
        self.resumed, self._before = progress.resumed, progress.seconds
        if self.config.resume and distributed.is_main():
            write_text(self.path / "config.toml", self.config.to_toml())  # the epochs may be others
            self.resumed.append({"epoch": progress.epoch + 1, "step": progress.step})
            self._lost = max(0, _read_count(self.path / COUNT) - self._asked(sum(progress.questions[:1])))
        return progress

    def _asked(self, in_epoch: int) -> int:
        return in_epoch + sum(line.teacher_forwards for line in self.metrics)

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

    def due(self, teacher_forwards: int = 0) -> bool:
        """Tell whether it is time for a checkpoint; note how many questions were asked in the epoch so far."""
        assert self._checkpoints is not None
        if teacher_forwards and distributed.is_main():
            _write_count(self.path / COUNT, self._lost + self._asked(teacher_forwards))
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
        if metrics.test_loss is None:
            if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
                raise KdcacheError(f"weights are not finite any more after the last step of epoch {metrics.epoch}")
        elif not math.isfinite(metrics.test_loss):
            raise KdcacheError(f"the test loss became {metrics.test_loss} after the last step of epoch {metrics.epoch}")
        self.metrics.append(metrics)
        if not distributed.is_main():
            return
        facts = {"class_names": self.data.class_names, "shorter_side": self.data.card.shorter_side}
        save(network, self.path / "model.safetensors", epoch=metrics.epoch, top1=metrics.test_top1, **facts)
        write_text(
            self.path / "metrics.jsonl",
            "".join(json.dumps(asdict(line), allow_nan=False) + "\n" for line in self.metrics),
        )

    def finish(self, teacher_forwards: int = 0, cache_hits: int = 0) -> "FinishedRun":
        """Write the summary, which makes the run a finished one.

        Parameters
        ----------
        teacher_forwards, cache_hits : int
            TeacherCounts outside the epochs, as by filling a store.
        """
        validated = self.metrics[-1].val_top1 is not None
        judge = "val_top1" if validated else "test_top1"
        evaluated = [line for line in self.metrics if line.test_top1 is not None]
        best = max(evaluated, key=lambda line: float(getattr(line, judge)))  # the first of equals
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
            "teacher_forwards": teacher_forwards + sum(line.teacher_forwards for line in self.metrics),
            "cache_hits": cache_hits + sum(line.cache_hits for line in self.metrics),
            "seconds": self._seconds(),
            "teacher_forwards_lost": self._lost,
            "resumed": self.resumed,
            "finished_at": time.time(),
        }
        if distributed.is_main():
            write_json(self.path / "summary.json", summary)
            if self._checkpoints is not None:
                self._checkpoints.remove()
            (self.path / COUNT).unlink(missing_ok=True)
        self._held.close()
        distributed.barrier()
        return FinishedRun(self.path)


def _check_unfinished(path: Path, origin: Mapping[str, str]) -> None:
    """Refuse to go on with a run that is finished, or had other images or another teacher."""
    if (path / "summary.json").exists():
        raise UsageError(problem(f"run {path}", expected="an unfinished run", got="one that was just finished"))
    then = read_environment(path).get("origin", origin)  # a run that was killed at once has none
    if wrong := [name for name in origin if then.get(name) != origin[name]]:
        raise UsageError(*(problem(f"run {path}: {name}", expected=then.get(name), got=origin[name]) for name in wrong))


def _write_count(path: Path, count: int) -> None:
    """Write a number over another one, of as many digits, so that a kill leaves the one or the other."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, f"{count:020}".encode(), 0)
    finally:
        os.close(descriptor)


def _read_count(path: Path) -> int:
    try:
        return int(path.read_text("utf-8"))
    except (OSError, ValueError):
        return 0
