"""Folders of runs that no training wrote: their figures are made up, their files are those of the project's writers."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from kdcache import checked_files
from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.models import build, checkpoint
from kdcache.run.contents import EpochMetrics, best_epoch
from kdcache.run.folder import RunFolder
from kdcache.run.statistics import EpochStatistics, StatisticsShape
from kdcache.run.statistics_store import StatisticsStore

__all__ = ["write_run", "write_runs"]

SEEDS = 5
"""Students of a group."""

STEPS = 16
"""Of an epoch."""

ENVIRONMENT = {
    "command": ["kdcache", "student-train"],
    "device": "cpu",
    "precision": "float32",
    "threads": 1,
    "started_at": 1.79e9,
    "origin": {"test set": "1" * 64},
}


def write_runs(folder: Path, count: int, epochs: int = 30, samples: int = 1000, prefix: str = "") -> None:
    """Write a teacher and `count` - 1 students of it, with statistics of so many samples."""
    teacher = folder / f"{prefix}teacher"
    write_run(teacher, TeacherConfig.load(model="resnet20", epochs=epochs), 90.0)
    first: dict[bool, Path] = {}
    for number, settings in zip(range(count - 1), _settings(), strict=False):
        config = StudentConfig.load(teacher=teacher, epochs=epochs, **settings)
        path = folder / f"{prefix}student-{number:04}"
        like = first.setdefault(config.augmentation.pick is None, path)
        write_run(path, config, 70 + number % 11 + number / 1000, samples, like)


def _settings() -> Iterator[dict[str, Any]]:
    temperatures = (number / 10 for number in range(10, 10_000))
    for temperature, loss, aug, seed in product(temperatures, ("kd", "dkd"), ("cutmix-pick", "standard"), range(SEEDS)):
        yield {"temperature": temperature, "loss": loss, "aug": aug, "seed": seed}


def write_run(path: Path, config: TrainingConfig, top1: float, samples: int = 100, like: Path | None = None) -> None:
    """Write a finished run with an accuracy after its last epoch, and half a point more in the epoch before.

    Its network and statistics are those of the run `like`, if that is another one: copies take less time.
    """
    folder = RunFolder(path)
    if like not in (None, path):
        other = RunFolder(like)
        checksums = [line.statistics_sha256 for line in other.read_metrics()]
        shutil.copytree(other.path, path, ignore=shutil.ignore_patterns("*.json", "*.jsonl", "*.toml"))
        shutil.copytree(other.statistics_store, folder.statistics_store, dirs_exist_ok=True)
    else:
        path.mkdir(parents=True)
        for file in (folder.network_file, folder.best_network_file):
            checkpoint.save(build(config.model, num_classes=10), file, epoch=config.epochs, top1=top1)
        checksums = [*_write_statistics(folder, config, samples)]
    metrics = [_metrics(config, number, top1, checksum) for number, checksum in enumerate(checksums, 1)]
    best = best_epoch(metrics)
    assert best is not None
    checked_files.write_toml(folder.config_file, config.to_toml())
    checked_files.write_lines(folder.metrics_file, map(asdict, metrics))
    checked_files.write_json(folder.environment_file, ENVIRONMENT)
    summary = {
        **{"kind": config.table, "dataset": config.dataset, "model": config.model, "epochs": config.epochs},
        **{"last_top1": top1, "last_top5": 99.0, "best_top1": best.test_top1, "best_epoch": best.epoch},
        **{"teacher_forwards": sum(line.teacher_forwards for line in metrics), "cache_hits": 0},
        **{"seconds": sum(line.seconds for line in metrics), "resumed": [], "finished_at": 1.79e9},
    }
    checked_files.write_json(folder.summary_file, summary)


def _write_statistics(folder: RunFolder, config: TrainingConfig, samples: int) -> Iterator[str | None]:
    if not isinstance(config, StudentConfig):
        yield from [None] * config.epochs
        return
    picks = config.augmentation.pick is not None
    shape = StatisticsShape(samples, 2 if picks else 0, STEPS, ("ce", "kd"))
    store = StatisticsStore(folder.statistics_store, config.epochs, shape)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(config.epochs):
        statistics = EpochStatistics.empty(shape, torch.device("cpu"))
        statistics.d_x.exponential_(generator=generator)
        statistics.d_mixed.exponential_(generator=generator)
        if picks:
            statistics.kl_ratio.uniform_(1.2, 1.6, generator=generator)
        yield store.write(epoch, statistics)


def _metrics(config: TrainingConfig, epoch: int, top1: float, checksum: str | None) -> EpochMetrics:
    to_come = config.epochs - epoch
    accuracy = top1 + 0.5 if to_come == 1 else top1 - 20 * to_come / config.epochs
    loss = 2 - epoch / config.epochs
    is_student = isinstance(config, StudentConfig)
    return EpochMetrics(
        epoch=epoch,
        seconds=4.2,
        test_loss=loss,
        test_top1=accuracy,
        test_top5=99.0,
        lr=config.learning_rate(epoch - 1),
        train_loss=3 * loss,
        images_per_second=1234.5,
        data_share=0.01,
        teacher_share=0.25 if is_student else None,
        kl_ratio=1.2 + 0.4 * epoch / config.epochs
        if isinstance(config, StudentConfig) and config.augmentation.pick
        else None,
        label_disagreement=0.36 if is_student and config.aug != "standard" else None,
        loss_parts={"ce": loss, "kd": 2 * loss} if is_student else {},
        teacher_forwards=12_000 if is_student else 0,
        statistics_sha256=checksum,
    )
