"""A full disk, a memory too small, a folder that goes away: one clear line, nothing lost, nothing half written."""

import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from kdcache.stages import train_student

from kdcache.config import StudentConfig
from tests.processes import Command, outcome

Settings = dict[str, Any]


def begun(command: str, settings: Settings, prepare: Callable[[], None] | None = None) -> Command:
    """Begin a command, in the folder of its run folder."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "resume"]
    options += ["--resume"] if settings.get("resume") else []
    return Command((command, *options), Path(settings["out"]).parent, prepare)


def limited(limit: int, size: int, command: str, settings: Settings) -> "CompletedProcess[str]":
    """Run a command that may not go over a limit of the system's."""
    return begun(command, settings, partial(resource.setrlimit, limit, (size, size))).ended()


@pytest.mark.parametrize(("room", "last"), [(60_000, "model.safetensors"), (400_000, "checkpoints/epoch-")])
def test_a_disk_that_is_full_costs_a_line_and_the_run_goes_on_when_there_is_room(
    room: int, last: str, small: Settings, teacher: Path, tmp_path: Path
) -> None:
    settings = {**small, "teacher": teacher, "aug": "cutmix", "epochs": 2, "cache": "off", "out": tmp_path / "run"}
    done = limited(resource.RLIMIT_FSIZE, room, "student-train", settings)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("kdcache: cannot write ")
    assert last in line
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []
    assert not (tmp_path / "run" / "summary.json").exists()
    threads = torch.get_num_threads()
    resumed = train_student(StudentConfig.load(**settings, resume=True))  # computes as that process did
    whole = train_student(StudentConfig.load(**{**settings, "out": tmp_path / "whole"}))
    torch.set_num_threads(threads)
    assert outcome(resumed.path) == outcome(whole.path)


def test_too_little_memory_says_what_to_try(small: Settings, tmp_path: Path) -> None:
    settings = {**small, "model": "wrn_40_2", "batch_size": 90, "out": tmp_path / "run"}
    done = limited(resource.RLIMIT_DATA, 1_000_000_000, "teacher-train", settings)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line == (
        "kdcache: out of memory: allowed a smaller --batch-size, or --precision bfloat16, given a step of 90 images"
    )


class Greedy(torch.nn.Module):
    """A network that asks the allocator for more than any machine has, where the batch has a certain size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        if not self.training and len(views) == self.too_many:
            torch.empty(2**60, dtype=torch.uint8)
        return self.layers(views)


class GreedyWhereEvaluated(Greedy):
    too_many = 30  # the test images


class GreedyWhereAsked(Greedy):
    too_many = 64  # the views of a forward of the teacher


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (
            GreedyWhereEvaluated,
            "allowed --precision bfloat16, or a smaller network or --image-size, given an evaluation, "
            "30 images at a time",
        ),
        (
            GreedyWhereAsked,
            "allowed --precision bfloat16, a smaller teacher, or answers that kdcache cache fill stored on a larger "
            "machine, given a forward of 64 views through the teacher python:tests.test_faults:GreedyWhereAsked",
        ),
    ],
)
def test_too_little_memory_outside_of_the_steps_is_explained_too(
    network: type[Greedy], line: str, small: Settings, tmp_path: Path
) -> None:
    settings = {**small, "model": f"python:tests.test_faults:{network.__name__}", "out": tmp_path / "run"}
    done = begun("teacher-train", settings).ended()
    assert (done.returncode, done.stderr) == (1, f"kdcache: out of memory: {line}\n")
    assert not (tmp_path / "run" / "summary.json").exists()


def little_room_left() -> None:
    """Leave this process 40 MB more of memory than it has."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    most = (int(line.split()[1]) + 40_000) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def test_too_little_memory_for_anything_else_is_no_defect(small: Settings, tmp_path: Path) -> None:
    settings = {**small, "model": "ResNet50", "out": tmp_path / "run"}  # 94 MB of weights
    done = begun("teacher-train", settings, little_room_left).ended()
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "kdcache: out of memory: allowed a machine with more, or with fewer programs at work, given "
    )
    assert not (tmp_path / "run").exists()
