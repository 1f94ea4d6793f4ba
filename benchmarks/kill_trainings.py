"""Kill trainings at random moments, go on with each, and see that all end with the same bits.

The moments are uniform over the time that a training takes::

    python benchmarks/kill_trainings.py --kills 120 > docs/results/reliability.md
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kdcache.stages import train_teacher
from kills import SAMPLES, arguments, pictures, print_table, unfinished

from kdcache import training
from kdcache.answers.table import Table
from kdcache.config import TeacherConfig
from kdcache.run.checkpoint import Checkpoints
from kdcache.run.statistics import StatisticsStore
from kdcache.run.writer import RunWriter

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.processes import outcome, started, work  # which is not on the path

Settings = dict[str, Any]

EPOCHS, BATCH_SIZE = 6, 4
STEPS = -(-SAMPLES // BATCH_SIZE)

WRITES: tuple[tuple[type, str], ...] = (
    (Checkpoints, "_write"),
    (RunWriter, "end_epoch"),
    (StatisticsStore, "write"),
    (Table, "_write"),
)
"""What is done in a write: of a checkpoint, of network and metrics, of statistics, and of a chunk of answers."""

TRAININGS: dict[str, Settings] = {
    "teacher": {},
    "student, cutmix-pick, no store": {"aug": "cutmix-pick", "cache": "off"},
    "student, cutmix-pick, replay": {"aug": "cutmix-pick", "cache": "replay"},
    "student, crd+kd, no store": {"aug": "cutmix-pick", "loss": "crd+kd", "cache": "off"},
    "student, crd+kd, replay, store half filled by another": {
        "aug": "cutmix-pick",
        "loss": "crd+kd",
        "cache": "replay",
    },
}


def begin(kind: str, mark: Path, **settings: object) -> BaseProcess:
    """Begin a training, or go on with it, in a process of its own, which notes in a file whether it is in a write."""
    return started(_noted, kind, mark, settings)


def _noted(kind: str, mark: Path, settings: Settings) -> None:
    training.LOSS_CHECK_STEPS = 1  # a checkpoint after each step; what comes of the training does not depend on it
    descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT)

    def noted(write: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            os.pwrite(descriptor, b"1", 0)
            try:
                return write(*arguments, **named)
            finally:
                os.pwrite(descriptor, b"0", 0)

        return call

    for owner, name in WRITES:
        setattr(owner, name, noted(getattr(owner, name)))
    work(kind, settings)


def main() -> None:
    """Kill, and print the table."""
    kills, moments = arguments(str(__doc__))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        small = {"dataset": f"folder:{pictures(root / 'data')}", "image_size": 32, "model": "resnet8", "device": "cpu"}
        teacher = train_teacher(TeacherConfig.load(**small, epochs=1, out=root / "teacher")).path
        finish(
            begin("teacher", root / "mark", **small, epochs=1, out=root / "warm")
        )  # so that no time below holds the imports
        rows = [
            trial(training, small, teacher, root / str(place), kills // len(TRAININGS), moments)
            for place, training in enumerate(TRAININGS)
        ]
    text = f"""# Trainings that were killed

Each training of a ResNet8 on {SAMPLES} small images takes {EPOCHS} epochs of {STEPS} steps, with a checkpoint after
each step, and gets SIGKILL at a moment that is uniform over the time of a whole one. It is gone on with by `--resume`,
and killed again, until it comes to its end. "In a write": the process was writing a checkpoint, the record of an epoch,
its statistics or a chunk of answers. "Left unfinished": the kill left a file without its name, a table without a chunk
or a chunk without its commit record, or a part of an epoch's statistics. "Equal ends": network, metrics, statistics and
clean answers are the bits of a training that was never killed.
"""
    columns = (
        "training",
        "kills",
        "in a write",
        "left unfinished",
        "before the first checkpoint",
        "ends",
        "equal ends",
    )
    print_table(text, columns, [*rows, ["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]])


def trial(
    training: str, small: Settings, teacher: Path, root: Path, kills: int, moments: random.Random
) -> tuple[object, ...]:
    """Kill one kind of training so many times: the row of the table."""
    kind = training.partition(",")[0]
    settings = {**small, "epochs": EPOCHS, "batch_size": BATCH_SIZE, "checkpoint_minutes": 1e-6}
    settings |= TRAININGS[training]
    if kind == "student":
        settings["teacher"] = teacher
    root.mkdir()
    mark = root / "mark"
    began = time.perf_counter()
    finish(begin(kind, mark, **settings, **store(settings, root / "whole.zarr"), out=root / "whole"))
    seconds, expected = time.perf_counter() - began, outcome(root / "whole")
    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        name = f"run-{counts['ends']}"
        place = store(settings, root / f"{name}.zarr")
        if "half filled" in training and not (root / f"{name}.zarr").exists():
            half = {key: value for key, value in settings.items() if key != "loss"}
            stop(begin("fill", mark, **half, **place), seconds / 4)
        before = unfinished(root)
        process = begin(kind, mark, **settings, **place, out=root / name, resume=True)
        if stop(process, moments.uniform(0, seconds)):
            counts["kills"] += 1
            counts["in a write"] += mark.read_text() == "1"
            counts["left"] += bool(unfinished(root) - before)
            counts["early"] += not any((root / name).glob("checkpoints/epoch-*"))
        if (root / name / "summary.json").exists():
            ended(counts, root / name, expected)
    name = f"run-{counts['ends']}"
    finish(begin(kind, mark, **settings, **store(settings, root / f"{name}.zarr"), out=root / name, resume=True))
    ended(counts, root / name, expected)
    return (training, *(counts[word] for word in ("kills", "in a write", "left", "early", "ends", "equal")))


def store(settings: Settings, where: Path) -> Settings:
    """Give a training a store of its own, if it has one."""
    return {"store": str(where)} if settings.get("cache") == "replay" else {}


def stop(process: BaseProcess, seconds: float) -> bool:
    """Let a process work for a while, and kill it unless it has come to its end, which must be a good one."""
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def finish(process: BaseProcess) -> None:
    """Let a process come to its end, which must be a good one."""
    process.join()
    assert process.exitcode == 0


def ended(counts: Counter[str], run: Path, expected: Settings) -> None:
    """Compare a run that came to its end."""
    counts["ends"] += 1
    counts["equal"] += outcome(run) == expected


if __name__ == "__main__":
    main()
