"""Packed files: reading, writing, interruption, checking."""

import json
import os
import signal
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from kdcache.stages import train_teacher

from kdcache import datasets
from kdcache.config import TeacherConfig
from kdcache.datasets import CARDS, Dataset, load, manifest, packed, read
from kdcache.datasets.check import check
from kdcache.datasets.manifest import Manifest
from kdcache.datasets.pack import draft_path
from kdcache.datasets.pack import pack as write
from kdcache.datasets.pictures import Crops
from kdcache.datasets.sources import Files
from kdcache.errors import KdcacheError
from kdcache.views.geometry import random_resized_box
from tests.samples import jpeg, names_below, noise, refusal, write_imagenet

SHIPPED = Path(str(files("kdcache.data"))) / "fashion-mini.h5"
MINI = CARDS["fashion-mini"]


def pack(path: Path, **changes: object) -> Path:
    """Write a small packed file. Arguments replace attributes, or arrays such as ``train_images``."""
    content: dict[str, object] = {
        "format": "kdcache-packed",
        "version": 1,
        "class_names": list("abcdefghij"),
        "train_images": noise(4, 28, 28, 1),
        "train_labels": np.array([9, 0, 1, 2]),
        "test_images": noise(2, 28, 28, 1),
        "test_labels": np.array([5, 5]),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            if value is None:
                continue
            if key.partition("_")[0] in ("train", "test"):
                file[key.replace("_", "/")] = value
            else:
                file.attrs[key] = value
    return path


def test_a_packed_file_is_read(tmp_path: Path) -> None:
    colour = noise(4, 32, 32, 3)
    data = packed.read(pack(tmp_path / "x.h5", train_images=colour), MINI)
    assert torch.equal(data.train.images, torch.from_numpy(colour).permute(0, 3, 1, 2))
    assert data.train.labels.tolist() == [9, 0, 1, 2]
    assert (data.test.images[:, 2, 2:30, 2:30].numpy() == noise(2, 28, 28, 1)[..., 0]).all()
    assert data.class_names == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "expected kdcache-packed 1, got other 1"),
        ({"format": None}, "got None 1"),
        ({"version": 2}, "got kdcache-packed 2"),
        ({"class_names": ["a"]}, "expected 10 names, got 1"),
        ({"class_names": None}, "got 0"),
        ({"test_labels": None}, "no array test/labels"),
        ({"train_images": noise(4, 28, 28)}, "got uint8 (4, 28, 28)"),
        ({"train_images": noise(4, 28, 28, 2)}, "got uint8 (4, 28, 28, 2)"),
        ({"train_images": noise(0, 28, 28, 1), "train_labels": np.array([], int)}, "got uint8 (0, 28, 28, 1)"),
        ({"train_images": np.zeros((4, 28, 28, 1))}, "got float64"),
        ({"train_images": noise(4, 34, 28, 1)}, "got 34x28"),
        ({"train_images": noise(4, 27, 28, 1)}, "got 27x28"),
        ({"train_labels": np.arange(3)}, "got int64 (3,)"),
        ({"train_labels": np.zeros(4)}, "got float64 (4,)"),
        ({"train_labels": np.array([0, 1, 2, 10])}, "expected 0 to 9, got 0 to 10"),
        ({"train_labels": np.array([0, 1, 2, -1])}, "got -1 to 2"),
    ],
)
def test_a_packed_file_with_other_content_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = pack(tmp_path / "x.h5", **changes)
    message = refusal(lambda: packed.read(path, MINI))
    assert words in message
    assert str(path) in message


def test_a_missing_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    assert "no such file" in refusal(lambda: packed.read(path, MINI))
    path.write_bytes(SHIPPED.read_bytes()[:1_000_000])
    assert "truncated" in refusal(lambda: packed.read(path, MINI))
    path.write_bytes(b"not HDF5")
    assert str(path) in refusal(lambda: packed.read(path, MINI))


def test_damaged_pixels_are_refused(tmp_path: Path) -> None:
    path, content = tmp_path / "x.h5", bytearray(SHIPPED.read_bytes())
    with h5py.File(SHIPPED) as file:
        chunk = file["train/images"].id.get_chunk_info(0)
    start = chunk.byte_offset + chunk.size // 2
    content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    assert f"could not read {path}" in refusal(lambda: packed.read(path, MINI))


# Writing


def source(kind: str, root: Path) -> Dataset:
    if kind == "images of one size":
        return read("fashion-mini")
    write_imagenet(root / "imagenet")
    return read("imagenet", root=root) if kind == "imagenet" else read(f"folder:{root}/imagenet")


@pytest.mark.parametrize("kind", ["images of one size", "imagenet", "folder"])
def test_a_packed_dataset_equals_its_source(kind: str, tmp_path: Path) -> None:
    data, path = source(kind, tmp_path), tmp_path / "packed.h5"
    write(data, path)
    again = read(f"hdf5:{path}")
    for part in ("train", "test"):
        one, other = getattr(data, part), getattr(again, part)
        assert one.fingerprint == other.fingerprint
        assert one.labels.equal(other.labels)
        samples = torch.tensor([5, 0, 5, len(one) - 1])
        assert one.take(samples).equal(other.take(samples))
        if kind == "imagenet":
            words = np.array([2**63, 12345 << 30, 3, 2**64 - 1], np.uint64)
            crops = [split.render(samples, [None], Crops(words, random_resized_box))[0] for split in (one, other)]
            assert crops[0].equal(crops[1])
    assert again.class_names == data.class_names
    for fact in packed.FACTS:
        assert getattr(again.card, fact) == getattr(data.card, fact)
    assert names_below(tmp_path) - names_below(tmp_path / "imagenet") >= {"packed.h5"}
    assert not draft_path(path).exists()


def test_a_packed_dataset_has_the_documented_layout(tmp_path: Path) -> None:
    data, path = source("imagenet", tmp_path), tmp_path / "packed.h5"
    write(data, path)
    with h5py.File(path) as file:
        blob, offsets = file["train/blob"][()], file["train/offsets"][()]
        assert file["train/blob"].chunks is None
        pictures = sorted((tmp_path / "imagenet/train").rglob("*.JPEG"))
        assert blob.tobytes() == b"".join(picture.read_bytes() for picture in pictures)
        assert np.diff(offsets).tolist() == [picture.stat().st_size for picture in pictures]
        assert file["class_names"].asstr()[()].tolist() == list(data.class_names)
        assert file["train"].attrs["fingerprint"] == data.train.fingerprint
    write(read("fashion-mini"), path)  # replaces it
    with h5py.File(path) as file:
        assert (file["train/images"].shape, file["train/images"].dtype) == ((6000, 32, 32, 3), np.uint8)
        assert file["train/images"].chunks is None


def test_packed_image_files_can_be_resized_and_arrays_cannot(tmp_path: Path) -> None:
    data, path = source("imagenet", tmp_path), tmp_path / "packed.h5"
    write(data, path)
    smaller = load(f"hdf5:{path}", image_size=64)
    assert smaller.train.take(torch.tensor([0])).shape == (1, 3, 64, 64)
    assert smaller.train.fingerprint == read("imagenet", root=tmp_path, image_size=64).train.fingerprint
    assert smaller.train.fingerprint != data.train.fingerprint
    write(read("fashion-mini"), path)
    assert "expected 32, got 64" in refusal(lambda: load(f"hdf5:{path}", image_size=64))


def test_a_file_without_a_card_has_the_card_of_a_folder(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.h5", train_images=noise(4, 40, 40, 3), test_images=noise(2, 40, 40, 3))
    data = load(f"hdf5:{path}")
    assert (data.image_size, data.card.padding, data.num_classes) == (40, 5, 10)


@pytest.mark.parametrize(
    ("array", "value", "words"),
    [
        ("offsets", [0, 5, 3, 10**15], "rising offsets"),
        ("offsets", [], "rising offsets"),
        ("card", '{"image_size": 100000000, "padding": 4}', "card of"),
        ("card", "[]", "card of"),
        ("labels", [0, 1], "labels of"),
    ],
)
def test_a_packed_dataset_with_impossible_claims_is_refused(
    array: str, value: object, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.h5"
    write(source("imagenet", tmp_path), path)
    with h5py.File(path, "r+") as file:
        if array == "card":
            file.attrs["card"] = value
        else:
            del file[f"train/{array}"]
            file[f"train/{array}"] = np.array(value, np.int64)
    assert words in refusal(lambda: load(f"hdf5:{path}"))


def die_at(call: int) -> None:
    """Kill this process at the given system call that writes, syncs or renames."""
    left = [call]

    def counted(of: Callable[..., object]) -> Callable[..., object]:
        def called(*words: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return of(*words)

        return called

    for name in ("pwrite", "fsync", "replace"):
        setattr(os, name, counted(getattr(os, name)))


def test_a_killed_pack_leaves_no_file_and_is_completed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = source("imagenet", tmp_path)
    monkeypatch.setattr("kdcache.datasets.pack.SYNC_BYTES", 4096)
    write(data, tmp_path / "whole.h5")  # hashes everything
    whole, killed = (tmp_path / "whole.h5").read_bytes(), 0
    for call in (*range(12), *range(12, 200, 11)):
        path = tmp_path / f"{call}.h5"
        child = os.fork()
        if child == 0:
            die_at(call)
            write(data, path)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
        else:
            killed += 1
            assert not path.exists()
        write(data, path)
        assert path.read_bytes() == whole
        path.unlink()
    assert killed > 12


def test_an_interrupted_pack_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = source("imagenet", tmp_path), tmp_path / "packed.h5"
    monkeypatch.setattr("kdcache.datasets.pack.SYNC_BYTES", 4096)
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(data, path, progress)
    assert not path.exists()
    first, total = calls[-1], sum(file.stat().st_size for file in (tmp_path / "imagenet").rglob("*.JPEG"))
    reads: list[int] = []
    of = Files.read

    def counted(self: Files, picture: int, max_bytes: int) -> bytes:
        reads.append(len(of(self, picture, max_bytes)))
        return of(self, picture, max_bytes)

    monkeypatch.setattr(Files, "read", counted)
    write(data, path)
    assert sum(reads) == total - first
    assert read(f"hdf5:{path}").train.take(torch.arange(24)).equal(data.train.take(torch.arange(24)))


def test_a_draft_of_other_content_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "packed.h5"
    write(source("imagenet", tmp_path), tmp_path / "other.h5")
    (tmp_path / "other.h5").rename(draft_path(path))
    data = read("fashion-mini")
    write(data, path)
    assert read(f"hdf5:{path}").train.fingerprint == data.train.fingerprint


def test_an_image_that_changes_during_packing_is_noticed(tmp_path: Path) -> None:
    data, path = source("imagenet", tmp_path), tmp_path / "packed.h5"
    picture = next((tmp_path / "imagenet/val").rglob("*.JPEG"))
    changed = bytearray(picture.read_bytes())
    changed[-20] ^= 1

    def progress(done: int, total: int) -> None:
        picture.write_bytes(changed)

    assert str(picture) in refusal(lambda: write(data, path, progress), KdcacheError)
    assert not path.exists()
    assert "does not exist" in refusal(lambda: write(data, tmp_path / "no" / "x.h5"))


# Checking


def test_a_sound_dataset_has_no_problems(tmp_path: Path) -> None:
    data = source("folder", tmp_path)
    assert check(data.card.name).problems == []
    write(data, tmp_path / "x.h5")
    assert check(f"hdf5:{tmp_path}/x.h5").problems == []


def test_damage_of_a_packed_file_is_found(tmp_path: Path) -> None:
    data, path = source("folder", tmp_path), tmp_path / "x.h5"
    write(data, path)
    with h5py.File(path) as file:
        start, offsets = file["train/blob"].id.get_offset(), file["train/offsets"][()]
    content = bytearray(path.read_bytes())
    content[start + offsets[7] : start + offsets[7] + 30] = bytes(30)
    path.write_bytes(content)
    problems = check(f"hdf5:{path}").problems
    assert len(problems) == 2
    assert f"picture 7 of {path}/train" in problems[0]
    assert "fingerprint of train" in problems[1]


def alter(path: Path, place: int = -20) -> None:
    """Change a byte of a file that keeps its size and its time of modification, as rsync and tar do."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def forget_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file's stamp be its size, as if nothing else that the system records had changed."""
    monkeypatch.setattr("kdcache.datasets.sources._stamp", lambda state: (state.st_size, 0, 0, 0))


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_a_change_that_keeps_size_and_time_is_noticed(kind: str, tmp_path: Path) -> None:
    """By the time of change, which programs that copy files cannot set."""
    data = source("folder", tmp_path)
    name, changed = data.card.name, next((tmp_path / "imagenet/val").rglob("*_1.JPEG"))
    if kind == "packed":
        changed = tmp_path / "x.h5"
        name = f"hdf5:{changed}"
        write(data, changed)
    place = -20
    if kind == "packed":
        with h5py.File(changed) as file:
            place = file["test/blob"].id.get_offset() + 700
    before = read(name)
    fingerprints = before.train.fingerprint, before.test.fingerprint
    alter(changed, place)
    after = read(name)
    assert after.train.fingerprint == fingerprints[0]
    assert after.test.fingerprint != fingerprints[1]


@pytest.mark.parametrize("kind", ["folder", "imagenet", "packed"])
def test_a_change_without_a_trace_is_noticed_when_the_image_is_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_changes(monkeypatch)
    changed, place = None, -20
    data = source("imagenet" if kind == "imagenet" else "folder", tmp_path)
    given: dict[str, object] = {"name": data.card.name, "root": tmp_path, "image_size": 32, "workers": 0}
    if kind == "packed":
        changed = tmp_path / "x.h5"
        write(data, changed)
        given["name"] = f"hdf5:{changed}"
        with h5py.File(changed) as file:
            place = file["train/blob"].id.get_offset() + file["train/offsets"][4] - 20
    loaded = load(**given)  # type: ignore[arg-type]
    loaded.hash()
    changed = changed or sorted((tmp_path / "imagenet/train").rglob("*.JPEG"))[3]
    alter(changed, place)

    def decode_again() -> None:
        again = load(**given)  # type: ignore[arg-type]
        again.hash()
        again.train.take(torch.arange(24))

    message = refusal(decode_again, KdcacheError)
    assert "is not the picture that was hashed" in message
    assert ("picture 3 of" if kind == "packed" else changed.name) in message
    if kind == "imagenet":  # it is noticed in a training that runs, too
        assert "is not the picture" in refusal(lambda: loaded.train.take(torch.tensor([3])), KdcacheError)


def test_a_change_without_a_trace_is_found_by_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_changes(monkeypatch)
    data = source("folder", tmp_path)
    before = data.train.fingerprint
    picture = next((tmp_path / "imagenet/train").rglob("*_3.JPEG"))
    alter(picture)
    assert read(data.card.name).train.fingerprint == before
    (line,) = check(data.card.name).problems
    assert str(picture) in line
    assert read(data.card.name).train.fingerprint != before


def test_counts_are_compared_with_the_card(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "imagenet")
    problems = check("imagenet", root=tmp_path).problems
    assert [line for line in problems if "1281167" in line or "50000" in line] == problems
    assert len(problems) == 2


def test_each_image_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = source("folder", tmp_path)
    reads: list[str] = []
    of = Files.read

    def counted(self: Files, picture: int, max_bytes: int) -> bytes:
        reads.append(self.name(picture))
        return of(self, picture, max_bytes)

    monkeypatch.setattr(Files, "read", counted)
    first = data.train.fingerprint
    assert len(reads) == 24
    assert read(data.card.name).train.fingerprint == first
    assert len(reads) == 24
    picture = next((tmp_path / "imagenet/train").rglob("*_3.JPEG"))
    picture.write_bytes(jpeg(50, 50))
    assert read(data.card.name).train.fingerprint != first
    assert reads[24:] == [str(picture)]
    picture.rename(picture.with_name("another.JPEG"))
    assert read(data.card.name).train.fingerprint != first


def test_a_damaged_manifest_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = source("folder", tmp_path)
    first = data.train.fingerprint
    for content in (b"", b"no archive"):
        (manifest,) = (tmp_path / "cache" / "kdcache").iterdir()
        manifest.write_bytes(content)
        assert read(data.card.name).train.fingerprint == first
    assert Manifest.load(datasets.read(data.card.name).train.pictures).entries["digest"].any(1).all()  # type: ignore[arg-type]


def test_a_cache_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file or a folder in its place, no home folder, an unknown user: hashes are then computed at each start."""
    data = source("folder", tmp_path)
    fingerprints = data.train.fingerprint, data.test.fingerprint
    (tmp_path / "file").touch()
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where no user has a home folder
    for number, cache in enumerate((tmp_path / "file", tmp_path / "file" / "deep", Path("~nobody/x"), None)):
        if cache is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        manifest._say_once.cache_clear()
        caplog.clear()
        again = load(data.card.name)
        assert (again.train.fingerprint, again.test.fingerprint) == fingerprints, number
        (line,) = [record.message for record in caplog.records]
        assert line.startswith("hashes of images are not kept, so that the next start hashes them again: got ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (manifest._file(data.train.pictures.source.place)).mkdir(parents=True)  # type: ignore[union-attr]
    assert load(data.card.name).train.fingerprint == fingerprints[0]


def train(root: Path) -> None:
    settings: dict[str, object] = {"data_root": root, "image_size": 32, "model": "resnet8", "epochs": 1}
    settings |= {"device": "cpu", "batch_size": 9, "workers": 0, "val_fraction": 0.25, "out": root / "run"}
    train_teacher(TeacherConfig.load(dataset="imagenet", **settings))


def test_a_training_hashes_all_its_images(tmp_path: Path) -> None:
    data = source("imagenet", tmp_path)
    train(tmp_path)
    for split in (data.train, data.test):
        assert split.pictures is not None
        assert Manifest.load(split.pictures).entries["digest"].any(1).all()
    assert json.loads((tmp_path / "run/environment.json").read_text())["origin"]["test set"]


def test_a_training_stops_where_a_test_image_has_changed_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_changes(monkeypatch)
    source("imagenet", tmp_path).hash()
    changed = sorted((tmp_path / "imagenet/val").rglob("*.JPEG"))[4]
    alter(changed)
    assert f"{changed} is not the picture that was hashed" in refusal(lambda: train(tmp_path), KdcacheError)
