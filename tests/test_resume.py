"""Trainings that are killed, stopped and resumed."""

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcache.stages import train_student, train_teacher

from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import UsageError
from kdcache.run.folder import FinishedRun
from tests.processes import Command, outcome, start_training

Settings = dict[str, Any]


def interrupted(settings: Settings, out: Path) -> Path:
    """Start a student and kill it in its third epoch."""
    process = start_training("student", **settings, out=out)
    while process.is_alive() and not list(out.glob("checkpoints/epoch-0000002*")):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    return out


@pytest.fixture(scope="module")
def unfinished(small: Settings, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """Settings and folder of an unfinished student."""
    root = tmp_path_factory.mktemp("unfinished")
    # A checkpoint every 20 steps, of which an epoch has 21.
    often = {"epochs": 3, "batch_size": 3, "train_fraction": 0.7, "checkpoint_minutes": 1e-6}
    settings = {**small, "seed": 6, **often, "teacher": teacher, "aug": "cutmix-pick", "loss": "crd+kd", "cache": "off"}
    return settings, interrupted(settings, root / "run")


def copied(unfinished: tuple[Settings, Path], tmp_path: Path) -> tuple[Settings, Path]:
    shutil.copytree(unfinished[1], tmp_path / "run")
    return unfinished[0], tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "--seed: expected 6, as in the run, got 7"),
        ({"loss": "kd"}, r"--loss: expected crd\+kd, as in the run, got kd"),
        ({"precision": "bfloat16"}, "--precision: expected float32"),
        ({"batch_size": 4}, "--batch-size: expected 3"),
        (
            {"epochs": 2},
            r"--epochs: expected a number that keeps the learning rate 0\.05 of .*2, got 2, which makes it 0\.005",
        ),
        ({"epochs": 1}, "--epochs: expected at least the 2 that are completed, got 1"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    change: Settings, message: str, unfinished: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings, out = copied(unfinished, tmp_path)
    recorded = (out / "config.toml").read_bytes()
    with pytest.raises(UsageError, match=message):
        train_student(StudentConfig.load(**{**settings, **change, "out": out, "resume": True}))
    assert (out / "config.toml").read_bytes() == recorded


def test_settings_not_given_are_those_of_the_run(unfinished: tuple[Settings, Path], tmp_path: Path) -> None:
    settings, out = copied(unfinished, tmp_path)
    config = StudentConfig.load(out=out, resume=True, epochs=6)
    assert config.loss == settings["loss"]
    assert config.batch_size == settings["batch_size"]
    with pytest.raises(UsageError, match="--seed"):
        train_student(StudentConfig.load(out=out, resume=True, epochs=6, seed=7))


def test_after_a_damaged_checkpoint_the_one_before_is_used(
    unfinished: tuple[Settings, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, out = copied(unfinished, tmp_path)
    torch.set_num_threads(2)
    newest = max(out.glob("checkpoints/epoch-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    run = train_student(StudentConfig.load(**{**settings, "out": out, "resume": True}))
    assert f"could not read checkpoint {newest}" in caplog.text
    assert torch.get_num_threads() == 1  # as in the run before
    uninterrupted = train_student(StudentConfig.load(**{**settings, "out": tmp_path / "uninterrupted"}))
    assert outcome(run.path) == outcome(uninterrupted.path)
    (resumed,) = run.summary["resumed"]
    assert 0 < resumed["epoch"] <= 3


def test_an_unfinished_run_with_the_same_settings_is_found_and_a_finished_one_is_kept(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**small, "epochs": 2, "batch_size": 3}
    killed = start_training("teacher", **settings)
    while killed.is_alive() and not list(tmp_path.glob("runs/*/checkpoints/epoch-0000001*")):
        time.sleep(0.002)
    killed.kill()
    killed.join()
    (path,) = (tmp_path / "runs").glob("*/")
    assert not (path / "summary.json").exists()
    other = train_teacher(TeacherConfig.load(**{**settings, "seed": 5}, resume=True))
    assert other.path.resolve() != path
    found = train_teacher(TeacherConfig.load(**settings, resume=True))
    assert found.path.resolve() == path
    before = (path / "summary.json").read_bytes()
    again = train_teacher(TeacherConfig.load(**settings, resume=True, out=path))
    assert again.path == path
    assert (path / "summary.json").read_bytes() == before
    with pytest.raises(UsageError, match=f"--epochs: the run in {path} is finished: expected 2, got 3"):
        train_teacher(TeacherConfig.load(**{**settings, "epochs": 3}, resume=True, out=path))


def test_a_terminated_training_saves_a_checkpoint_within_the_epoch(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    settings = {**small, "teacher": teacher, "aug": "cutmix", "batch_size": 2, "epochs": 3, "cache": "off"}
    settings["train_fraction"] = 0.6  # 27 steps, of which 20 are recorded at once
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    training = Command(("student-train", *options, "--out=run"), tmp_path)
    while training.process.is_alive() and not list(tmp_path.glob("run/checkpoints/epoch-0000002*")):
        time.sleep(0.002)
    count = tmp_path / "run" / "teacher_forwards.count"
    before = count.read_text()
    while training.process.is_alive() and count.read_text() == before:  # until steps of this epoch are recorded
        time.sleep(0.002)
    training.process.terminate()
    stopped = training.wait(60)
    assert stopped.returncode == 143
    assert stopped.stderr == "kdcache: stopped. Completed work is saved. Resume a training with --resume.\n"
    newest = max(path.name for path in tmp_path.glob("run/checkpoints/epoch-*"))
    assert not newest.endswith("step-0000000.safetensors")
    resumed = train_student(StudentConfig.load(**{**settings, "out": tmp_path / "run", "resume": True}))
    uninterrupted = train_student(StudentConfig.load(**{**settings, "out": tmp_path / "uninterrupted"}))
    assert outcome(resumed.path) == outcome(uninterrupted.path)


@pytest.mark.parametrize("files", [[], ["config.toml"]])
def test_a_run_that_was_killed_at_the_start_can_be_resumed(
    files: list[str], unfinished: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings, out = unfinished[0], tmp_path / "run"
    out.mkdir()
    for name in (*files, ".environment.json.0a1b2c3d.tmp"):
        (out / name).write_bytes((unfinished[1] / "config.toml").read_bytes())
    run = train_student(StudentConfig.load(**{**settings, "epochs": 1, "out": out, "resume": True}))
    assert run.summary["epochs"] == 1
    assert [entry for entry in out.iterdir() if entry.name.endswith(".tmp")] == []


def test_a_run_is_not_resumed_with_another_teacher(
    unfinished: tuple[Settings, Path], small: Settings, tmp_path: Path
) -> None:
    _, out = copied(unfinished, tmp_path)
    teacher = tmp_path / "teacher"
    train_teacher(TeacherConfig.load(**{**small, "seed": 10, "out": teacher}))
    with pytest.raises(UsageError, match=f"run folder {out}: teacher: expected [0-9a-f]*, got"):
        train_student(StudentConfig.load(out=out, resume=True, teacher=teacher))


def test_two_trainings_cannot_write_to_one_folder(small: Settings, teacher: Path, tmp_path: Path) -> None:
    settings = {**small, "teacher": teacher, "aug": "cutmix", "batch_size": 3, "epochs": 500, "out": tmp_path / "run"}
    process = start_training("student", **settings)
    while process.is_alive() and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.002)
    for way in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="not in use, got one that another process writes to"):
            train_student(StudentConfig.load(**settings, **way))
    process.kill()
    process.join()
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert (tmp_path / "run" / "run.lock").exists()  # the file stays, but the kernel released the lock
    shorter = {**settings, "epochs": 1, "overwrite": True}
    assert FinishedRun(train_student(StudentConfig.load(**shorter)).path).summary["epochs"] == 1
