"""Datasets: the shipped one, and files that the tests write in the real layouts."""

import hashlib
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from kdcache.datasets import CARDS, Dataset, Split, card_of, load, packed
from kdcache.errors import KdcacheError, UsageError

SHIPPED = Path(str(files("kdcache.data"))) / "fashion-mini.h5"
MINI = CARDS["fashion-mini"]


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load("fashion-mini")


def refusal(call: Callable[[], object], kind: type[KdcacheError] = UsageError) -> str:
    """Return the error's message, which must be one line."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


# Cards


def test_cards_are_read_without_torch() -> None:
    script = "import sys, kdcache.datasets.cards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["", "imagenet", "folder:", "Fashion-Mini"])
def test_unknown_name_lists_what_is_allowed(name: str) -> None:
    message = refusal(lambda: load(name))
    assert all(word in message for word in (*CARDS, "folder:PATH", repr(name)))


def test_image_size_is_for_folders() -> None:
    assert card_of("cifar10", 32) is CARDS["cifar10"]
    assert "allowed 32, given 64" in refusal(lambda: card_of("cifar10", 64))
    assert (card_of("folder:x").image_size, card_of("folder:x").padding) == (64, 8)
    assert (card_of("folder:x", 40).image_size, card_of("folder:x", 40).padding) == (40, 5)
    assert "given 0" in refusal(lambda: card_of("folder:x", 0))


# The shipped file


def test_shipped_file_is_the_one_of_its_card(mini: Dataset) -> None:
    text = SHIPPED.with_suffix(".md").read_text()
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() in text
    for figure in (MINI.mean[0], MINI.std[0]):
        assert f"{figure:.4f}" in text
    assert ", ".join(mini.class_names) in re.sub(r"\s+", " ", text)


def test_shipped_counts_and_shapes(mini: Dataset) -> None:
    assert mini.train.images.shape == (6000, 3, 32, 32)
    assert mini.test.images.shape == (10000, 3, 32, 32)
    assert mini.train.images.dtype == torch.uint8
    assert mini.train.labels.dtype == torch.int64
    assert mini.train.labels.bincount().tolist() == [600] * 10
    assert mini.test.labels.bincount().tolist() == [1000] * 10
    assert (len(mini.train), len(mini.test), mini.num_classes, mini.image_size) == (6000, 10000, 10, 32)
    assert mini.class_names[0] == "T-shirt/top"


def test_shipped_images_are_padded_grey(mini: Dataset) -> None:
    images = mini.train.images
    inner = images[:, :, 2:30, 2:30]
    assert images.sum() == inner.sum()
    assert (images == images[:, :1]).all()
    with h5py.File(SHIPPED) as file:
        assert (inner[:, 0].numpy() == file["train/images"][..., 0]).all()
        assert (np.diff(file["train/source_index"]) > 0).all()


def test_card_states_the_mean_and_deviation(mini: Dataset) -> None:
    images = mini.train.images.double() / 255
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor(MINI.mean).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.tensor(MINI.std).double(), atol=1e-4, rtol=0)


# Splits


def test_take_gives_the_rows_asked_for() -> None:
    split = Split(torch.from_numpy(noise(5, 3, 4, 4)), torch.arange(5))
    samples = torch.tensor([3, 0, 3])
    assert torch.equal(split.take(samples), split.images[[3, 0, 3]])
    with pytest.raises(IndexError):
        split.take(torch.tensor([5]))


def test_fingerprint_follows_the_content_alone() -> None:
    images, labels = torch.from_numpy(noise(5, 3, 4, 4)), torch.arange(5)
    first = Split(images, labels).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first)
    channels_last = images.clone(memory_format=torch.channels_last)
    assert Split(channels_last, labels.clone()).fingerprint == first

    pixel, label = images.clone(), labels.clone()
    pixel[4, 2, 3, 3] ^= 1
    label[4] = 0
    changed = [Split(pixel, labels), Split(images, label), Split(images.reshape(5, 3, 2, 8), labels)]
    assert len({first, *(split.fingerprint for split in changed)}) == 4


# Packed files


def pack(path: Path, **changes: object) -> Path:
    """Write a small packed file; an argument replaces an attribute or, as ``train_images``, an array."""
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


def test_packed_round_trip(tmp_path: Path) -> None:
    colour = noise(4, 32, 32, 3)
    data = packed.read(pack(tmp_path / "x.h5", train_images=colour), MINI)
    assert torch.equal(data.train.images, torch.from_numpy(colour).permute(0, 3, 1, 2))
    assert data.train.labels.tolist() == [9, 0, 1, 2]
    assert (data.test.images[:, 2, 2:30, 2:30].numpy() == noise(2, 28, 28, 1)[..., 0]).all()
    assert data.class_names == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "allowed kdcache-packed 1, given other 1"),
        ({"format": None}, "given None 1"),
        ({"version": 2}, "given kdcache-packed 2"),
        ({"class_names": ["a"]}, "allowed 10 names, given 1"),
        ({"class_names": None}, "given 0"),
        ({"test_labels": None}, "no array test/labels"),
        ({"train_images": noise(4, 28, 28)}, "given uint8 (4, 28, 28)"),
        ({"train_images": noise(4, 28, 28, 2)}, "given uint8 (4, 28, 28, 2)"),
        ({"train_images": noise(0, 28, 28, 1), "train_labels": np.array([], int)}, "given uint8 (0, 28, 28, 1)"),
        ({"train_images": np.zeros((4, 28, 28, 1))}, "given float64"),
        ({"train_images": noise(4, 34, 28, 1)}, "given 34x28"),
        ({"train_images": noise(4, 27, 28, 1)}, "given 27x28"),
        ({"train_labels": np.arange(3)}, "given int64 (3,)"),
        ({"train_labels": np.zeros(4)}, "given float64 (4,)"),
        ({"train_labels": np.array([0, 1, 2, 10])}, "allowed 0 to 9, given 0 to 10"),
        ({"train_labels": np.array([0, 1, 2, -1])}, "given -1 to 2"),
    ],
)
def test_packed_file_that_does_not_fit(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = pack(tmp_path / "x.h5", **changes)
    message = refusal(lambda: packed.read(path, MINI))
    assert words in message
    assert str(path) in message


def test_packed_file_that_is_missing_truncated_or_foreign(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    assert "no such file" in refusal(lambda: packed.read(path, MINI))
    path.write_bytes(SHIPPED.read_bytes()[:1_000_000])
    assert "truncated" in refusal(lambda: packed.read(path, MINI))
    path.write_bytes(b"not HDF5")
    assert str(path) in refusal(lambda: packed.read(path, MINI))


def test_packed_file_with_damaged_pixels(tmp_path: Path) -> None:
    path, content = tmp_path / "x.h5", bytearray(SHIPPED.read_bytes())
    with h5py.File(SHIPPED) as file:
        chunk = file["train/images"].id.get_chunk_info(0)
    start = chunk.byte_offset + chunk.size // 2
    content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    assert f"cannot read {path}" in refusal(lambda: packed.read(path, MINI))


# torchvision's layouts


def write_cifar(root: Path, kind: type[CIFAR10], monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """Write CIFAR in its own layout, with two images a file, and return the training images and labels."""
    folder, key = root / kind.base_folder, "fine_labels" if kind is CIFAR100 else "labels"
    folder.mkdir(parents=True)
    classes = 100 if kind is CIFAR100 else 10

    def put(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    pixels, labels, sums = [], [], []
    for number, (name, _) in enumerate([*kind.train_list, *kind.test_list]):
        pixels.append(noise(2, 3072) ^ np.uint8(number))
        labels.append([classes - 1 - number, number])
        sums.append([name, put(name, {"data": pixels[-1], key: labels[-1], "coarse_labels": [0, 0]})])
    names = [f"class {number}" for number in range(classes)]
    meta = {**kind.meta, "md5": put(kind.meta["filename"], {kind.meta["key"]: names})}
    monkeypatch.setattr(kind, "train_list", sums[:-1])
    monkeypatch.setattr(kind, "test_list", sums[-1:])
    monkeypatch.setattr(kind, "meta", meta)
    return np.concatenate(pixels[:-1]).reshape(-1, 3, 32, 32), [*chain(*labels[:-1])]


@pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_round_trip(name: str, kind: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = write_cifar(tmp_path, kind, monkeypatch)
    data = load(name, root=tmp_path)
    assert (data.train.images.numpy() == pixels).all()
    assert data.train.labels.tolist() == labels
    assert len(data.test) == 2
    assert data.num_classes == CARDS[name].classes
    assert data.class_names[9] == "class 9"


def test_cifar_pickles_are_checked_before_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, CIFAR100, monkeypatch)
    path = tmp_path / CIFAR100.base_folder / "test"
    harm = tmp_path / "harm"
    path.write_bytes(f"cos\nmkdir\n(V{harm}\ntR.".encode())  # a pickle that makes a folder
    message = refusal(lambda: load("cifar100", root=tmp_path))
    assert str(path.parent) in message
    assert "damaged" in message
    assert not harm.exists()
    with path.open("rb") as file:
        pickle.load(file)
    assert harm.exists()  # the check above was no empty one


@pytest.mark.parametrize(
    ("name", "folder"),
    [("fashion-mnist", "FashionMNIST/raw"), ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")],
)
def test_missing_files_name_the_folder_and_the_option(name: str, folder: str, tmp_path: Path) -> None:
    message = refusal(lambda: load(name, root=tmp_path))
    assert str(tmp_path / folder) in message
    assert "--download" in message


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("Error downloading:\nTried there, got:\nno route")

    monkeypatch.setattr(CIFAR100, "download", fail)
    message = refusal(lambda: load("cifar100", root=tmp_path, download=True), KdcacheError)
    assert "no route" in message


def write_fashion(root: Path) -> Path:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 10), ("t10k", 3)):
        images, labels = noise(count, 28, 28), bytes(9 - n for n in range(count))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels)
    return folder


def test_fashion_mnist_round_trip(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    data = load("fashion-mnist", root=tmp_path)
    assert data.train.images.shape == (10, 3, 32, 32)
    assert (data.train.images[:, 1, 2:30, 2:30].numpy() == noise(10, 28, 28)).all()
    assert data.train.labels.tolist() == list(range(9, -1, -1))
    assert data.test.labels.tolist() == [9, 8, 7]
    assert data.class_names == load("fashion-mini").class_names


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train-images-idx3-ubyte", struct.pack(">4i", 2051, 10, 28, 28) + bytes(100)),
        ("train-images-idx3-ubyte", b""),
        ("t10k-labels-idx1-ubyte", b"garbage!"),
        ("t10k-labels-idx1-ubyte", struct.pack(">2i", 2049, 2) + bytes(2)),
        ("t10k-labels-idx1-ubyte", struct.pack(">2i", 2049, 3) + bytes([1, 2, 77])),
    ],
)
def test_fashion_mnist_damaged(file: str, content: bytes, tmp_path: Path) -> None:
    folder = write_fashion(tmp_path)
    (folder / file).write_bytes(content)
    assert str(folder) in refusal(lambda: load("fashion-mnist", root=tmp_path))


# Folders of images


def write_folder(root: Path, test: str = "val") -> str:
    """Write two classes, each image of one colour, and return the dataset's name."""
    kinds: list[tuple[str, str, str, int | tuple[int, ...]]] = [
        ("b", "1.png", "RGB", (10, 20, 30)),
        ("b", "2.png", "L", 77),
        ("a", "deep/3.PNG", "RGBA", (200, 100, 50, 128)),
    ]
    for part in ("train", test):
        for label, name, mode, colour in kinds:
            path = root / part / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (50, 70), colour).save(path)
        Image.new("RGB", (70, 40), (250, 0, 0)).save(root / part / "a" / "1.jpeg", quality=95)
        (root / part / "a" / "notes.txt").write_text("no image")
    return f"folder:{root}"


@pytest.mark.parametrize("test", ["val", "test"])
def test_folder_round_trip(test: str, tmp_path: Path) -> None:
    data = load(write_folder(tmp_path, test), image_size=32)
    assert data.class_names == ("a", "b")
    assert data.card.classes == data.num_classes == 2
    assert data.train.images.shape == (4, 3, 32, 32)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.train.labels.dtype == torch.int64
    colours = torch.tensor([[250, 0, 0], [200, 100, 50], [10, 20, 30], [77, 77, 77]])
    off = (data.train.images.int() - colours[:, :, None, None]).abs().amax((1, 2, 3))
    assert off[0] <= 6  # JPEG
    assert off[1:].tolist() == [0, 0, 0]
    assert data.train.fingerprint == data.test.fingerprint


def test_folder_prefers_val(tmp_path: Path) -> None:
    name = write_folder(tmp_path)
    (tmp_path / "test").mkdir()
    assert len(load(name).test) == 4
    assert load(name).image_size == 64


def test_folder_images_are_resized_and_cropped_centrally(tmp_path: Path) -> None:
    name = write_folder(tmp_path)
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 255  # the central square, black beyond
    Image.fromarray(wide).save(tmp_path / "train/b/1.png")
    Image.fromarray(wide.transpose(1, 0, 2).copy()).save(tmp_path / "train/b/2.png")
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    Image.fromarray(stripes).save(tmp_path / "train/a/deep/3.PNG")
    images = load(name, image_size=32).train.images
    assert (images[2:, :, 1:-1, 1:-1] == 255).all()
    assert (images[1, :, 2:-2].int() - 100).abs().max() <= 1  # antialiased


def ruin(path: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / path).write_bytes(content)


def remove(pattern: str) -> Callable[[Path], object]:
    def act(root: Path) -> None:
        for path in list(root.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (remove("*"), ["folders of", "train and val or test", "given none"]),
        (remove("val/*"), ["classes of", "the same in train and val", "a, b"]),
        (remove("train/a/*"), ["no image for some classes", "/train", "given a"]),
        (remove("val/b/*"), ["no image for some classes", "/val", "given b"]),
        (lambda root: (root / "val").rename(root / "valid"), ["train and val or test", "given train, valid"]),
        (lambda root: (root / "val/b").rename(root / "val/c"), ["only in one: b, c"]),
        (remove("*/b"), ["2 folders or more", "given 1"]),
        (ruin("train/b/1.png", b"text"), ["cannot read", "train/b/1.png"]),
        (ruin("val/a/1.jpeg", b"\xff\xd8\xff\xe0"), ["cannot read", "val/a/1.jpeg"]),
        (ruin("val/a/1.jpeg", b""), ["cannot read", "val/a/1.jpeg"]),
        (
            lambda root: Image.fromarray(np.full((9, 9), 30000, np.uint16)).save(root / "train/b/2.png"),
            ["8 bits", "b/2.png"],
        ),
    ],
)
def test_folder_that_does_not_fit(act: Callable[[Path], object], words: list[str], tmp_path: Path) -> None:
    name = write_folder(tmp_path)
    act(tmp_path)
    message = refusal(lambda: load(name))
    assert all(word in message for word in (*words, str(tmp_path)))


def test_folder_with_a_truncated_image(tmp_path: Path) -> None:
    name = write_folder(tmp_path)
    path = tmp_path / "train/b/1.png"
    Image.fromarray(noise(60, 60, 3)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert str(path) in refusal(lambda: load(name))


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert f"{tmp_path}/no" in refusal(lambda: load(f"folder:{tmp_path}/no"))
