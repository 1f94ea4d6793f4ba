"""A study that takes seconds: four students of a small teacher on a folder of pictures."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdcache.study import jobs
from tests.processes import Command, ForkedInterpreter

__all__ = [
    "RUNS",
    "STUDY",
    "is_resumable",
    "read_results",
    "start_study",
    "training_processes",
    "wait_until",
    "write_study",
]

RUNS = {
    "KD": "resnet8-resnet8-kd-standard-4epochs-seed0",
    "KD+CutMix": "resnet8-resnet8-kd-cutmix-4epochs-seed0",
    "KD+CutMix-pick": "resnet8-resnet8-kd-cutmix-pick-4epochs-seed0",
    "KD+CutMix-pick (random)": "resnet8-resnet8-kd-cutmix-pick-random-4epochs-seed0",
}
"""Folder name of each row's run."""

STUDY = """
title = "Four students"
[profiles]
own = ["small.toml"]
[[rows]]
name = "KD"
settings = { loss = "kd" }
[[rows]]
name = "KD+CutMix"
settings = { loss = "kd", aug = "cutmix" }
[[rows]]
name = "KD+CutMix-pick"
settings = { loss = "kd", aug = "cutmix-pick" }
[[rows]]
name = "KD+CutMix-pick (random)"
settings = { loss = "kd", aug = "cutmix-pick", pick = "random" }
"""

PROTOCOL = """
seeds = 1
[common]
dataset = "folder:PICTURES"
image_size = 32
crop = "padded"
batch_size = 32
optimizer = "sgd"
lr = 0.05
weight_decay = 5e-4
schedule = "steps"
warmup_epochs = 0.0
device = "cpu"
precision = "float32"
[student]
epochs = 4
[[pairs]]
name = "ResNet8/ResNet8"
teacher = { model = "resnet8", epochs = 2 }
student = { model = "resnet8" }
"""


def write_study(folder: Path, pictures: Path, **replacements: str) -> None:
    """Write the study ``four.toml`` and its protocol, after replacing some texts of the study."""
    study = STUDY
    for old, new in replacements.items():
        assert old in study
        study = study.replace(old, new)
    (folder / "four.toml").write_text(study)
    (folder / "small.toml").write_text(PROTOCOL.replace("PICTURES", str(pictures)))


def start_study(folder: Path, *launcher: str) -> Command:
    """Start or resume the study of a folder, by default with trainings that are forked from it."""
    words = ("reproduce", "four.toml", "--profile", "own", "--jobs", "2", "--out", str(folder / "studies"), *launcher)
    return Command(words, folder, prepare=_one_thread if launcher else _fork_trainings)


def _one_thread() -> None:
    """Give each training one thread with every launcher, since sums depend on the number of threads."""
    os.environ["OMP_NUM_THREADS"] = "1"


def _fork_trainings() -> None:
    """Start no interpreters, each of which would import torch for seconds."""
    _one_thread()
    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    jobs.subprocess = SimpleNamespace(Popen=ForkedInterpreter, **names)  # type: ignore[assignment]


def read_results(folder: Path) -> dict[str, Any]:
    """Read the study's results without the counts of teacher forwards, of which a kill repeats some."""
    document: dict[str, Any] = json.loads((folder / "studies" / "four-own.json").read_text())
    for cell in document["cells"]:
        del cell["teacher_forwards"], cell["cache_hits"]
    return document


def training_processes(folder: Path) -> list[int]:
    """Find the processes that train runs of a study, or one run, by the log to which they print."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended since
            log = Path(os.readlink(process / "fd" / "1"))
            if log.match("logs/*.log") and (log.parents[1] / log.stem).is_relative_to(folder):
                found.append(int(process.name))
    return found


def is_resumable(run: Path) -> bool:
    """Tell whether a run is unfinished and has a checkpoint."""
    return any(run.glob("checkpoints/*.safetensors")) and not (run / "summary.json").exists()


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
