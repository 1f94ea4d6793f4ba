"""Teacher and student training on a small folder of pictures: results, records, errors, reproducibility."""

import cProfile
import json
import os
import pstats
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from kdcache.stages import student as student_stage
from kdcache.stages import teacher as teacher_stage
from kdcache.stages import train_student, train_teacher
from safetensors.torch import load_file
from torch import nn

from kdcache.compute import Compute
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import KdcacheError, UsageError
from kdcache.models import Network, build, checkpoint
from kdcache.optimization import Update
from kdcache.report.training_curves import plot_training_curves
from kdcache.run.checkpoint import TrainingState
from kdcache.run.folder import EpochMetrics, FinishedRun
from kdcache.run.resolve import create_run_folder
from kdcache.run.writer import RunWriter
from kdcache.setup import load_data
from tests.answers import stored

SAMPLES = 90
Settings = dict[str, Any]


@pytest.fixture
def charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings draw their charts, which others do not."""
    for stage in (student_stage, teacher_stage):
        monkeypatch.setattr(stage, "plot_training_curves", plot_training_curves)


def student(small: Settings, teacher: Path, out: Path, **settings: Any) -> FinishedRun:
    return train_student(StudentConfig.load(**{**small, "teacher": teacher, "out": out, **settings}))


@pytest.mark.parametrize(
    ("settings", "views_per_sample"),
    [
        ({"loss": "ce", "aug": "none"}, 0),
        ({"loss": "ce", "aug": "mixup"}, 0),
        ({"loss": "ce", "aug": "cutmix", "pick": "random"}, 0),
        ({"loss": "kd", "aug": "none"}, 0),
        ({"loss": "kd", "aug": "standard"}, 1),
        ({"loss": "kd", "aug": "cutmix"}, 2),
        ({"loss": "kd", "aug": "cutmix-pick"}, 3),
        ({"loss": "kd", "aug": "cutmix-pick", "pick": "teacher-entropy"}, 3),
        ({"loss": "kd", "aug": "cutmix-pick", "pick": "student-entropy"}, 3),
        ({"loss": "kd", "aug": "cutmix-pick", "pick": "random"}, 3),
        ({"loss": "kd", "aug": "cutmix+mixup", "pick": "kld"}, 3),
        ({"loss": "kd", "aug": "trivialaugment", "pick": "kld", "candidates": 3, "keep": 0.25}, 4),
    ],
)
def test_losses_augmentations_and_criteria_train(
    settings: Settings, views_per_sample: int, small: Settings, teacher: Path, tmp_path: Path
) -> None:
    cache = "auto" if settings["aug"] == "none" else "off"  # other tests share the teacher and its store
    run = student(small, teacher, tmp_path / "run", cache=cache, **settings)
    (line,) = [json.loads(text) for text in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert line["teacher_forwards"] == views_per_sample * SAMPLES
    assert line["cache_hits"] == (SAMPLES if settings == {"loss": "kd", "aug": "none"} else 0)
    assert {"epoch", "lr", "train_loss", "test_top1", "test_top5", "images_per_second", "seconds"} <= line.keys()
    criterion = settings.get("pick", "kld" if settings["aug"] == "cutmix-pick" else None)
    assert (line["kl_ratio"] is not None) == (views_per_sample > 0 and criterion in ("kld", "student-entropy"))
    assert (line["label_disagreement"] is not None) == (views_per_sample > 1)
    before, after = (load_file(path / "model.safetensors") for path in (teacher, run.path))
    assert not before["conv1.weight"].equal(after["conv1.weight"])


@pytest.mark.usefixtures("charts")
def test_a_run_folder_is_complete(small: Settings, teacher: Path, tmp_path: Path) -> None:
    run = student(small, teacher, tmp_path / "run", aug="cutmix-pick", epochs=2, cache="off")
    files = {"config.toml", "environment.json", "metrics.jsonl", "model.safetensors", "best.safetensors", "curves.png"}
    files |= {"summary.json"}
    assert {entry.name for entry in run.path.iterdir()} == files | {"statistics.zarr", "run.lock"}
    assert not list(run.path.glob(".*"))
    lines = run.read_metrics()
    assert run.summary["last_top1"] == lines[-1].test_top1
    assert run.summary["best_top1"] == max(line.test_top1 for line in lines)
    assert lines[run.summary["best_epoch"] - 1].test_top1 == run.summary["best_top1"]
    assert run.summary["teacher_forwards"] == 2 * 3 * SAMPLES
    for line in lines:
        assert line.data_share is not None
        assert line.teacher_share is not None
        assert 0 < line.data_share < line.data_share + line.teacher_share < 1
    assert StudentConfig.load(run.path / "config.toml") == run.config

    statistics = zarr.open_group(run.path / "statistics.zarr", mode="r")
    shapes = {name: array.shape for name, array in statistics.arrays()}
    # 90 samples in batches of 32 make three steps.
    assert shapes == {
        "d_x": (2, 90), "d_mixed": (2, 2, 90), "picked": (2, 2, 90), "kl_ratio": (2, 3), "disagreements": (2, 3),
        "losses": (2, 3, 2),
    }  # fmt: skip
    assert statistics.attrs["losses"] == ["ce", "kd"]
    losses = np.asarray(statistics["losses"][:])  # type: ignore[index]
    np.testing.assert_allclose(losses.mean(1), [list(line.loss_parts.values()) for line in lines], rtol=1e-5)
    np.testing.assert_allclose(losses.sum(2).mean(1), [line.train_loss for line in lines], rtol=1e-5)
    assert statistics.attrs["epochs_written"] == 2
    assert np.isfinite(statistics["d_x"][:]).all()  # type: ignore[index, arg-type]
    assert (statistics["picked"][:].sum(axis=(1, 2)) == 90).all()  # type: ignore[index, union-attr]
    assert (statistics["kl_ratio"][:] >= 1).all()  # type: ignore[index, operator, union-attr]


def test_the_teacher_stores_its_clean_logits(teacher: Path) -> None:
    answers = zarr.open_array(stored(teacher), path="clean/logits", mode="r")
    assert answers.shape == (90, 3)
    assert FinishedRun(teacher).summary["teacher_forwards"] == 90


def test_the_same_seeds_give_the_same_bits_and_others_do_not(small: Settings, teacher: Path, tmp_path: Path) -> None:
    def bits(name: str, **settings: object) -> dict[str, bytes]:
        return weights(student(small, teacher, tmp_path / name, aug="cutmix-pick", precision="auto", **settings))

    first = bits("first", seed=1)
    assert bits("again", seed=1) == first
    assert bits("seed", seed=2, view_seed=1) != first
    assert bits("views", seed=1, view_seed=2) != first


def dropping(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, num_classes))


def test_dropout_follows_from_the_seed(small: Settings, tmp_path: Path) -> None:
    own = {**small, "model": "python:tests.test_training:dropping"}

    def trained(name: str) -> dict[str, bytes]:
        torch.seed()  # as in a new process
        return weights(train_teacher(TeacherConfig.load(**own, out=tmp_path / name)))

    assert trained("first") == trained("again")


class Rising(TeacherConfig):
    """Diverges in the second epoch."""

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        return 1e30 if epoch else 0.01


class Bursting(TeacherConfig):
    """With large weight decay, no weight is finite after one step of the second epoch."""

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        return 1e38 if epoch else 1e-4


def test_a_loss_that_becomes_nan_stops_the_run_and_keeps_the_network(small: Settings, tmp_path: Path) -> None:
    with pytest.raises(KdcacheError, match=r"the loss became (nan|inf) at epoch 2, step \d"):
        train_teacher(Rising.load(**{**small, "epochs": 3, "out": tmp_path / "run"}))
    assert checkpoint.metadata(tmp_path / "run" / "model.safetensors")["epoch"] == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    with pytest.raises(UsageError, match="finished run"):
        FinishedRun(tmp_path / "run")
    look = f"assert not RunFolder(Path({str(tmp_path / 'run')!r})).in_use()"
    code = f"from pathlib import Path\nfrom kdcache.run.folder import RunFolder\n{look}"
    subprocess.run([sys.executable, "-c", code], check=True)  # another process may write there again


def test_a_finished_run_is_not_overwritten_by_default(small: Settings, teacher: Path) -> None:
    before = (teacher / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        train_teacher(TeacherConfig.load(**{**small, "out": teacher}))
    assert (teacher / "model.safetensors").read_bytes() == before


def test_a_student_is_not_written_over_its_teacher(small: Settings, teacher: Path) -> None:
    with pytest.raises(UsageError, match="--out"):
        student(small, teacher, teacher, overwrite=True)
    assert FinishedRun(teacher).summary["kind"] == "teacher"


def test_a_student_is_not_written_over_the_newest_teacher(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = train_teacher(TeacherConfig.load(**small)).path
    with pytest.raises(UsageError, match="--out"):
        train_student(StudentConfig.load(**{**small, "out": found, "overwrite": True}))
    assert FinishedRun(found).summary["kind"] == "teacher"


def test_a_network_that_diverges_in_the_last_step_of_an_epoch_stops_the_run(small: Settings, tmp_path: Path) -> None:
    settings = {**small, "loss": "ce", "batch_size": 90, "lr": 1e30, "out": tmp_path / "run"}
    with pytest.raises(KdcacheError, match="epoch 1"):
        train_student(StudentConfig.load(**settings))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_evaluations_do_not_change_the_training(small: Settings, teacher: Path, tmp_path: Path) -> None:
    often, rarely = (student(small, teacher, tmp_path / str(every), epochs=5, evaluate_every=every) for every in (1, 3))
    assert weights(often) == weights(rarely)
    known = [line.test_top1 for line in often.read_metrics()]
    assert [line.test_top1 for line in rarely.read_metrics()] == [None, None, known[2], None, known[4]]
    assert rarely.summary["best_top1"] == max(known[2], known[4])


def test_a_network_that_diverges_stops_the_run_in_an_epoch_without_an_evaluation(
    small: Settings, tmp_path: Path
) -> None:
    few = {"epochs": 3, "evaluate_every": 3, "batch_size": 90, "weight_decay": 1e3}
    with pytest.raises(KdcacheError, match="epoch 2"):
        train_teacher(Bursting.load(**{**small, **few, "out": tmp_path / "run"}))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_folder_of_other_files_is_never_overwritten(small: Settings, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="other files"):
        train_teacher(TeacherConfig.load(**{**small, "out": tmp_path, "overwrite": True}))
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 40}, "image size: expected 40.*got 32"),
        ({"dataset": "fashion-mini", "image_size": None, "crop": None}, "number of classes: expected 10.*got 3"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    change: Settings, message: str, small: Settings, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        student({**small, **change}, teacher, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("charts")
def test_default_run_folders_are_numbered_and_the_newest_teacher_is_used(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (train_teacher(TeacherConfig.load(**{**small, "model": "resnet8"})) for _ in range(2))
    assert second.path.name == f"{first.path.name}-2"
    assert (second.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "summary.json").write_text("{")
    run = train_student(StudentConfig.load(**small))
    assert isinstance(run.config, StudentConfig)
    assert run.config.teacher == second.path


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("resnet20", "teacher-folder-data-pets-resnet20-seed3"),
        ("timm:hf_hub:some/net", "teacher-folder-data-pets-timm-hf_hub-some-net-seed3"),
    ],
)
def test_the_default_name_of_a_run_is_a_valid_folder_name(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, lock = create_run_folder(TeacherConfig.load(dataset="folder:data/pets", model=model, seed=3))
    lock.release()
    assert [folder.path.name] == [name] == [entry.name for entry in (tmp_path / "runs").iterdir()]


def test_without_augmentation_all_logits_come_from_the_teachers_store(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in stored(teacher).rglob("*") if path.is_file()}
    run = student(small, teacher, tmp_path / "run", aug="none", epochs=2)
    assert [(line.teacher_forwards, line.cache_hits) for line in run.read_metrics()] == [(0, SAMPLES)] * 2
    assert all(path.read_bytes() == content for path, content in before.items())
    assert np.isfinite(zarr.open_group(run.path / "statistics.zarr", mode="r")["d_x"][:]).all()  # type: ignore[index, arg-type]


def test_a_loss_that_is_never_finite_leaves_neither_network_nor_summary(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(KdcacheError, match=r"the loss became (nan|inf) at epoch 1, step 2$"):
        student(small, teacher, tmp_path / "run", lr=1e30)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_finished_student_is_overwritten_only_with_overwrite(small: Settings, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    student(small, teacher, out, loss="ce")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"finished run.*--overwrite"):
        student(small, teacher, out, loss="ce", seed=4)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    replaced = student(small, teacher, out, loss="ce", seed=4, overwrite=True)
    assert replaced.config.seed == 4
    assert (out / "model.safetensors").read_bytes() != before[out / "model.safetensors"]


@pytest.mark.parametrize("named", [True, False])
def test_a_missing_teacher_is_refused_before_anything_is_written(
    named: bool, small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = {"teacher": tmp_path / "nowhere"} if named else {}
    with pytest.raises(UsageError, match="nowhere" if named else "no finished teacher"):
        train_student(StudentConfig.load(**{**small, **place}))
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_weights_is_not_a_teacher(small: Settings, teacher: Path) -> None:
    with pytest.raises(UsageError, match=r"^--teacher: .*teacher-load --weights FILE"):
        train_student(StudentConfig.load(**{**small, "teacher": teacher / "model.safetensors"}))


def test_damaged_logits_are_computed_again(
    small: Settings, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = tmp_path / "teacher"
    shutil.copytree(teacher, copied)
    (chunk,) = [path for path in (stored(copied) / "clean" / "logits" / "c").rglob("*") if path.is_file()]
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1])
    run = student(small, copied, tmp_path / "run", aug="none")
    assert run.summary["teacher_forwards"] == SAMPLES
    assert "damaged" in caplog.text
    assert chunk.read_bytes() == whole


def weights(run: FinishedRun) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in load_file(run.path / "model.safetensors").items()}


def test_a_second_student_needs_no_teacher_forwards_with_any_loss_and_gets_the_same_bits_with_the_same(
    small: Settings, teacher: Path, tmp_path: Path
) -> None:
    settings = {"aug": "cutmix-pick", "epochs": 2, "seed": 4, "view_seed": 77, "store": str(tmp_path / "store.zarr")}
    first, second = (student(small, teacher, tmp_path / name, **settings) for name in ("first", "second"))
    online = student(small, teacher, tmp_path / "online", **{**settings, "cache": "off"})
    views = 2 * 3 * SAMPLES
    counts = [(run.summary["teacher_forwards"], run.summary["cache_hits"]) for run in (first, second, online)]
    assert counts == [(views, 0), (0, views), (views, 0)]
    assert weights(first) == weights(second) == weights(online)
    other = student(small, teacher, tmp_path / "other", **settings, loss="dkd")
    assert (other.summary["teacher_forwards"], other.summary["cache_hits"]) == (0, views)
    assert weights(other) != weights(first)


@pytest.fixture(scope="module")
def shared(small: Settings, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the logits of a student's views."""
    folder = tmp_path_factory.mktemp("shared")
    student(small, teacher, folder / "run", aug="cutmix-pick", view_seed=78, store=str(folder / "store.zarr"))
    return folder / "store.zarr"


@pytest.mark.parametrize(
    "other",
    [
        {"model": "resnet20", "batch_size": 18, "temperature": 2.0},
        {"pick": "random"},
        {"pick": "teacher-entropy", "alpha": 0.5},
        {"aug": "cutmix"},
        {"aug": "standard", "seed": 9},
    ],
)
def test_students_with_one_view_seed_share_the_logits(
    other: Settings, small: Settings, teacher: Path, shared: Path, tmp_path: Path
) -> None:
    settings = {"aug": "cutmix-pick", "view_seed": 78, "store": str(shared), **other}
    assert student(small, teacher, tmp_path / "other", **settings).summary["teacher_forwards"] == 0


def test_students_of_other_view_seeds_share_no_mixed_views(
    small: Settings, teacher: Path, shared: Path, tmp_path: Path
) -> None:
    store = str(shutil.copytree(shared, tmp_path / "store.zarr"))
    run = student(small, teacher, tmp_path / "run", aug="cutmix", view_seed=79, store=store)
    assert run.summary["teacher_forwards"] > SAMPLES


def two_layers(num_classes: int) -> torch.nn.Module:
    """A network that is soon compiled."""
    layers = (torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8, num_classes))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for processors with g++")
def test_a_compiled_student_differs_only_by_rounding(
    small: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # further processes would import torch
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)  # others try each kind of vectors
    settings = {"aug": "cutmix-pick", "cache": "off", "precision": "float32", "model": f"python:{__name__}:two_layers"}
    settings["batch_size"] = 30  # equal steps compile once
    plain = student(small, teacher, tmp_path / "plain", **settings)
    assert not (tmp_path / "compiled").exists()
    run = student(small, teacher, tmp_path / "run", compile=True, **settings)
    assert any((tmp_path / "compiled").rglob("*.so"))
    assert run.read_metrics()[0].train_loss == pytest.approx(plain.read_metrics()[0].train_loss, rel=1e-4)
    weights, expected = (load_file(path / "model.safetensors") for path in (run.path, plain.path))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-3)


def test_without_a_compiler_nothing_is_written(small: Settings, teacher: Path, tmp_path: Path) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**small, "teacher": teacher}.items()]
    # A new interpreter: torch reads the name of the compiler when it is imported.
    command = [sys.executable, "-m", "kdcache", "student-train", *words, "--compile", "--out=run"]
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]  # after one about the machine, if it is busy
    assert line.startswith("kdcache: --compile: torch.compile does not work on cpu: got ")
    assert not (tmp_path / "run").exists()


def epoch_calls(run: RunWriter, network: Network) -> tuple[int, int]:
    """Calls made to write an epoch and its checkpoint, and how many of those open files."""
    epoch = len(run.metrics) + 1
    profile = cProfile.Profile()
    profile.enable()
    run.end_epoch(EpochMetrics(epoch, 1.0, 0.5, 90.0, 99.0, lr=0.05, loss_parts={"ce": 0.1}), network)
    run.save_checkpoint(TrainingState(epoch))
    profile.disable()
    calls = {function: stats[1] for (_, _, function), stats in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    return sum(calls.values()), sum(count for name, count in calls.items() if "open" in name)


def test_the_work_of_an_epoch_hardly_grows_with_the_epochs_before_it(small: Settings, tmp_path: Path) -> None:
    config, compute = TeacherConfig.load(**{**small, "out": tmp_path / "run"}), Compute.choose("cpu")
    network = build("resnet8", num_classes=3, seed=0)
    with RunWriter(config, compute, load_data(config)) as run:
        run.restore({"teacher": network}, Update(config, compute, network))
        early = [epoch_calls(run, network) for _ in range(2)][1]
        run.metrics += [replace(run.metrics[0], epoch=epoch) for epoch in range(3, 303)]
        late = epoch_calls(run, network)
    assert late[1] == early[1] > 0
    assert late[0] - early[0] < 300 * 12  # metrics of all epochs are written anew, as JSON in two files
