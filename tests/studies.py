"""A study that takes seconds: four students of a small teacher, on a folder of pictures."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.processes import Command

__all__ = ["RUNS", "STUDY", "begin_study", "table", "trainings", "under_way", "until", "write_study"]

RUNS = {
    "KD": "resnet8-resnet8-kd-standard-8epochs-seed0",
    "KD+CutMix": "resnet8-resnet8-kd-cutmix-8epochs-seed0",
    "KD+CutMix-pick": "resnet8-resnet8-kd-cutmix-pick-8epochs-seed0",
    "KD+CutMix-pick by chance": "resnet8-resnet8-kd-cutmix-pick-random-8epochs-seed0",
}
"""Folder names of the rows' runs."""

STUDY = """
title = "Four students"
[profiles]
own = ["small.toml"]
[[rows]]
name = "KD"
train = { loss = "kd" }
[[rows]]
name = "KD+CutMix"
train = { loss = "kd", aug = "cutmix" }
[[rows]]
name = "KD+CutMix-pick"
train = { loss = "kd", aug = "cutmix-pick" }
[[rows]]
name = "KD+CutMix-pick by chance"
train = { loss = "kd", aug = "cutmix-pick", pick = "random" }
"""

SMALL = """
seeds = 1
[train]
dataset = "folder:PICTURES"
image_size = 32
batch_size = 32
device = "cpu"
precision = "float32"
[student]
epochs = 8
[[pairs]]
name = "ResNet8/ResNet8"
teacher = { model = "resnet8", epochs = 2 }
student = { model = "resnet8" }
"""


def write_study(folder: Path, pictures: Path, **changed: str) -> None:
    """Write a study, ``four.toml``, with its setting beside it; `changed` are other texts in place of some."""
    study = STUDY
    for old, new in changed.items():
        assert old in study
        study = study.replace(old, new)
    (folder / "four.toml").write_text(study)
    (folder / "small.toml").write_text(SMALL.replace("PICTURES", str(pictures)))


def begin_study(folder: Path, *more: str) -> Command:
    """Begin the study of a folder, or go on with it."""
    words = ("reproduce", "four.toml", "--profile", "own", "--jobs", "2", "--out", str(folder / "studies"), *more)
    return Command(words, folder, prepare=_one_thread)


def _one_thread() -> None:
    """Give each training one thread, also where the launcher does not divide them: by their number sums differ."""
    os.environ["OMP_NUM_THREADS"] = "1"


def table(folder: Path) -> dict[str, Any]:
    """Read what a study came to, but for questions, of which more are asked again after a kill."""
    document: dict[str, Any] = json.loads((folder / "studies" / "four-own.json").read_text())
    for cell in document["cells"]:
        del cell["teacher_forwards"], cell["cache_hits"]
    return document


def trainings(folder: Path) -> list[int]:
    """Find the processes that train something in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # it has ended since
            continue
        if b"-train\0" in command and os.fsencode(folder) in command:
            found.append(int(process.name))
    return found


def under_way(run: Path) -> bool:
    """Tell whether a training is under way that could be gone on with."""
    return any(run.glob("checkpoints/*.safetensors")) and not (run / "summary.json").exists()


def until(true: Callable[[], object], seconds: float = 240) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
