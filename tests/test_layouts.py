"""The layouts of folders in which people and distributors keep pictures, and the names of datasets."""

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from kdcache import checked_files
from kdcache.cards import canonical, same_dataset
from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Dataset, load, read
from kdcache.datasets.pack import pack
from kdcache.run.folder import RunFolder, newest_finished_run
from kdcache.run_data import load_run_data
from tests.samples import TINY_CLASSES, refusal, write_imagenet, write_tiny


def write_classes(root: Path, classes: str = "abc", count: int = 10) -> Path:
    """Write a folder of different pictures for each class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (label, number, 7)).save(root / name / f"{number}.png")
    return root


def paths_of(data: Dataset, part: str) -> set[str]:
    pictures = getattr(data, part).pictures
    return {os.path.relpath(pictures.source.name(index), pictures.source.root) for index in pictures.indices}


# Folders


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "valid"), ("train", "validation"), ("Train", "Test"), ("training", "testing"), ("TRAIN", "Val")],
)
def test_usual_names_of_the_parts_are_known(train: str, test: str, tmp_path: Path) -> None:
    write_classes(tmp_path / train, count=3)
    write_classes(tmp_path / test, count=2)
    data = read(f"folder:{tmp_path}")
    assert (len(data.train), len(data.test), data.class_names) == (9, 6, ("a", "b", "c"))


def test_a_second_test_set_is_said_not_to_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part, count in (("train", 3), ("valid", 2), ("test", 1)):
        write_classes(tmp_path / part, count=count)
    with caplog.at_level(logging.INFO):
        assert len(read(f"folder:{tmp_path}").test) == 6
    assert "the test set is valid; not read: test" in caplog.text


def test_without_a_test_set_a_fifth_of_each_class_is_split_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_classes(tmp_path / "bare")
    write_classes(tmp_path / "parts" / "train")
    (tmp_path / "parts" / "extra").mkdir()
    (tmp_path / "bare" / "notes.txt").touch()
    with caplog.at_level(logging.INFO):
        bare, parts = (load(f"folder:{tmp_path / name}", image_size=32) for name in ("bare", "parts"))
    assert "bare has no test set: 6 of its 30 images, the same ones in every run, are the test set" in caplog.text
    assert "the test set; not read: extra" in caplog.text
    beside = f"{tmp_path / 'bare'}: not taken as images: 1 outside the class folders (notes.txt)"
    assert [line for line in caplog.messages if "not taken" in line] == [beside]
    (tmp_path / "run").mkdir()
    run = RunFolder(tmp_path / "run")
    config = TeacherConfig.load(dataset=f"folder:{tmp_path / 'bare'}", image_size=32)
    checked_files.write_toml(run.config_file, config.to_toml())
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert len(load_run_data(run).test) == 6
    assert caplog.messages == []  # its training said the same
    assert bare.test.labels.bincount().tolist() == [2, 2, 2]
    assert not paths_of(bare, "train") & paths_of(bare, "test")
    assert len(paths_of(bare, "train") | paths_of(bare, "test")) == 30
    for part in ("train", "test"):
        assert paths_of(bare, part) == paths_of(parts, part)
        assert getattr(bare, part).fingerprint == getattr(parts, part).fingerprint
    held = load(f"folder:{tmp_path / 'bare'}", image_size=32, val_fraction=0.25)
    assert held.test.fingerprint == bare.test.fingerprint
    assert held.val is not None
    assert (len(held.train), len(held.val)) == (18, 6)


def test_the_split_is_the_same_on_every_machine_and_stays_when_a_picture_is_added(tmp_path: Path) -> None:
    root = write_classes(tmp_path, "ab", 50)
    before = paths_of(read(f"folder:{root}"), "test")
    assert sorted(before)[:5] == SPLIT
    for number in range(50, 55):
        Image.new("RGB", (32, 32)).save(root / "a" / f"{number}.png")
    after = paths_of(read(f"folder:{root}"), "test")
    assert {path for path in before if path.startswith("b")} == {path for path in after if path.startswith("b")}
    assert len(before - after) <= 5  # a new picture takes the place of one at most
    assert len(after) == 21


SPLIT = ["a/15.png", "a/22.png", "a/31.png", "a/38.png", "a/41.png"]


def test_a_dataset_that_is_split_is_packed_and_checked(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "bare", count=5)
    (root / "a" / "0.png").write_bytes(b"")
    data = load(f"folder:{root}", on_bad_image="skip", image_size=32)
    assert len(data.train) + len(data.test) == 14
    (root / "a" / "0.png").unlink()
    cli.main(["data", "check", f"folder:{root}"], standalone_mode=False)
    data = read(f"folder:{root}", image_size=32)
    pack(data, tmp_path / "x.h5")
    packed = read(f"hdf5:{tmp_path}/x.h5")
    for part in ("train", "test"):
        assert getattr(packed, part).fingerprint == getattr(data, part).fingerprint


def test_the_name_that_was_meant_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos.h5").touch()
    (tmp_path / "photos.txt").touch()
    for name, meant in (("photos", "folder:photos"), ("photos.h5", "hdf5:photos.h5")):
        for config in ({"dataset": name}, {"dataset": "cifar100", "unlabelled": name}):
            assert refusal(lambda given=config: StudentConfig.load(**given)).endswith(f" Did you mean {meant}?")  # type: ignore[misc]
        assert refusal(lambda name=name: read(name)).endswith(f" Did you mean {meant}?")  # type: ignore[misc]
    assert refusal(lambda: StudentConfig.load(dataset="photos.txt")).endswith("got photos.txt")
    moved = "If it was moved, name its place with --dataset."
    assert refusal(lambda: read("folder:phots")).endswith(f"does not exist. Did you mean folder:photos? {moved}")
    assert refusal(lambda: read("folder:elsewhere")).endswith(f"does not exist. {moved}")


def test_folders_that_are_no_dataset_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "several" / "one" / "train")
    write_classes(tmp_path / "several" / "two" / "train")
    message = refusal(lambda: read(f"folder:{tmp_path}/several"))
    assert f"got datasets. Did you mean folder:{tmp_path}/several/one?" in message
    write_classes(tmp_path / "tested" / "val")
    assert "expected train and val or test, got val" in refusal(lambda: read(f"folder:{tmp_path}/tested"))
    write_classes(tmp_path / "few", "abc", 1)
    assert "at least 2 images, got a, b, c" in refusal(lambda: read(f"folder:{tmp_path}/few"))
    write_classes(tmp_path / "single", "a")
    assert "got a" in refusal(lambda: read(f"folder:{tmp_path}/single"))


# ImageNet from Kaggle


def write_kaggle(root: Path) -> Path:
    images = write_imagenet(root / "ILSVRC" / "Data" / "CLS-LOC")
    files = sorted((images / "val").glob("*/*.JPEG"))
    rows = ["ImageId,PredictionString"]
    for number, place in enumerate([3, 0, 6, 1, 7, 4, 2, 8, 5], 1):
        rows.append(
            f"ILSVRC2012_val_{number:08d},{files[place].parent.name} 1 2 3 4 {files[place].parent.name} 5 6 7 8 "
        )
        files[place].rename(images / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    for folder in [path for path in (images / "val").iterdir() if path.is_dir()]:
        folder.rmdir()
    (root / "LOC_val_solution.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    (root / "LOC_synset_mapping.txt").write_text("n00000008 crane, bird\nn00000009 tench\nn00000010 snail\n")
    return root


@pytest.mark.parametrize("level", [".", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC", "link"])
def test_imagenet_from_kaggle(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_kaggle(tmp_path / "kaggle")
    (tmp_path / "imagenet").symlink_to(root)
    (root / "ILSVRC/Data/CLS-LOC/val/other.JPEG").touch()
    data = read("imagenet", root=tmp_path if level == "link" else root / level)
    assert data.test.pictures is not None
    assert data.test.pictures.source.describe_others() == "1 of other names"
    assert data.test.labels.tolist() == [1, 0, 2, 0, 2, 1, 0, 2, 1]
    assert (len(data.train), data.class_names) == (24, ("crane", "tench", "snail"))
    monkeypatch.chdir(root / "ILSVRC" / "Data" / "CLS-LOC")
    assert read("imagenet", root=Path()).test.labels.equal(data.test.labels)


def test_a_solution_of_kaggle_that_does_not_fit(tmp_path: Path) -> None:
    root = write_kaggle(tmp_path)
    solution, mapping = root / "LOC_val_solution.csv", root / "LOC_synset_mapping.txt"
    text = solution.read_text()
    solution.write_text(text.replace("ILSVRC2012_val_00000004,", "other,"))
    assert "got none for ILSVRC2012_val_00000004.JPEG" in refusal(lambda: read("imagenet", root=root))
    solution.write_text(text.replace("n00000008 1", "n00000077 1"))
    assert "got n00000077" in refusal(lambda: read("imagenet", root=root))
    solution.unlink()
    assert "LOC_val_solution.csv beside val" in refusal(lambda: read("imagenet", root=root))
    mapping.unlink()
    solution.write_text("\ufeff" + text, "utf-8")
    assert read("imagenet", root=root).class_names == ("n00000008", "n00000009", "n00000010")


def test_a_solution_of_kaggle_is_read_as_people_save_it(tmp_path: Path) -> None:
    root = write_kaggle(tmp_path / "kaggle")
    expected, solution = read("imagenet", root=root).test.labels, root / "LOC_val_solution.csv"
    text = solution.read_text()
    for changed in (text.replace(",", ".JPEG, "), text.replace("\n", "\r\n"), re.sub(",(.*)", r',"\1"', text)):
        solution.write_bytes(changed.encode())
        assert read("imagenet", root=root).test.labels.equal(expected)
    link = tmp_path / "link"
    link.symlink_to(root / "ILSVRC" / "Data" / "CLS-LOC")
    assert read("imagenet", root=link).test.labels.equal(expected)
    solution.write_text(text + "ILSVRC2012_val_00000001,n00000008 1 2 3 4\n")
    assert refusal(lambda: read("imagenet", root=root)).endswith("expected one class, got n00000009 and n00000008")
    solution.write_bytes(text.encode("utf-16"))
    assert "expected UTF-8" in refusal(lambda: read("imagenet", root=root))


@pytest.mark.parametrize("truth", [b"a\nb\nc\n", b"1\n2\n77\n", "1\n2\n3\n".encode("utf-16"), b"damaged meta.mat"])
def test_a_damaged_development_kit_is_one_line(truth: bytes, tmp_path: Path) -> None:
    root = write_kaggle(tmp_path) / "ILSVRC" / "Data" / "CLS-LOC"
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    rows = [(number, f"n{number + 7:08d}", "word") for number in (1, 2, 3)]
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    savemat(kit / "meta.mat", {"synsets": np.array(rows, kinds)})
    if truth == b"damaged meta.mat":
        (kit / "meta.mat").write_bytes(truth)
        truth = b"1\n" * 9
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_bytes(truth * 3)
    assert refusal(lambda: read("imagenet", root=root))


# Tiny ImageNet


@pytest.mark.parametrize("change", ["UTF-16", "twice", "blank lines"])
def test_annotations_of_tiny_imagenet(change: str, tmp_path: Path) -> None:
    annotations = write_tiny(tmp_path) / "val" / "val_annotations.txt"
    text = annotations.read_text()
    if change == "blank lines":
        annotations.write_text(text + "\n\n")
        assert len(read("tiny-imagenet", root=tmp_path).test) == 3
        return
    annotations.write_bytes(text.encode("utf-16") if change == "UTF-16" else (text * 2).encode())
    message = refusal(lambda: read("tiny-imagenet", root=tmp_path))
    assert ("expected UTF-8" if change == "UTF-16" else "got several for val_1.JPEG, val_10.JPEG") in message


@pytest.mark.parametrize("below", ["val/{}", "val/{}/images", "val/images/{}"])
def test_tiny_imagenet_whose_validation_images_were_sorted(below: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    before = read("tiny-imagenet", root=tmp_path)
    for wnid in TINY_CLASSES:
        (folder / below.format(wnid)).mkdir(parents=True)
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (folder / "val" / "images" / name).rename(folder / below.format(wnid) / name)
    for wnid in set(TINY_CLASSES) - {TINY_CLASSES[0], TINY_CLASSES[5]}:
        Image.new("RGB", (64, 64)).save(folder / below.format(wnid) / "x.JPEG")
    data = read("tiny-imagenet", root=tmp_path)
    assert len(data.test) == 3 + 198
    labels = {
        Path(data.test.pictures.source.name(row)).name: label for row, label in enumerate(data.test.labels.tolist())
    }  # type: ignore[union-attr]
    expected = [Path(before.test.pictures.source.name(row)).name for row in range(3)]  # type: ignore[union-attr]
    assert [labels[name] for name in expected] == before.test.labels.tolist()
    absent = folder / below.format(TINY_CLASSES[3])
    absent.rename(tmp_path / "elsewhere")
    if below == "val/{}/images":
        absent.parent.rmdir()
    assert TINY_CLASSES[3] in refusal(lambda: read("tiny-imagenet", root=tmp_path))


# Names of datasets


def test_a_dataset_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("folder:base/", "folder:./base", "folder:base//", "folder:./base/."):
        assert canonical(name) == TeacherConfig.load(dataset=name).dataset == "folder:base"
    assert canonical("hdf5:./x.h5") == "hdf5:x.h5"
    assert canonical("folder:~/base/") == f"folder:{tmp_path}/base"
    for name in ("folder:a/../b", "folder:~nobody-of-this-name/x", "folder:./~x", "cifar10", "folder:/", "folder:.."):
        assert canonical(name) == canonical(canonical(name)) == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("base")
    (tmp_path / "base").mkdir()
    for name in ("folder:link/", f"folder:{tmp_path}/base", "folder:~/base", "folder:../" + tmp_path.name + "/base"):
        assert same_dataset(name, "folder:base")
    for name in ("folder:other", "hdf5:base", "base", "cifar10"):
        assert not same_dataset(name, "folder:base")


def test_the_newest_teacher_is_found_however_its_folder_is_spelled(teacher: Path, pictures: Path) -> None:
    for spelled in (
        f"folder:{pictures}/",
        f"folder:{os.path.relpath(pictures)}",
        f"folder:{pictures}/../{pictures.name}",
    ):
        found = newest_finished_run(TeacherConfig, spelled, teacher.parent)
        assert found is not None
        assert found.path == teacher
    assert newest_finished_run(TeacherConfig, f"folder:{pictures}/train", teacher.parent) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("folder:~nobody/x", "dataset folder ~nobody/x does not exist"),
        ("hdf5:~nobody/x.h5", "could not read ~nobody/x.h5"),
        ("imagenet --data-root ~nobody/x", "no home folder for ~nobody of ~nobody/x"),
        ("cifar10 --data-root ~nobody", "no home folder for ~nobody of ~nobody"),
    ],
)
def test_an_unknown_user_is_one_line(words: str, message: str) -> None:
    words, message = (text.replace("nobody", "nobody-of-this-name") for text in (words, message))
    assert message in refusal(lambda: cli.main(["data", "check", *words.split()], standalone_mode=False))


# Byte order marks


def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "notepad.toml"
    path.write_text('epochs = 3\n[teacher]\nmodel = "resnet8"\n', "utf-8-sig")
    config = TeacherConfig.load(path)
    assert (config.epochs, config.model) == (3, "resnet8")
    path.write_text("epochs = 3\n", "utf-16")
    assert "expected UTF-8" in refusal(lambda: TeacherConfig.load(path))
