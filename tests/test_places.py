"""Folders that may only be read, disks that are full, datasets and teachers that were moved: said at the start."""

import errno
import json
import logging
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcache.stages import precompute_answers, train_student, train_teacher
from kdcache.stages.teacher import load_teacher

from kdcache.analysis.inputs import load_analysis_inputs
from kdcache.answers import view_index
from kdcache.answers.encoding import EncodedAnswers
from kdcache.answers.location import StoreLocation
from kdcache.answers.open import may_write
from kdcache.answers.view_index import CropFlipLookup
from kdcache.checked_files import write_toml
from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError
from kdcache.run.find import find_teacher
from kdcache.run.folder import FinishedRun
from kdcache.run.resolve import resolve_run
from kdcache.setup import load_data
from kdcache.teachers import open_teacher
from kdcache.views import Views
from tests import answers
from tests.processes import kdcache, outcome
from tests.samples import refusal
from tests.test_failures import unprivileged

Settings = dict[str, Any]


@pytest.fixture
def read_only(small: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher's run that may only be read, with logits of an epoch; root, who may write anywhere, gets an error."""
    shutil.copytree(teacher, tmp_path / "theirs", ignore=shutil.ignore_patterns("replay"))
    precompute_answers(StudentConfig.load(**small, teacher=tmp_path / "theirs"))
    set_mode(tmp_path / "theirs", 0o555)
    real = os.open

    def refuse(path: object, flags: int, *more: int, **named: int) -> int:
        inside = isinstance(path, str | Path) and (tmp_path / "theirs") in Path(path).parents
        if inside and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    return tmp_path / "theirs"


def set_mode(folder: Path, mode: int) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(mode)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_store_of_a_read_only_teacher_is_used_and_nothing_is_kept(
    small: Settings, read_only: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = contents(read_only)
    settings = {**small, "teacher": read_only, "epochs": 2}
    run = train_student(StudentConfig.load(**settings, out=tmp_path / "run"))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"logits in {answers.stored(read_only)} are used, and no others are kept, since it cannot be written "
        "(Read-only file system)"
    ]
    assert (run.summary["cache_hits"], run.summary["teacher_forwards"]) == (90, 90)
    assert contents(read_only) == before
    apart = train_student(StudentConfig.load(**settings, store=str(tmp_path / "store.zarr"), out=tmp_path / "apart"))
    assert outcome(run.path) == outcome(apart.path)


@pytest.mark.parametrize("missing", [False, True])
def test_other_caches_and_fills_refuse_a_read_only_store_at_the_start(
    missing: bool, small: Settings, read_only: Path, tmp_path: Path
) -> None:
    more = {"topk": 1} if missing else {}  # whose store does not exist
    for cache in ("replay", "standard"):
        config = StudentConfig.load(**small, **more, teacher=read_only, cache=cache, out=tmp_path / "run")
        message = refusal(lambda config=config: train_student(config))
        assert message.startswith(f"--cache {cache} stores logits in {read_only}")
        assert "got Read-only file system. Use --cache auto" in message
        assert not (tmp_path / "run").exists()
    message = refusal(lambda: precompute_answers(StudentConfig.load(**small, **more, teacher=read_only)))
    assert message.endswith("cannot be written: got Read-only file system. Name another one with --store.")
    run = train_student(StudentConfig.load(**small, **more, teacher=read_only, out=tmp_path / "run"))
    assert run.is_finished


def test_commands_that_write_beside_a_read_only_run_name_out(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "theirs")
    set_mode(tmp_path / "theirs", 0o555)
    (tmp_path / "here").mkdir()
    run = str(tmp_path / "theirs")
    for words in (
        ("analyze", "disagreement", "--teacher", run),
        ("analyze", "teacher", "--teacher", run),
        ("export", run),
    ):
        done = kdcache(*words, cwd=tmp_path / "here", prepare=unprivileged)
        assert done.returncode == 2, done.stderr
        line = f"kdcache: could not write to {run}: got Permission denied. Name another place with --out.\n"
        assert done.stderr == line
        assert done.stdout == ""
    (tmp_path / "here").chmod(0o555)
    for words in (("report", run), ("analyze", "curves", run), ("views",)):
        done = kdcache(*words, cwd=tmp_path / "here", prepare=unprivileged)
        assert (done.returncode, "--out" in done.stderr) == (2, True), done.stderr
    (tmp_path / "here").chmod(0o755)
    set_mode(tmp_path / "theirs", 0o755)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_any_error_of_a_first_write_is_the_reason_that_a_store_cannot_be_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = StoreLocation(tmp_path / "store.zarr")
    assert location.write_error() is None
    assert not (tmp_path / "store.zarr").exists()
    (tmp_path / "store.zarr").mkdir()
    assert location.write_error() is None
    assert list((tmp_path / "store.zarr").iterdir()) == []

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    assert location.write_error() == os.strerror(number)
    assert list((tmp_path / "store.zarr").iterdir()) == []


def test_a_full_disk_under_the_index_ends_its_growth(
    noise: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, room = os.pwrite, 1000

    def write(descriptor: int, content: Any, offset: int) -> int:
        if offset >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content[: room - offset], offset)

    monkeypatch.setattr(view_index.os, "pwrite", write)
    index = CropFlipLookup(500, 500, {"logits": (4, np.dtype("float16"))}, tmp_path)

    def rows(*keys: int) -> EncodedAnswers:
        return {"logits": torch.tensor(keys, dtype=torch.float16)[:, None].repeat(1, 4)}

    for start in (0, 100, 200):
        index.add(np.arange(start, start + 100), rows(*range(start, start + 100)))
    hit, columns = index.lookup(np.array([7, 99, 100, 299]))
    assert hit.tolist() == [True, True, False, False]
    assert columns["logits"].tolist() == [[7] * 4, [99] * 4]
    (line,) = caplog.messages
    assert line == "the index of crop-and-flip views keeps its 100 rows (No space left on device)"


def test_an_index_is_read_through_a_mapping_that_cannot_be_written(tmp_path: Path) -> None:
    index = CropFlipLookup(10, 10, {"logits": (4, np.dtype("float16"))}, tmp_path / "missing")  # in the system's folder
    assert not index._columns["logits"].flags.writeable


@pytest.fixture
def moved(small: Settings, teacher: Path, tmp_path: Path) -> Path:
    """A copy of the pictures, for a teacher and a student whose dataset is not where it was."""
    shutil.copytree(Path(str(small["dataset"]).removeprefix("folder:")), tmp_path / "moved")
    return tmp_path / "moved"


def test_a_student_without_a_dataset_has_its_teachers(
    small: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    given = {name: value for name, value in small.items() if name not in ("dataset", "image_size")}
    run = train_student(StudentConfig.load(**given, teacher=teacher, aug="none", out=tmp_path / "run"))
    recorded = tomllib.loads((run.path / "config.toml").read_text())["student"]
    assert (recorded["dataset"], recorded["image_size"]) == (small["dataset"], 32)
    images = f"--dataset {small['dataset']} --image-size 32"  # not what is the default anyway
    assert caplog.messages[0] == f"images as in the run of the teacher {teacher}: {images}"


def test_what_is_inherited_comes_before_the_defaults_and_after_what_is_given(tmp_path: Path) -> None:
    images = {"dataset": "cifar100", "data_root": "elsewhere", "train_fraction": 0.5, "on_bad_image": "skip"}
    write_toml(tmp_path / "config.toml", TeacherConfig(**images, seed=3).to_toml())
    config = StudentConfig.load(teacher=tmp_path)
    assert {name: str(getattr(config, name)) for name in images} == {name: str(value) for name, value in images.items()}
    assert (config.seed, config.epochs) == (0, 240)  # of the preset
    assert StudentConfig.load(teacher=tmp_path, train_fraction=0.2).train_fraction == 0.2
    assert StudentConfig.load(teacher=tmp_path, dataset="fashion-mini").train_fraction == 1
    (tmp_path / "own.toml").write_text(f'[student]\nteacher = "{tmp_path}"\nval_fraction = 0.1\n')
    config = StudentConfig.load(tmp_path / "own.toml")
    assert (config.dataset, config.val_fraction, config.epochs) == ("cifar100", 0.1, 24)
    write_toml(tmp_path / "config.toml", '[teacher]\ndataset = "cifar7"\n')
    message = refusal(lambda: StudentConfig.load(teacher=tmp_path))
    assert message.startswith(f"{tmp_path / 'config.toml'}: dataset: expected one of ")


def test_a_teacher_that_is_not_named_is_said(
    small: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shutil.copytree(teacher, tmp_path / "runs" / "teacher")
    monkeypatch.chdir(tmp_path)
    assert find_teacher(StudentConfig.load(**small)) == Path("runs/teacher")
    assert "teacher: runs/teacher, the newest for " in caplog.text
    caplog.clear()
    find_teacher(StudentConfig.load(**small, teacher=teacher))
    assert caplog.text == ""


def test_a_missing_teacher_is_named_with_the_run_that_has_it(small: Settings, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    out, settings = tmp_path / "run", {**small, "aug": "none", "epochs": 2}
    train_student(StudentConfig.load(**settings, teacher=tmp_path / "teacher", out=out))
    (tmp_path / "teacher").rename(tmp_path / "away")
    said = f"teacher {tmp_path / 'teacher'} of run {out}: expected a run folder, got nothing"
    assert refusal(lambda: load_analysis_inputs(str(out))).startswith(said)
    report = kdcache("report", str(out), "--format", "json", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert any(said in line for line in json.loads(report.stdout)["missing"])
    (out / "summary.json").unlink()
    assert refusal(lambda: train_student(StudentConfig.load(out=out, resume=True))).startswith(said)
    config, _ = resolve_run(StudentConfig.load(out=out, resume=True, teacher=tmp_path / "away"))
    assert config.teacher == tmp_path / "away"


def test_an_unfinished_teacher_teaches_no_other_student_than_its_own(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    copy, out, settings = tmp_path / "teacher", tmp_path / "run", {**small, "aug": "none"}
    shutil.copytree(teacher, copy)
    train_student(StudentConfig.load(**settings, teacher=copy, out=out))
    (copy / "summary.json").unlink()
    taught, views = (
        StudentConfig.load(**settings, teacher=copy),
        Views.of_images(load_data(TeacherConfig.load(**small))),
    )
    for use in (
        lambda: train_student(taught),
        lambda: precompute_answers(taught),
        lambda: train_teacher(TeacherConfig.load(**small, init=str(copy), out=tmp_path / "other")),
        lambda: load_teacher(str(copy), TeacherConfig.load(**small, out=tmp_path / "other")),
        lambda: open_teacher(copy, views),
    ):
        said = f"run folder {copy}: expected a finished run, got an unfinished run. Finish it with --resume."
        assert refusal(use) == said
    nowhere = taught.model_copy(update={"dataset": f"folder:{tmp_path}/nowhere"})
    for train in (train_student, precompute_answers):  # before any data are read
        assert refusal(lambda train=train: train(nowhere)) == said  # type: ignore[misc]
    (out / "summary.json").unlink()
    assert train_student(StudentConfig.load(out=out, resume=True)).is_finished


def test_a_teacher_that_has_seen_the_validation_images_is_reported(
    small: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "plain")
    held_out = {**small, "aug": "none", "val_fraction": 0.2}
    train_student(StudentConfig.load(**held_out, teacher="plain", out=tmp_path / "run"))
    seen = "the teacher plain was trained on 18 of the 18 validation images"
    assert [line for line in caplog.messages if "validation" in line] == [
        f"{seen}, on which the student may look better than it is: train the teacher with --val-fraction 0.2 too"
    ]
    caplog.clear()
    config = TeacherConfig.load(**small, val_fraction=0.2, out=tmp_path / "teacher")
    for number, other in enumerate((train_teacher(config), load_teacher(str(teacher), TeacherConfig.load(**small)))):
        run = train_student(StudentConfig.load(**held_out, teacher=other.path, out=tmp_path / f"{number}"))
        assert not [line for line in caplog.messages if "validation" in line]
    done = kdcache("student-train", "--out", str(run.path), "--resume", cwd=tmp_path)
    (line,) = run.read_metrics()
    chosen = f"{line.test_top1:.2f} % at epoch 1, the best on validation with {line.val_top1:.2f} %"
    assert f"top-1 {line.test_top1:.2f} % ({chosen}), " in done.stdout


def test_commands_are_told_where_a_dataset_is_and_compare_its_images(
    small: Settings, moved: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Path(str(small["dataset"]).removeprefix("folder:"))
    teacher = shutil.copytree(teacher, tmp_path / "teacher", ignore=shutil.ignore_patterns("answers"))
    student = train_student(StudentConfig.load(**small, teacher=teacher, aug="cutmix", out=tmp_path / "run")).path
    os.rename(pictures, tmp_path / "gone")
    try:
        place = ("--dataset", f"folder:{moved}")
        done = kdcache("cache", "verify", str(teacher), cwd=tmp_path)
        assert done.stderr.endswith("does not exist. If it was moved, name its place with --dataset.\n")
        commands = (
            ("cache", "verify", str(teacher)),
            ("analyze", "disagreement", "--teacher", str(teacher), "--samples", "20", "--out", "out"),
            ("analyze", "kl-ratio", str(student), "--out", "out"),
            ("report", str(student), "--samples", "20", "--format", "json"),
        )
        for words in commands:
            done = kdcache(*words, *place, cwd=tmp_path)
            assert (done.returncode, done.stderr) == (0, ""), (words, done.stderr)
        found = load_analysis_inputs(str(teacher), dataset=f"folder:{moved}")
        assert found.has_own_images
        assert found.store is not None
        (student / "summary.json").unlink()
        resumed = train_student(StudentConfig.load(out=student, resume=True, dataset=f"folder:{moved}"))
        assert resumed.config.dataset == f"folder:{moved}"

        shutil.copy(moved / "train" / "dark" / "1.png", moved / "train" / "dark" / "0.png")
        done = kdcache(*commands[0], *place, cwd=tmp_path)
        assert (done.returncode, ": dataset: expected " in done.stderr) == (2, True), done.stderr
        assert not load_analysis_inputs(str(teacher), dataset=f"folder:{moved}").has_own_images
        done = kdcache(*commands[2], *place, cwd=tmp_path)
        assert f"expected the images that {student} was trained on, got others" in done.stderr
        done = kdcache(*commands[3], *place, cwd=tmp_path)
        assert "expected the images that " in json.loads(done.stdout)["missing"][-1]
        (student / "summary.json").unlink()
        config = StudentConfig.load(out=student, resume=True, dataset=f"folder:{moved}")
        with pytest.raises(KdcacheError, match="dataset: expected"):
            train_student(config)
    finally:
        os.rename(tmp_path / "gone", pictures)


def forwards(plan: str, cache: str) -> list[int]:
    """Integers in a line of the table of ``cache plan``: the forwards of one student, and of all."""
    (line,) = (line for line in plan.splitlines() if line.startswith(f"│ {cache} "))
    return [int(cell) for cell in line.split("│") if cell.strip().isdigit()]


def test_a_store_for_other_images_names_the_setting_that_differs(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    named = answers.stored(teacher)
    settings = {**small, "teacher": teacher, "train_fraction": 0.5, "store": str(named)}
    with pytest.raises(KdcacheError) as caught:
        train_student(StudentConfig.load(**settings, out=tmp_path / "run"))
    assert f"store {named}: --train-fraction: expected 0.5, got 1.0" in str(caught.value).splitlines()
    options = ("--teacher", str(teacher), "--epochs", "2")
    plan = kdcache("cache", "plan", *options, "--train-fraction", "0.5", "--store", str(named), cwd=tmp_path)
    assert plan.returncode == 2
    assert "samples: expected 45, got 90" in plan.stderr
    assert "--train-fraction: expected 0.5, got 1.0" in plan.stderr
    plan = kdcache("cache", "plan", *options, "--train-fraction", "0.5", "--store", "other.zarr", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert forwards(plan.stdout, "off")[0] == 90


def test_a_plan_counts_a_forward_of_every_x_for_losses_on_features(teacher: Path, tmp_path: Path) -> None:
    options = ("--teacher", str(teacher), "--epochs", "3", "--aug", "cutmix", "--store", "new.zarr")
    done = kdcache("cache", "plan", *options, "--loss", "kd+at", "--students", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert forwards(done.stdout, "replay")[:2] == [6 * 90, 6 * 90 + 3 * 90]
    done = kdcache("cache", "plan", *options, "--loss", "ce", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("kdcache: --loss ce: expected a loss that reads the teacher's logits\n")


def test_an_unfinished_run_is_named_before_another_is_started(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    Path("runs/killed").mkdir(parents=True)
    config = TeacherConfig.load(**small)
    write_toml(Path("runs/killed/config.toml"), config.to_toml())
    resolve_run(config)
    assert caplog.messages == ["runs/killed is an unfinished run with these settings, which --resume resumes"]
    resolved, _ = resolve_run(config.model_copy(update={"resume": True}))
    assert resolved.out == Path("runs/killed")
    there = config.model_copy(update={"out": Path("runs/killed")})
    assert refusal(lambda: resolve_run(there)).endswith("Resume it with --resume, or replace it with --overwrite.")
    weights = ("--weights", "shipped", "--out", "runs/killed")
    assert kdcache("teacher-load", *weights, cwd=tmp_path).stderr.endswith("Replace it with --overwrite.\n")


def test_a_run_keeps_its_number_of_threads(small: Settings, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    out = tmp_path / "run"
    try:
        run = train_student(StudentConfig.load(**small, loss="ce", threads=2, out=out))
        assert torch.get_num_threads() == 2
        assert run.read_environment()["threads"] == 2
        assert run.config.threads == 2
        (out / "summary.json").unlink()
        torch.set_num_threads(1)
        message = refusal(lambda: train_student(StudentConfig.load(out=out, resume=True, threads=1)))
        assert message == "--threads: expected 2, as in the run, got 1"
        assert FinishedRun(train_student(StudentConfig.load(out=out, resume=True)).path).summary["resumed"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_training_beside_another_says_what_to_do(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("kdcache.machine.other_trainings", lambda: [4321])
    train_student(StudentConfig.load(**small, loss="ce", out=tmp_path / "run"))
    assert caplog.messages[0].startswith("another training of kdcache runs on this machine (")
    assert "start each with --threads 1" in caplog.messages[0]
    assert caplog.messages[0].endswith("; process 4321")
    (tmp_path / "run" / "summary.json").unlink()
    caplog.clear()
    train_student(StudentConfig.load(out=tmp_path / "run", resume=True))  # which keeps its threads
    assert not [line for line in caplog.messages if "--threads" in line]


def test_views_of_a_read_only_store_are_those_of_a_forward(noise: Split, tmp_path: Path, monkeypatch: Any) -> None:
    maker = answers.views(noise, "none")
    writer = answers.cached_teacher(tmp_path / "store.zarr", noise, maker, "clean")
    expected = answers.all_logits(writer, 2)
    monkeypatch.setattr(StoreLocation, "write_error", lambda self: "Read-only file system")
    for name in ("store.zarr", "empty.zarr"):
        reader = answers.cached_teacher(tmp_path / name, noise, answers.views(noise, "none"), "auto", 2)
        assert answers.all_logits(reader, 2) == expected
        assert reader.pop_counts().forwards == (0 if name == "store.zarr" else 150)
        assert reader.store is not None
        assert len(reader.store.table_paths()) == (name == "store.zarr")


def test_a_moved_dataset_keeps_the_image_size_of_its_teacher(
    small: Settings, moved: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StudentConfig.load(teacher=teacher, dataset=f"folder:{moved}")
    assert (config.image_size, config.train_fraction) == (32, 1)
    assert StudentConfig.load(teacher=teacher, dataset=f"folder:{moved}", image_size=40).image_size == 40
    assert StudentConfig.load(teacher=teacher, dataset="fashion-mini").image_size is None
    command = ["cache", "plan", "--teacher", str(teacher), "--dataset", f"folder:{moved}", "--aug", "none"]
    cli.main(command, standalone_mode=False)
    with pytest.raises(UsageError, match="image size: expected 40"):
        cli.main([*command, "--image-size", "40"], standalone_mode=False)


def test_a_home_folder_means_the_same_for_a_run_and_its_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = StudentConfig.load(teacher="~/t", out="~/s", store="~/store")
    assert (config.teacher, config.out, config.store) == (tmp_path / "t", tmp_path / "s", str(tmp_path / "store"))
    message = refusal(lambda: TeacherConfig.load(out="~nobody-has-this-name/t"))
    assert message.startswith("--out: expected the home folder of a user who exists")


def test_no_store_at_a_place_that_cannot_be_written_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(StoreLocation, "write_error", lambda location: "Read-only file system")
    assert not may_write(StoreLocation(tmp_path), "auto")
    assert caplog.messages == [f"no logits in {tmp_path} are kept, since it cannot be written (Read-only file system)"]
