"""The trackers of ``--track``, each read back by its own library."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kdcache.stages import train_student, train_teacher

from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import UsageError
from kdcache.report import trackers
from kdcache.report.progress import Reporter
from kdcache.run.folder import EpochMetrics, FinishedRun, RunFolder

Settings = dict[str, object]


class Killed(Reporter):
    """Ends the training when the last epoch is reported, before its checkpoint: resumed, it trains this epoch again."""

    def end_epoch(self, metrics: EpochMetrics) -> None:
        if metrics.epoch == 2:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the trackers from the network, and from what the user has."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "WANDB_TAGS", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # making the tables of a database takes seconds


def train_in_two_sessions(settings: Settings, teacher: Path, out: Path, *track: str) -> FinishedRun:
    options = {**settings, "epochs": 2, "aug": "cutmix-pick", "teacher": teacher, "out": out}
    with pytest.raises(KeyboardInterrupt):
        train_student(StudentConfig.load(**options, track=track), Killed())
    return train_student(StudentConfig.load(**options, resume=True))


def test_tensorboard_has_every_epoch_once(small: Settings, teacher: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train_in_two_sessions(small, teacher, tmp_path / "run", "tensorboard")
    found = events.EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    metrics = run.read_metrics()
    for name in ("test_top1", "kl_ratio", "label_disagreement", "teacher_forwards"):
        logged = [(event.step, event.value) for event in found.Scalars(name)]
        assert logged == [(line.epoch, pytest.approx(getattr(line, name))) for line in metrics], name
    assert [event.value for event in found.Scalars("loss_parts/kd")] == [
        pytest.approx(line.loss_parts["kd"]) for line in metrics
    ]
    settings, summary = (
        json.loads(found.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0])
        for name in ("settings", "summary")
    )
    assert settings["aug"] == "cutmix-pick"
    assert summary == run.summary


def test_wandb_has_the_whole_run_in_the_last_offline_folder(small: Settings, teacher: Path, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run = train_in_two_sessions(small, teacher, tmp_path / "run", "wandb")
    wandb.teardown()  # waits for its process, which writes the files
    first, second = (offline_run(file) for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")))
    assert first["id"] == second["id"]
    assert [row["epoch"] for row in first["history"]] == [row["epoch"] for row in second["history"]] == [1, 2]
    metrics = run.read_metrics()
    assert [row["test_top1"] for row in second["history"]] == [line.test_top1 for line in metrics]
    assert [row["loss_parts/kd"] for row in second["history"]] == [line.loss_parts["kd"] for line in metrics]
    assert second["config"]["aug"] == "cutmix-pick"
    assert second["config"]["environment"]["origin"] == run.read_environment()["origin"]
    assert second["name"] == "run"
    assert set(second["tags"]) >= {"student", "resnet8", "cutmix-pick"}
    assert second["summary"]["best_top1"] == run.summary["best_top1"]


def offline_run(file: Path) -> dict[str, Any]:
    """Read an offline run, a log of wandb's messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Any] = {"history": [], "summary": {}}
    for message in logged(file.read_bytes()):
        record = Record.FromString(message)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "name": record.run.display_name, "tags": [*record.run.tags]}
            found["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = record.history.item
            found["history"].append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        elif kind == "summary":
            items = record.summary.update
            found["summary"] |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
    return found


def logged(data: bytes) -> Iterator[bytes]:
    """Read the messages of a log in LevelDB's format, which has blocks of 32 KiB, after wandb's own 7 bytes."""
    assert data.startswith(b":W&B")
    position, message = 7, b""
    while position + 7 <= len(data):
        if 2**15 - position % 2**15 < 7:  # padding at the end of a block
            position += 2**15 - position % 2**15
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)
        message += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole message, or the last part of one
            yield message
            message = b""


def test_mlflow_goes_on_with_the_run(small: Settings, teacher: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    run = train_in_two_sessions(small, teacher, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("kdcache").experiment_id])
    metrics = run.read_metrics()
    for name in ("test_top1", "kl_ratio"):
        history = client.get_metric_history(found.info.run_id, name)
        assert [(one.step, one.value) for one in history] == [(line.epoch, getattr(line, name)) for line in metrics]
    assert found.info.status == "FINISHED"
    assert found.data.params["aug"] == found.data.tags["aug"] == "cutmix-pick"
    origin = run.read_environment()["origin"]
    assert found.data.params["environment.origin.teacher"] == origin["teacher"]
    assert found.data.tags["summary.best_top1"] == str(run.summary["best_top1"])


def test_a_training_outlives_a_tracker_that_fails(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(trackers.Tracker):
        def __init__(self, run: object, recorded: object) -> None:
            self.identity, self.place = {}, "nowhere"

        def log(self, epoch: int, values: object) -> None:
            raise OSError(28, "No space left on device")

        def finish(self, summary: object) -> None:
            raise AssertionError("it failed before")

    monkeypatch.setattr("kdcache.report.tensorboard.TensorBoard", Fails)
    options = {**small, "epochs": 2, "out": tmp_path / "run", "track": "tensorboard"}
    assert train_teacher(TeacherConfig.load(**options)).summary["epochs"] == 2
    (said,) = (line.getMessage() for line in caplog.records if "--track" in line.getMessage())
    assert said.startswith("--track tensorboard failed, and the training goes on without it")
    assert "No space left" in said


def test_only_the_main_process_reports(small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "distributed", SimpleNamespace(is_main=lambda: False))
    run = train_teacher(TeacherConfig.load(**small, out=tmp_path / "run", track="tensorboard"))
    assert not (run.path / "tensorboard").exists()
    assert not run.tracking_file.exists()


def test_a_missing_package_is_refused_before_anything_starts(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    options = {**small, "out": tmp_path / "run", "track": ("tensorboard", "mlflow")}
    with pytest.raises(
        UsageError, match=r"--track mlflow: mlflow is not installed. Run pip install 'kdcache\[mlflow\]'"
    ):
        train_teacher(TeacherConfig.load(**options))
    assert not RunFolder(tmp_path / "run").holds_run


def test_trackers_are_settings_that_a_resumed_run_may_change(small: Settings) -> None:
    config = TeacherConfig.load(**small, track="wandb,mlflow,wandb")
    assert config.track == ("wandb", "mlflow")
    assert TeacherConfig.load(**small, track="none").track == ()
    assert TeacherConfig.load(**small).differences(config) == []
    with pytest.raises(UsageError, match="--track: expected none, or trackers"):
        TeacherConfig.load(**small, track=("none", "wandb"))
