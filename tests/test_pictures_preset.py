"""Trainings on the user's own pictures: their preset, a length in steps, and what is said about the network."""

import logging
from pathlib import Path

import pytest
import torch
import torchvision
from kdcache.stages import train_student, train_teacher
from kdcache.stages.fill import precompute_answers
from torch.utils.flop_counter import FlopCounterMode

from kdcache import datasets
from kdcache.cards import CARDS
from kdcache.checked_files import write_toml
from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.models.sizes import MOBILE, MOBILE_MULTIPLY_ADDS, describe_cost
from kdcache.run.resolve import create_run_folder, resolve_run
from kdcache.setup import fresh_network, initial_network, load_data, with_epochs
from kdcache.study.planned import PlannedRun
from tests.samples import refusal, write_pictures

Settings = dict[str, object]


@pytest.mark.parametrize("dataset", ["folder:photos", "hdf5:photos.h5", "python:my_code:photos"])
def test_a_dataset_of_the_users_own_has_the_preset_for_pictures(dataset: str) -> None:
    preset = TeacherConfig.load("pictures"), StudentConfig.load("pictures")
    for kind, config in zip((TeacherConfig, StudentConfig), preset, strict=True):
        assert kind.load(dataset=dataset) == config.model_copy(update={"dataset": dataset})
        assert kind.load("cifar100", dataset=dataset).model.startswith("wrn")
    assert (preset[0].model, preset[1].model) == ("torchvision:resnet34", "torchvision:mobilenet_v3_small")
    assert not preset[1].init  # which is downloaded, and therefore never set by a preset
    assert all(card.preset in ("mini", "cifar100", "tiny-imagenet", "imagenet") for card in CARDS.values())


def test_a_length_in_steps_is_rounded_up_to_epochs_of_the_images_that_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    config = TeacherConfig.load(dataset="folder:x", batch_size=10, steps=100)
    for samples, epochs in (
        (20, 50),
        (200, 5),
        (204, 5),
        (209, 5),
        (210, 5),
        (211, 5),
        (300, 4),
        (2000, 1),
        (10**6, 1),
    ):
        assert with_epochs(config, samples).epochs == epochs
    assert "--steps 100: 5 epochs of 21 steps, 105 in all" in caplog.messages
    assert with_epochs(with_epochs(config, 200), 2000).epochs == 1  # recorded settings, on other images
    fixed = TeacherConfig.load(dataset="folder:x", epochs=7)
    assert with_epochs(fixed, 10**6) is fixed


def test_epochs_replace_the_steps_of_a_preset_and_steps_its_epochs(tmp_path: Path) -> None:
    assert TeacherConfig.load(dataset="folder:x", epochs=7).length == ("epochs", 7)
    assert TeacherConfig.load(dataset="cifar100", steps=7).length == ("steps", 7)
    assert StudentConfig.load(dataset="folder:x", epochs=120, loss="dkd").losses.of("dkd").warm_up == 10  # type: ignore[union-attr]
    both = refusal(lambda: TeacherConfig.load(epochs=7, steps=8))
    assert both == "--steps: expected no value with --epochs, got 8"
    recorded = tmp_path / "config.toml"
    config = with_epochs(StudentConfig.load(dataset="folder:x", steps=700, loss="dkd"), 320)
    assert config.epochs == 70
    recorded.write_text(config.to_toml())
    assert StudentConfig.load(recorded) == config
    assert StudentConfig.load(recorded, epochs=3).length == ("epochs", 3)


def test_what_depends_on_the_epochs_is_checked_and_completed_when_they_are_known() -> None:
    config = StudentConfig.load(dataset="folder:x", steps=480, warmup_epochs=30, loss="rld", batch_size=10)
    known = StudentConfig.load(dataset="folder:x", epochs=48, warmup_epochs=30, loss="rld", batch_size=10)
    complete = with_epochs(config, 100)
    assert complete.losses == known.losses
    assert complete.model_copy(update={"steps": None}) == known
    assert [complete.learning_rate(epoch) for epoch in range(48)] == [known.learning_rate(epoch) for epoch in range(48)]
    expected = "--steps 480, which are 5 epochs: --warmup-epochs: expected less than the 5 epochs, got 30"
    assert refusal(lambda: with_epochs(config, 1000)).startswith(expected)


def test_a_run_of_some_steps_takes_their_epochs_and_is_found_to_be_resumed(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**small, "batch_size": 40, "steps": 3}  # of 2 in an epoch of 90 images
    del settings["epochs"]
    begun, lock = create_run_folder(TeacherConfig.load(**settings))
    write_toml(begun.config_file, with_epochs(TeacherConfig.load(**settings), 90).to_toml())
    lock.release()
    assert resolve_run(TeacherConfig.load(**{**settings, "steps": 4}, resume=True))[0].out is None
    assert resolve_run(TeacherConfig.load(**settings, resume=True))[0].out == begun.path
    run = train_teacher(TeacherConfig.load(**settings, out=tmp_path / "run"))
    assert (run.config.length, run.config.epochs, len(run.read_metrics())) == (("steps", 3), 2, 2)
    assert PlannedRun(run.path, "teacher-train", TeacherConfig.load(**settings)).problems() == []
    assert len(PlannedRun(run.path, "teacher-train", TeacherConfig.load(**small)).problems()) == 3
    other = TeacherConfig.load(**{**settings, "steps": None}, epochs=2, resume=True, out=run.path)
    assert refusal(lambda: resolve_run(other)).endswith(" is finished: expected 3, got 2 epochs")
    cosine = [run.config.model_copy(update={"schedule": "cosine", "steps": steps}) for steps in (3, 4)]
    assert cosine[1].differences(cosine[0]) == ["--steps: expected 3, as in the run, got 4"]


def test_students_and_stores_of_some_steps_take_their_epochs(
    small: Settings, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**small, "teacher": teacher, "steps": 4, "store": str(tmp_path / "store.zarr")}
    del settings["epochs"]  # 2 of 3 steps
    assert precompute_answers(StudentConfig.load(**settings)).stored == 2 * 90
    run = train_student(StudentConfig.load(**settings, out=tmp_path / "run"))
    assert [line.teacher_forwards for line in run.read_metrics()] == [0, 0]
    plans, words = [], [f"--dataset={small['dataset']}", "--batch-size=32", f"--teacher={teacher}"]
    for length in ("--steps=4", "--epochs=2", "--epochs=3"):
        cli.main(["cache", "plan", *words, length], standalone_mode=False)
        plans.append(capsys.readouterr().out)
    assert plans[0] == plans[1] != plans[2]


def test_the_cost_of_a_network_for_small_images_is_said_on_large_ones() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        torchvision.models.mobilenet_v3_small().eval()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 == pytest.approx(1e6 * MOBILE_MULTIPLY_ADDS * 224**2, rel=0.02)
    assert describe_cost("resnet8", 160) == (
        "resnet8 was made for images of 32 pixels: at 160 it takes 313 million multiply-adds per image, "
        f"11 times those of {MOBILE} (29 million)."
    )
    for name, size in (("resnet8", 32), ("wrn_16_2", 64), (MOBILE, 224), ("timm:resnet18", 224)):
        assert describe_cost(name, size) is None


def test_a_training_says_what_its_network_costs_and_that_it_starts_from_random_weights(
    small: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")

    def said(**settings: object) -> str:
        caplog.clear()
        config = TeacherConfig.load(**{**small, **settings})
        initial_network(config, load_data(config))
        return caplog.text

    assert "resnet8 was made for images of 32 pixels" in said(image_size=96)
    assert said() == ""
    assert "torchvision:mobilenet_v3_small starts from random weights" in said(model=MOBILE)
    assert "--init DEFAULT" in caplog.text


def test_a_student_has_the_crop_of_its_teacher(small: Settings, teacher: Path, tmp_path: Path) -> None:
    assert StudentConfig.load(teacher=teacher).crop == "padded"
    others = write_pictures(tmp_path)
    assert StudentConfig.load(teacher=teacher, dataset=f"folder:{others}").crop == "padded"
    data = load_data(TeacherConfig.load(dataset=f"folder:{others}", image_size=48))
    assert (data.card.padding, data.card.shorter_side) == (None, 54)
    assert data.train.images is None  # decoded for each crop
    padded = datasets.load(f"folder:{others}", image_size=48, crop="padded")
    assert (padded.card.padding, padded.card.shorter_side) == (6, None)
    assert fresh_network(TeacherConfig.load(**small), data).image_size == 48
