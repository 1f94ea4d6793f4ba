"""A full disk and a memory that is too small: one clear line, nothing lost, nothing half written."""

import resource
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from kdcache.stages import train_student

from kdcache.config import StudentConfig
from tests.processes import kdcache, outcome

Settings = dict[str, Any]


def limited(limit: int, size: int, command: str, settings: Settings) -> "CompletedProcess[str]":
    """Run a command that may not go over a limit of the system's."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    prepare = partial(resource.setrlimit, limit, (size, size))
    return kdcache(command, *options, cwd=Path(settings["out"]).parent, prepare=prepare)


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
