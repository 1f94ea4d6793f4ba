"""``kdcache data``, and the settings of datasets."""

from pathlib import Path

import pytest

from kdcache.cli import cli
from kdcache.config import TeacherConfig
from kdcache.errors import KdcacheError
from tests.samples import BAD, refusal, spoil, write_imagenet


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Run":
    monkeypatch.chdir(tmp_path)
    return Run(capsys)


class Run:
    """Runs a command in this process, which saves the imports of another."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, command: str) -> str:
        cli.main(["data", *command.split()], standalone_mode=False)
        return self.capsys.readouterr().out


def test_datasets_are_listed_as_present_or_not(run: Run, tmp_path: Path) -> None:
    (tmp_path / "datasets" / "cifar-100-python").mkdir(parents=True)
    lines = run("list").splitlines()
    row = {name: next(line for line in lines if name in line) for name in ("cifar100", "imagenet", "fashion-mini")}
    assert ("yes" in row["cifar100"], "yes" in row["fashion-mini"], " no " in row["imagenet"]) == (True, True, True)
    assert any("1,281,167" in line for line in lines)


def test_a_damaged_download_is_not_taken_for_a_dataset(run: Run, tmp_path: Path) -> None:
    for name, folder, part in (
        ("cifar100", "cifar-100-python", "Delete the folder."),
        ("tiny-imagenet", "tiny-imagenet-200", "delete it and run"),
    ):
        (tmp_path / "datasets" / folder).mkdir(parents=True)
        assert part in refusal(lambda name=name: run(f"fetch {name}"), KdcacheError)


def test_a_dataset_is_shown_present_or_not(run: Run, tmp_path: Path) -> None:
    absent = run("info imagenet")
    assert "center crop 224x224" in absent
    assert "not present: " in absent
    write_imagenet(tmp_path / "imagenet", train=3, val=2)
    shown = run("info imagenet --data-root . --image-size 64")
    assert "shorter side resized to 73, center crop 64x64" in shown
    assert "n00000008 (3), n00000009 (3)" in shown
    assert "tiny-imagenet" in refusal(lambda: run("info nowhere"))


def test_a_dataset_with_bad_images_is_packed_without_them_or_not_at_all(run: Run, tmp_path: Path) -> None:
    write_imagenet(tmp_path / "imagenet", train=3, val=2)
    spoil(tmp_path / "imagenet" / "train" / "n00000008")
    with pytest.raises(KdcacheError) as caught:
        run("pack imagenet x.h5 --data-root .")
    *named, last = str(caught.value).splitlines()
    assert sorted(Path(line.split(":")[0]).name for line in named) == sorted(BAD)
    assert "--on-bad-image skip" in last
    assert not (tmp_path / "x.h5").exists()
    done = run("pack imagenet x.h5 --on-bad-image skip --data-root .")
    assert done == "x.h5: 10 training and 6 test images, 4 left out\n"
    with pytest.raises(KdcacheError) as caught:
        run("check imagenet --data-root .")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4 + 2 + 1  # bad images, counts, and the number of problems
    remedy = "Delete the pictures that cannot be decoded, or train without them by --on-bad-image skip."
    assert lines[-1] == f"imagenet: 6 problems. {remedy}"
    with pytest.raises(KdcacheError) as caught:
        run("check hdf5:x.h5")  # its card says that it is a part of ImageNet
    assert str(caught.value).count("of the complete dataset") == 2
    assert str(caught.value).endswith("hdf5:x.h5: 2 problems")


def test_a_sound_dataset_has_no_problems(run: Run, tmp_path: Path) -> None:
    write_imagenet(tmp_path / "own", train=3, val=2)
    assert run("check folder:own") == "folder:own: 9 training and 6 test images, no problems\n"


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("fetch folder:x", ["cifar100", "folder:x"]),
        ("check hdf5:nowhere.h5", ["nowhere.h5", "no such file"]),
        ("pack fashion-mini no/where.h5", ["no/where.h5", "does not exist"]),
    ],
)
def test_wrong_use_gives_one_message(command: str, parts: list[str], run: Run) -> None:
    message = refusal(lambda: run(command))
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"dataset": "cifar100", "image_size": 64}, ["--image-size", "folder:PATH", "imagenet"]),
        ({"on_bad_image": "ignore"}, ["--on-bad-image", "error, skip", "ignore"]),
        ({"val_fraction": 1}, ["--val-fraction", "less than 1"]),
        ({"workers": -1}, ["--workers"]),
        ({"dataset": "hdf5:"}, ["--dataset", "hdf5:FILE"]),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object], parts: list[str]) -> None:
    message = refusal(lambda: TeacherConfig.load(**settings))
    assert [part for part in parts if part not in message] == []


def test_image_files_may_be_resized_to_any_size() -> None:
    for dataset in ("imagenet", "folder:x", "hdf5:x.h5"):
        assert TeacherConfig.load(dataset=dataset, image_size=96).image_size == 96


@pytest.mark.parametrize(
    ("dataset", "batch_size", "epochs", "rate", "decay", "falls"),
    [
        ("cifar100", 64, 240, 0.05, 5e-4, [150, 180, 210]),
        ("tiny-imagenet", 64, 240, 0.05, 5e-4, [150, 180, 210]),
        ("imagenet", 256, 100, 0.1, 1e-4, [30, 60, 90]),
    ],
)
def test_each_dataset_of_the_paper_has_a_preset_with_the_papers_settings(
    dataset: str, batch_size: int, epochs: int, rate: float, decay: float, falls: list[int]
) -> None:
    config = TeacherConfig.load(dataset=dataset)
    found = (config.dataset, config.batch_size, config.epochs, config.learning_rate(0), config.weight_decay)
    assert found == (dataset, batch_size, epochs, rate, decay)
    assert [
        epoch for epoch in range(1, epochs) if config.learning_rate(epoch) < config.learning_rate(epoch - 1)
    ] == falls
