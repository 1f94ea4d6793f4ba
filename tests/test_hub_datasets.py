"""Datasets of Hugging Face and torchvision by name."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kdcache.stages import train_teacher
from PIL import Image

from kdcache import datasets
from kdcache.cards import canonical
from kdcache.config import TeacherConfig
from kdcache.datasets import torchvision_sets
from kdcache.datasets.fetch import fetch
from kdcache.errors import KdcacheError, require_package
from kdcache.models.checkpoint import load as load_network
from tests.samples import CLASSES, refusal

library = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")


def columns_of(part: Path) -> dict[str, list[Any]]:
    """Read a folder of a class each, in the order of ``folder:PATH``."""
    files = [file for name in CLASSES for file in sorted((part / name).iterdir())]
    image = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    label = [CLASSES.index(file.parent.name) for file in files]
    return {"image": image, "label": label, "number": [*range(len(files))]}


FEATURES = {"image": library.Image(), "label": library.ClassLabel(names=[*CLASSES]), "number": library.Value("int64")}


def dataset_of(part: Path, **features: Any) -> Any:
    return library.Dataset.from_dict(columns_of(part), features=library.Features({**FEATURES, **features}))


@pytest.fixture(scope="module")
def parquet(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `pictures` as Parquet files, as a repository of the Hub has them."""
    folder = tmp_path_factory.mktemp("parquet")
    for split, part in (("train", "train"), ("validation", "val"), ("test", "val")):
        dataset_of(pictures / part).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_parquet_files_train_to_the_bits_of_the_folder(
    parquet: Path, pictures: Path, small: dict[str, object], teacher: Path, tmp_path: Path
) -> None:
    found, folder = (datasets.read(name, image_size=32) for name in (f"hf:{parquet}", f"folder:{pictures}"))
    assert found.class_names == folder.class_names
    assert found.train.fingerprint == folder.train.fingerprint
    assert found.test.fingerprint == folder.test.fingerprint
    assert found.train.images is None  # they stay on disk
    options = {**small, "dataset": f"hf:{parquet}", "seed": 9, "out": tmp_path / "run"}
    run = train_teacher(TeacherConfig.load(**options))
    ours, theirs = (load_network(path / "model.safetensors").state_dict() for path in (run.path, teacher))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def test_a_dataset_without_a_test_split_keeps_a_fifth_of_each_class(pictures: Path, tmp_path: Path) -> None:
    dataset_of(pictures / "train").to_parquet(tmp_path / "train.parquet")
    found = datasets.read(f"hf:{tmp_path}", image_size=32)
    assert found.test.labels.bincount().tolist() == [6, 6, 6]
    assert len(found.train) == 72


def test_the_column_of_the_labels_can_be_named(pictures: Path, tmp_path: Path) -> None:
    plain = dataset_of(pictures / "val", label=library.Value("int64"))
    for split in ("train", "test"):
        plain.to_parquet(tmp_path / f"{split}.parquet")
    message = refusal(lambda: datasets.read(f"hf:{tmp_path}"))
    assert "expected one Image, and one ClassLabel or integer, got image: Image, label: int64, number: int64" in message
    assert f"Name the column of the labels, as in hf:{tmp_path}#label." in message
    assert datasets.read(f"hf:{tmp_path}#label").class_names == ("0", "1", "2")


def test_a_download_is_kept_in_the_data_root(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load_dataset(path: str, config: str | None, revision: str | None) -> Any:
        asked.append((path, config, revision))
        return library.DatasetDict({split: dataset_of(pictures / "val") for split in ("train", "test")})

    name = "hf:some/pictures:small@v1"
    assert f"Run 'kdcache data fetch {name}', or add --download." in refusal(lambda: datasets.read(name, root=tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(library, "load_dataset", load_dataset)
    found = datasets.read(name, root=tmp_path, download=True)
    assert datasets.read(name, root=tmp_path, download=True).train.fingerprint == found.train.fingerprint
    assert asked == [("some/pictures", "small", "v1")]
    assert fetch(name, tmp_path) == tmp_path / "hf" / "some--pictures+small@v1"


def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("[Errno 111] Connection refused\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    message = refusal(lambda: datasets.read("hf:some/pictures", root=tmp_path, download=True), KdcacheError)
    assert message.startswith("could not download hf:some/pictures: got [Errno 111] Connection refused. Where")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refusal(lambda: datasets.read("hf:some/pictures"))
    assert message == "dataset hf:some/pictures: datasets is not installed. Run pip install 'kdcache[hf]'."


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_library").mkdir()  # as ./datasets is, which holds what was downloaded
    monkeypatch.syspath_prepend(tmp_path)
    assert "some_library is not installed" in refusal(lambda: require_package("this", "some_library", "hf"))


def test_a_dataset_of_torchvision_is_read_from_its_files(tmp_path: Path) -> None:
    names, folder = ("ravioli", "sushi"), tmp_path / "food-101"
    (folder / "meta").mkdir(parents=True)
    for split, count in (("train", 3), ("test", 2)):
        listed = {name: [f"{name}/{split}{number}" for number in range(count)] for name in names}
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for path in (path for paths in listed.values() for path in paths):
            file = folder / "images" / f"{path}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 50, 3), len(path), np.uint8)).save(file)
    found = datasets.read("torchvision:Food101", root=tmp_path, image_size=32)
    assert found.class_names == names
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.images is None
    assert found.test.take(found.test.labels).shape == (4, 3, 32, 32)
    message = refusal(lambda: datasets.read("torchvision:DTD", root=tmp_path))
    assert "Run 'kdcache data fetch torchvision:DTD', or add --download." in message
    assert "expected one of CIFAR10, CIFAR100" in refusal(lambda: datasets.read("torchvision:Fud", root=tmp_path))


def test_arrays_of_torchvision_have_channels_last() -> None:
    data = SimpleNamespace(data=np.zeros((5, 3, 32, 30), np.uint8), labels=np.zeros(5))
    assert torchvision_sets._images_and_labels(data)[0].shape == (5, 32, 30, 3)


def test_sets_of_torchvision_that_have_a_card_are_those() -> None:
    assert canonical("torchvision:CIFAR100") == TeacherConfig.load(dataset="torchvision:CIFAR100").dataset == "cifar100"
    assert canonical("torchvision:Food101") == "torchvision:Food101"
    assert canonical("hf:~/pictures") == f"hf:{Path.home()}/pictures"


def test_a_damaged_parquet_file_is_said_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = pytest.importorskip("datasets", reason="datasets reads Parquet files")
    library.Dataset.from_dict({"label": [0]}).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 nonsense")
    capfd.readouterr()
    assert "Parquet magic bytes not found" in refusal(lambda: datasets.read(f"hf:{tmp_path}"))
    assert capfd.readouterr().err == ""
