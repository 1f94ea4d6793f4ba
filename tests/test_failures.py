"""Full disks, too little memory, vanished folders, missing permissions, jumping clocks: one message, nothing lost."""

import ctypes
import itertools
import json
import os
import resource
import shutil
import struct
import time
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from kdcache.stages import train_student

from kdcache.config import StudentConfig
from kdcache.datasets import Split
from kdcache.errors import KdcacheError
from kdcache.run.folder import FinishedRun
from kdcache.views import ViewPlan, Views
from tests.processes import outcome, start_command

Settings = dict[str, Any]


def limited(limit: int, size: int, command: str, settings: Settings) -> "CompletedProcess[str]":
    """Run a command under a resource limit."""
    return start_command(command, settings, partial(resource.setrlimit, limit, (size, size))).wait()


@pytest.mark.parametrize(("room", "last"), [(60_000, "model.safetensors"), (400_000, "checkpoints/epoch-")])
def test_a_full_disk_is_reported_and_the_run_can_be_resumed(
    room: int, last: str, small: Settings, teacher: Path, tmp_path: Path
) -> None:
    settings = {**small, "teacher": teacher, "aug": "cutmix", "epochs": 2, "cache": "off", "out": tmp_path / "run"}
    done = limited(resource.RLIMIT_FSIZE, room, "student-train", settings)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("kdcache: could not write ")
    assert last in line
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []
    assert not (tmp_path / "run" / "summary.json").exists()
    threads = torch.get_num_threads()
    resumed = train_student(StudentConfig.load(**settings, resume=True))  # with as many threads as that process
    uninterrupted = train_student(StudentConfig.load(**{**settings, "out": tmp_path / "uninterrupted"}))
    torch.set_num_threads(threads)
    assert outcome(resumed.path) == outcome(uninterrupted.path)


def test_too_little_memory_for_a_step_names_remedies(small: Settings, tmp_path: Path) -> None:
    settings = {**small, "model": "wrn_40_2", "batch_size": 90, "out": tmp_path / "run"}
    done = limited(resource.RLIMIT_DATA, 1_000_000_000, "teacher-train", settings)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line == (
        "kdcache: out of memory for a step of 90 images. Try --precision bfloat16, or a smaller --batch-size."
    )


class Greedy(torch.nn.Module):
    """A network that allocates more memory than any machine has, for batches of a certain size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        if not self.training and len(views) == self.too_many:
            torch.empty(2**60, dtype=torch.uint8)
        return self.layers(views)


class GreedyInEvaluation(Greedy):
    too_many = 30  # the test images


class GreedyInTeacherForward(Greedy):
    too_many = 64  # the views of a forward of the teacher


@pytest.mark.parametrize(
    ("network", "precision", "line"),
    [
        (
            GreedyInEvaluation,
            "float32",
            "an evaluation of 30 images at a time. Try --precision bfloat16, or a smaller network or --image-size.",
        ),
        (
            GreedyInTeacherForward,
            "bfloat16",  # so that it is not proposed
            "a forward of 64 views through the teacher python:tests.test_failures:GreedyInTeacherForward. Try a "
            "smaller teacher, or logits that kdcache cache fill stored on a larger machine.",
        ),
    ],
)
def test_too_little_memory_outside_of_the_steps_names_remedies(
    network: type[Greedy], precision: str, line: str, small: Settings, tmp_path: Path
) -> None:
    settings = {**small, "model": f"python:tests.test_failures:{network.__name__}", "precision": precision}
    settings["out"] = tmp_path / "run"
    done = start_command("teacher-train", settings).wait()
    assert (done.returncode, done.stderr) == (1, f"kdcache: out of memory for {line}\n")
    assert not (tmp_path / "run" / "summary.json").exists()


def limit_memory(megabytes: int = 40) -> None:
    """Limit this process to a little more memory than it uses."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    most = (int(line.split()[1]) + 1000 * megabytes) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def test_too_little_memory_elsewhere_is_not_reported_as_a_bug(small: Settings, tmp_path: Path) -> None:
    settings = {**small, "model": "ResNet50", "out": tmp_path / "run"}  # 94 MB of weights
    done = start_command("teacher-train", settings, limit_memory).wait()
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("kdcache: out of memory: got ")
    assert not (tmp_path / "run").exists()


def test_a_store_that_vanishes_is_reported_and_the_run_can_be_resumed_with_it_or_without(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    disk, away = tmp_path / "disk", tmp_path / "away"
    settings = {**small, "teacher": teacher, "aug": "cutmix", "epochs": 3, "cache": "replay"}
    settings |= {"store": disk / "store.zarr", "out": tmp_path / "run"}
    disk.mkdir()
    training = start_command("student-train", settings)
    while training.process.is_alive() and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.002)
    disk.rename(away)
    done = training.wait()
    stays = "got no zarr.json any more: the store was removed"
    assert (done.returncode, done.stderr) == (1, f"kdcache: store {disk / 'store.zarr'}: {stays}\n")
    assert not disk.exists()  # nothing was created in its place
    shutil.copytree(tmp_path / "run", tmp_path / "anew")
    outcomes = []
    for name, resume in (("anew", True), ("run", True), ("uninterrupted", False)):
        ended = start_command("student-train", settings | {"out": tmp_path / name, "resume": resume}).wait()
        assert ended.returncode == 0, ended.stderr
        outcomes.append(outcome(tmp_path / name))
        if name == "anew":
            shutil.rmtree(disk)
            away.rename(disk)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert [FinishedRun(tmp_path / name).summary["resumed"][0]["epoch"] > 1 for name in ("anew", "run")] == [True] * 2


def unprivileged() -> None:
    """Drop root's capability to ignore permissions."""
    version, nothing = 0x20080522, bytes(24)
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).capset(struct.pack("Ii", version, 0), nothing) == 0


@pytest.mark.parametrize(
    ("place", "mode", "code", "line"),
    [
        (".", 0o555, 2, "could not create --out {root}/run: Permission denied"),
        ("store.zarr", 0o555, 2, "--cache replay stores logits in {root}/store.zarr, which cannot be written: got "
         "Permission denied. Use --cache auto, "),
        ("teacher/model.safetensors", 0o000, 2, "checkpoint {root}/teacher/model.safetensors: expected a complete "
         "safetensors file, got [Errno 13] Permission denied"),
    ],
)  # fmt: skip
def test_a_missing_permission_is_named_and_the_run_can_be_resumed_with_it(
    place: str, mode: int, code: int, line: str, small: Settings, teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    (tmp_path / "store.zarr").mkdir()
    settings = {**small, "teacher": tmp_path / "teacher", "aug": "cutmix", "cache": "replay"}
    settings |= {"store": tmp_path / "store.zarr", "out": tmp_path / "run"}
    before = (tmp_path / place).stat().st_mode
    (tmp_path / "store.zarr.lock").touch()
    (tmp_path / place).chmod(mode)
    denied = start_command("student-train", settings, unprivileged).wait()
    (tmp_path / place).chmod(before)
    assert denied.returncode == code, denied.stderr
    (line_printed,) = denied.stderr.splitlines()
    assert line_printed.startswith(f"kdcache: {line.format(root=tmp_path)}")
    assert [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".partial"))] == []
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    again = start_command("student-train", settings | {"resume": True}, unprivileged).wait()
    assert again.returncode == 0, again.stderr


def backward_clock() -> None:
    """Let the wall clock go back by a day at every reading."""
    moments = itertools.count(time.time(), -86400)
    time.time = lambda: next(moments)


def test_durations_do_not_depend_on_the_wall_clock(small: Settings, tmp_path: Path) -> None:
    runs = {}
    for name, prepare in (("jumps", backward_clock), ("runs", None)):
        settings = {**small, "epochs": 2, "batch_size": 4, "checkpoint_minutes": 1, "out": tmp_path / name}
        done = start_command("teacher-train", settings, prepare).wait()
        assert done.returncode == 0, done.stderr
        runs[name] = FinishedRun(tmp_path / name)
    jumps = runs["jumps"]
    assert jumps.summary["finished_at"] < json.loads((jumps.path / "environment.json").read_text())["started_at"]
    assert jumps.summary["seconds"] > sum(line.seconds for line in jumps.read_metrics())
    for line in jumps.read_metrics():
        assert 0 < line.seconds < 3600
        assert line.images_per_second
        assert line.images_per_second > 0
        assert line.data_share is not None
        assert 0 <= line.data_share <= 1
    assert outcome(jumps.path) == outcome(runs["runs"].path)


def test_too_little_memory_for_the_views_of_a_step_names_remedies() -> None:
    images = Split(torch.zeros(3000, 3, 32, 32, dtype=torch.uint8), torch.arange(3000) % 3)
    plan = ViewPlan(len(images), 32, 4, crop_flip=True, seed=0, mixes=("cutmix",) * 200)  # 1.8 GB
    batches = Views(images, plan, len(images), torch.device("cpu")).epoch(0)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(200)
    try:
        with pytest.raises(KdcacheError) as caught:
            next(batches)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    remedy = "Try a smaller --batch-size or --image-size."
    assert str(caught.value) == f"out of memory for the views of 3000 images. {remedy}"
