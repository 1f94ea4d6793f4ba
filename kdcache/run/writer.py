"""The writer of a run folder, from the first file to the summary; see `kdcache.run.folder`."""

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from kdcache import checked_files, distributed
from kdcache.compute import Compute
from kdcache.config import TrainingConfig
from kdcache.datasets import Dataset
from kdcache.environment import describe_environment
from kdcache.errors import KdcacheError, UsageError
from kdcache.locks import FileLock
from kdcache.models import Network
from kdcache.models.checkpoint import metadata, save
from kdcache.models.initial import InitialWeights
from kdcache.optimization import Update
from kdcache.run.checkpoint import Checkpoints, TrainingState
from kdcache.run.contents import best_epoch, check_metrics
from kdcache.run.folder import EpochMetrics, FinishedRun, RunFolder
from kdcache.run.forward_count import ForwardCount, read_count
from kdcache.run.resolve import create_run_folder
from kdcache.run.resuming import check_epochs, check_settings, origin_of, resumable_environment

__all__ = ["RunWriter"]

log = logging.getLogger("kdcache")


class RunWriter:
    """Writes a new run folder, or resumes an unfinished one. Of several processes, the main one writes.

    Parameters
    ----------
    config : TrainingConfig
        As `kdcache.run.resolve.resolve_run` returns it.
    compute : Compute
        Recorded in the environment.
    data : Dataset
        Its class names and resizing are stored with the network, which can then classify pictures by itself.
    teacher : mapping of str to str, optional
        What identifies the teacher, see `kdcache.answers.cached_teacher.CachedTeacher.origin`. It must be the same in a
        resumed run.
    init : InitialWeights, optional
        A run that is resumed without a checkpoint must start from the same weights.

    Attributes
    ----------
    folder : RunFolder
    path : Path
        Of the folder.
    metrics : list of EpochMetrics
        Of the completed epochs.

    Raises
    ------
    UsageError
        If the folder may not be overwritten or is in use; or if the run to resume has other images or another teacher.
    """

    def __init__(
        self,
        config: TrainingConfig,
        compute: Compute,
        data: Dataset,
        teacher: Mapping[str, str] | None = None,
        init: InitialWeights | None = None,
    ) -> None:
        self.config, self.compute, self.data = config, compute, data
        self.metrics: list[EpochMetrics] = []
        self._resumed: list[dict[str, int]] = []
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._checkpoints: Checkpoints | None = None
        self._environment: dict[str, Any] = {}
        self._count: ForwardCount | None = None
        self._lock: FileLock | None = None
        try:
            self.path = distributed.broadcast(self._open(compute, teacher, init) if distributed.is_main() else Path())
            data.hash()  # from here on, in every process, an image that changes stops the training
        except BaseException:
            self._release()
            raise
        self.folder = RunFolder(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, UsageError):
            self._remove_untrained()
        self._release()

    def _remove_untrained(self) -> None:
        """Remove a new folder in which nothing was trained: what was refused leaves nothing."""
        has_result = self.metrics or any(self.folder.checkpoints_folder.glob("*"))
        if self._lock is None or self.config.resume or has_result:
            return
        self.folder.clear()
        self.folder.lock_file.unlink()
        with suppress(OSError):  # such as a place where a disk is mounted
            self.path.rmdir()

    def _release(self) -> None:
        if self._count is not None:
            self._count.close()
            self._count = None
        if self._lock is not None:
            self._lock.release()

    def _open(self, compute: Compute, teacher: Mapping[str, str] | None, init: InitialWeights | None) -> Path:
        origin = origin_of(self.config, self.data, teacher, init)
        if self.config.resume:
            assert self.config.out is not None
            folder = RunFolder(self.config.out)
            self._lock = folder.acquire_lock()
            self._environment = resumable_environment(folder, origin)
            folder.remove_temporary_files()
            count = read_count(folder.count_file) if self._environment else 0
        else:
            folder, self._lock = create_run_folder(self.config)
            checked_files.write_toml(folder.config_file, self.config.to_toml())
            count = 0
        self._count = ForwardCount(folder.count_file, count)
        if not self._environment:
            self._environment = {**describe_environment(compute), "origin": origin}
            self._environment |= {"init": init._asdict()} if init else {}
        elif not _holds_environment(folder):
            log.warning("%s is missing or damaged, and is written as in the checkpoint", folder.environment_file)
        checked_files.write_json(folder.environment_file, self._environment)
        return folder.path

    @property
    def facts(self) -> dict[str, Any]:
        """Settings and environment, in which the origin names the teacher and the images; of the main process."""
        return {**_recorded(self.config), "environment": self._environment}

    def restore(self, modules: Mapping[str, nn.Module], update: Update) -> TrainingState:
        """Restore the newest checkpoint of a resumed run; a new run starts from the beginning.

        Torch's generators, from which dropout draws, are restored, or seeded for a new run.

        Parameters
        ----------
        modules : mapping of str to Module
            Everything that is trained, by name.
        update : Update
            Of these modules.

        Raises
        ------
        UsageError
            If another number of epochs would have changed the learning rate of a completed epoch.
        KdcacheError
            If the checkpoint does not fit the modules.
        """
        folder, config = self.folder, self.config
        state = {**modules, **update.modules}
        self._checkpoints = Checkpoints(folder.checkpoints_folder, config.checkpoint_minutes, state, update.optimizer)
        restored = self._checkpoints.restore_latest() if config.resume else None
        if restored is None:
            torch.manual_seed(config.seed)  # torch's own are random, and a checkpoint has those of the run
        progress = restored or TrainingState()
        self.metrics = check_metrics(folder.checkpoints_folder, progress.metrics)
        check_settings(config, progress)
        check_epochs(config, self.metrics)
        position = (progress.epoch, progress.step)
        if distributed.any_rank(position != distributed.broadcast(position)):
            raise KdcacheError(f"the processes read different checkpoints: each must see the run folder {folder.path}")
        self._resumed, self._seconds_before = progress.resumed, progress.seconds
        if config.resume and distributed.is_main():
            checked_files.write_toml(folder.config_file, config.to_toml())  # the number of epochs may have changed
            self._resumed.append({"epoch": progress.epoch + 1, "step": progress.step})
            assert self._count is not None
            self._count.resume(self._forwards_until(sum(progress.teacher_counts[:1])))
            if self.metrics:  # the checkpoint has what these files must hold
                self._write_metrics()
            if self.metrics and not progress.step:
                self._write_network(update.evaluated)
        return progress

    def checkpoint_due(self, teacher_forwards: int = 0) -> bool:
        """Tell whether to save a checkpoint now, and record the teacher forwards of the current epoch."""
        assert self._checkpoints is not None
        if teacher_forwards and distributed.is_main():
            assert self._count is not None
            self._count.write(self._forwards_until(teacher_forwards))
        return self._checkpoints.due()

    def save_checkpoint(self, progress: TrainingState) -> None:
        """Save a checkpoint, and stop if the process was asked to.

        Parameters
        ----------
        progress : Progress
            Of the current epoch; what is known of the run is filled in.
        """
        assert self._checkpoints is not None
        progress.metrics = [vars(line) for line in self.metrics]
        progress.resumed, progress.seconds = self._resumed, self._seconds()
        progress.settings, progress.environment = _recorded(self.config), self._environment
        self._checkpoints.save(progress)

    def end_epoch(self, metrics: EpochMetrics, network: Network) -> None:
        """Write the network and the metrics after an epoch.

        Raises
        ------
        KdcacheError
            If the network diverged in the last step; the files of the previous epoch are kept.
        """
        if metrics.test_loss is None:
            if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
                raise KdcacheError(f"the weights are not finite after the last step of epoch {metrics.epoch}")
        elif not math.isfinite(metrics.test_loss):
            raise KdcacheError(f"the test loss became {metrics.test_loss} after the last step of epoch {metrics.epoch}")
        self.metrics.append(metrics)
        if distributed.is_main():
            self._write_network(network)
            self._write_metrics()

    @property
    def has_lost_patience(self) -> bool:
        """Whether as many evaluations in a row as ``patience`` says were not better than the best."""
        best, patience = best_epoch(self.metrics), self.config.patience
        if best is None or patience is None:
            return False
        return sum(line.test_top1 is not None for line in self.metrics if line.epoch > best.epoch) >= patience

    def _write_network(self, network: Network) -> None:
        last = self.metrics[-1]
        is_best = last.epoch > 0 and best_epoch(self.metrics) is last
        for file in (self.folder.network_file, *([self.folder.best_network_file] if is_best else [])):
            save(network, file, epoch=last.epoch, top1=last.test_top1, class_names=self.data.class_names)

    def _write_metrics(self) -> None:
        checked_files.write_lines(self.folder.metrics_file, map(vars, self.metrics))

    def finish(
        self, teacher_forwards: int = 0, cache_hits: int = 0, loaded: Mapping[str, str] | None = None
    ) -> FinishedRun:
        """Write the summary, which marks the run as finished, and release the folder.

        Parameters
        ----------
        teacher_forwards, cache_hits : int
            Outside of the epochs, as in precomputing a teacher's logits.
        loaded : mapping of str to str, optional
            How the network was loaded, if it was not trained.
        """
        last, best = self.metrics[-1], best_epoch(self.metrics)
        assert best is not None  # the last epoch was evaluated
        summary = {
            "kind": self.config.table,
            "dataset": self.config.dataset,
            "model": self.config.model,
            "epochs": last.epoch,
            "last_top1": last.test_top1,
            "last_top5": last.test_top5,
            "best_top1": best.test_top1,
            "best_epoch": best.epoch,
            "best_on": "test" if last.val_top1 is None else "validation",
            "labelled_images": len(self.data.train) - self.data.num_unlabelled,
            "unlabelled_images": self.data.num_unlabelled,
            "skipped_images": self.data.skipped,
            "teacher_forwards": self._forwards_until(teacher_forwards),
            "cache_hits": cache_hits + sum(line.cache_hits for line in self.metrics),
            "seconds": self._seconds(),
            "teacher_forwards_lost": self._count.lost if self._count else 0,
            "resumed": self._resumed,
            "finished_at": time.time(),
            **({"loaded": dict(loaded)} if loaded else {}),
        }
        if distributed.is_main():
            self._drop_other_best(best.epoch)
            checked_files.write_json(self.folder.summary_file, summary)
            if self._checkpoints is not None:
                self._checkpoints.remove()
            self.folder.count_file.unlink(missing_ok=True)
        self._release()
        distributed.barrier()
        return FinishedRun(self.path)

    def _drop_other_best(self, epoch: int) -> None:
        """Delete a best network of an epoch that the run no longer has, since it was resumed for fewer epochs."""
        file = self.folder.best_network_file
        if file.is_file() and metadata(file)["epoch"] != epoch:
            log.warning("%s was of another epoch, and is deleted: the best network is lost", file)
            file.unlink()

    def _forwards_until(self, teacher_forwards: int) -> int:
        """Add the teacher forwards of the completed epochs to those since."""
        return teacher_forwards + sum(line.teacher_forwards for line in self.metrics)

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started


def _holds_environment(folder: RunFolder) -> bool:
    try:
        return bool(folder.read_environment())
    except UsageError:
        return False


def _recorded(config: TrainingConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=set(config.NOT_RECORDED))
