"""A study that takes seconds: four students of a small teacher, on a folder of pictures."""

import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["RUNS", "STUDY", "begun", "trainings", "until", "write_study"]

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


def begun(run: Path) -> bool:
    """Tell whether a training is under way that could be gone on with."""
    return any(run.glob("checkpoints/*.safetensors")) and not (run / "summary.json").exists()


def until(true: Callable[[], object], seconds: float = 240) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
