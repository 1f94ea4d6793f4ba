"""Small datasets in the layouts in which they are distributed."""

import hashlib
import io
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from kdcache.datasets import CARDS, load, read
from tests.samples import TINY_CLASSES, noise, refusal, write_imagenet, write_tiny

# torchvision's layouts


def write_cifar(root: Path, kind: type[CIFAR10], monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """Write CIFAR in its layout, with two images per file, and return the training images and labels."""
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
    assert harm.exists()  # the check above could have failed


@pytest.mark.parametrize(
    ("name", "folder"),
    [("fashion-mnist", "FashionMNIST/raw"), ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")],
)
def test_missing_files_name_the_folder_and_the_option(name: str, folder: str, tmp_path: Path) -> None:
    message = refusal(lambda: load(name, root=tmp_path))
    assert str(tmp_path / folder) in message
    assert "--download" in message


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
    """Write two classes, each image of one color, and return the dataset's name."""
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
    data = load(write_folder(tmp_path, test), image_size=32, crop="padded")
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


def test_folder_with_links(tmp_path: Path) -> None:
    """Links are followed, even two to the same folder, but not in a cycle."""
    name = write_folder(tmp_path / "data")
    before = len(load(name, crop="padded").train)
    (tmp_path / "more").mkdir()
    shutil.copy(next((tmp_path / "data/train/a").glob("*.*")), tmp_path / "more")
    for link in ("one", "two"):
        (tmp_path / "data/train/a" / link).symlink_to(tmp_path / "more")
    assert len(load(name, crop="padded").train) == before + 2
    (tmp_path / "more/there").symlink_to(tmp_path / "data/train/a/one")
    message = refusal(lambda: load(name, crop="padded"))
    assert "one/there links to a folder that contains it." in message
    (tmp_path / "more/there").unlink()
    (tmp_path / "more/there").symlink_to(tmp_path)
    assert "links to a folder that contains it" in refusal(lambda: load(name, crop="padded"))


def test_folder_prefers_val(tmp_path: Path) -> None:
    name = write_folder(tmp_path)
    (tmp_path / "test").mkdir()
    assert len(load(name, crop="padded").test) == 4
    assert load(name).image_size == 160


def test_folder_images_are_resized_and_cropped_centrally(tmp_path: Path) -> None:
    name = write_folder(tmp_path)
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 255  # the central square, black beyond
    Image.fromarray(wide).save(tmp_path / "train/b/1.png")
    Image.fromarray(wide.transpose(1, 0, 2).copy()).save(tmp_path / "train/b/2.png")
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    Image.fromarray(stripes).save(tmp_path / "train/a/deep/3.PNG")
    images = load(name, image_size=32, crop="padded").train.images
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
        (remove("*"), ["folders of", "train and val or test", "got none"]),
        (remove("val/*"), ["class folders of", "the same in train and val", "a, b"]),
        (remove("train/a/*"), ["without an image", "/train", "got a"]),
        (remove("val/b/*"), ["without an image", "/val", "got b"]),
        (lambda root: (root / "train").rename(root / "first"), ["train and val or test", "got first, val"]),
        (lambda root: (root / "val/b").rename(root / "val/c"), ["only in one of them: b, c"]),
        (remove("*/b"), ["at least 2", "got 1"]),
        (ruin("train/b/1.png", b"text"), ["could not decode", "train/b/1.png"]),
        (ruin("val/a/1.jpeg", b"\xff\xd8\xff\xe0"), ["could not decode", "val/a/1.jpeg"]),
        (ruin("val/a/1.jpeg", b""), ["could not decode", "val/a/1.jpeg"]),
        (
            lambda root: Image.fromarray(np.full((9, 9), 30000, np.uint16)).save(root / "train/b/2.png"),
            ["8 bits", "b/2.png"],
        ),
    ],
)
def test_folder_that_does_not_fit(act: Callable[[Path], object], words: list[str], tmp_path: Path) -> None:
    name = write_folder(tmp_path)
    act(tmp_path)
    message = refusal(lambda: load(name, crop="padded"))
    assert all(word in message for word in (*words, str(tmp_path)))


def test_folder_with_a_truncated_image(tmp_path: Path) -> None:
    name = write_folder(tmp_path)
    path = tmp_path / "train/b/1.png"
    Image.fromarray(noise(60, 60, 3)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert str(path) in refusal(lambda: load(name, crop="padded"))


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert f"{tmp_path}/no" in refusal(lambda: load(f"folder:{tmp_path}/no"))


# Tiny ImageNet


def test_tiny_imagenet_as_distributed(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    data = load("tiny-imagenet", root=tmp_path)
    assert (data.image_size, data.card.padding, data.card.mean[0]) == (64, 8, 0.485)
    assert data.train.images.shape == (200, 3, 64, 64)
    assert data.train.labels.tolist() == list(range(200))  # in the order of the IDs
    ranks = [sorted(TINY_CLASSES).index(TINY_CLASSES[place]) for place in (5, 0, 5)]
    assert data.test.labels.tolist() == ranks  # in the order of the annotations
    with Image.open(tmp_path / "tiny-imagenet-200/val/images/val_2.JPEG") as image:
        assert (data.test.images[1].permute(1, 2, 0).numpy() == np.asarray(image)).all()
    assert data.class_names[ranks[0]] == f"word {TINY_CLASSES[5][-3:]}"
    assert data.class_names[ranks[1]] == TINY_CLASSES[0]  # it is not in words.txt
    assert load("tiny-imagenet", root=tmp_path / "tiny-imagenet-200").train.fingerprint == data.train.fingerprint


def test_tiny_imagenet_that_does_not_fit(tmp_path: Path) -> None:
    folder, remedy = write_tiny(tmp_path), "kdcache data fetch tiny-imagenet"
    kept = (folder / "val/val_annotations.txt").read_text()
    assert remedy in refusal(lambda: load("tiny-imagenet", root=tmp_path / "elsewhere"))
    (folder / "val/images/val_2.JPEG").rename(folder / "gone")
    assert "got val_2.JPEG" in refusal(lambda: load("tiny-imagenet", root=tmp_path))
    (folder / "val/val_annotations.txt").write_text("val_2.JPEG\tn99999999\n")
    assert "line 1 of" in refusal(lambda: load("tiny-imagenet", root=tmp_path))
    (folder / "val/val_annotations.txt").unlink()
    assert "val_annotations.txt" in refusal(lambda: load("tiny-imagenet", root=tmp_path))
    (folder / "val/val_annotations.txt").write_text(kept)
    shutil.rmtree(folder / "train" / TINY_CLASSES[3])
    assert TINY_CLASSES[3] in refusal(lambda: load("tiny-imagenet", root=tmp_path))
    (folder / "wnids.txt").write_text(TINY_CLASSES[0])
    assert "expected 200 classes, got 1" in refusal(lambda: load("tiny-imagenet", root=tmp_path))


def write_batches(root: Path) -> dict[str, np.ndarray]:
    """Write the layout of the paper's authors: an array of objects, a row for each image and its label."""
    images = {"train": noise(5, 64, 64, 3), "val": noise(2, 64, 64, 3)}
    for part, pixels in images.items():
        (root / "tinyimagenet" / part).mkdir(parents=True)
        rows = np.empty((len(pixels), 2), object)
        for place, image in enumerate(pixels):
            rows[place] = image, (199 - place if part == "train" else np.int64(place))
        np.save(root / "tinyimagenet" / part / "batch.npy", rows, allow_pickle=True)
    return images


def test_tiny_imagenet_in_the_authors_layout(tmp_path: Path) -> None:
    images = write_batches(tmp_path)
    data = load("tiny-imagenet", root=tmp_path)
    assert (data.train.images.permute(0, 2, 3, 1).numpy() == images["train"]).all()
    assert (data.test.images.permute(0, 2, 3, 1).numpy() == images["val"]).all()
    assert data.train.labels.tolist() == [199, 198, 197, 196, 195]
    assert data.test.labels.tolist() == [0, 1]
    assert data.num_classes == 200


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_the_authors_layout_runs_no_code(tmp_path: Path) -> None:
    write_batches(tmp_path)
    path, harm = tmp_path / "tinyimagenet/train/batch.npy", tmp_path / "harm"
    rows = np.empty((1, 2), object)
    rows[0] = Harm(harm), 0
    np.save(path, rows, allow_pickle=True)
    message = refusal(lambda: load("tiny-imagenet", root=tmp_path))
    assert str(path) in message
    assert "mkdir" in message
    assert not harm.exists()
    np.load(path, allow_pickle=True)
    assert harm.exists()  # the check above could have failed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((3, 2)), "an array of float64"),
        (noise(2, 8, 8, 3), "an array of uint8"),
        (b"nothing", "could not read"),
    ],
)
def test_the_authors_layout_that_does_not_fit(content: np.ndarray | bytes, words: str, tmp_path: Path) -> None:
    write_batches(tmp_path)
    file = io.BytesIO()
    np.save(file, content)
    path = tmp_path / "tinyimagenet/train/batch.npy"
    path.write_bytes(content if isinstance(content, bytes) else file.getvalue())
    message = refusal(lambda: load("tiny-imagenet", root=tmp_path))
    assert words in message
    assert str(path) in message


# ImageNet


def test_imagenet_with_a_folder_for_each_class(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "imagenet")
    data = load("imagenet", root=tmp_path)
    assert (data.image_size, data.card.shorter_side, data.card.padding) == (224, 256, None)
    assert (len(data.train), len(data.test), data.num_classes) == (24, 9, 3)
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert data.class_names == ("n00000008", "n00000009", "n00000010")
    assert data.train.images is None
    assert data.train.take(torch.tensor([23, 0])).shape == (2, 3, 224, 224)
    assert len(load("imagenet", root=tmp_path / "imagenet", image_size=64).train) == 24
    assert load("imagenet", root=tmp_path, image_size=112).card.shorter_side == 128


def test_imagenet_names_its_classes(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "imagenet")
    (root / "LOC_synset_mapping.txt").write_text("n00000008 crane\nn00000009 tench, Tinca tinca\nn00000010 crane\n")
    names = read("imagenet", root=tmp_path).class_names
    assert names == ("crane (n00000008)", "tench", "crane (n00000010)")


def flatten(root: Path) -> list[int]:
    """Move the validation images into one folder, in a mixed order of classes, and return their labels."""
    files = sorted((root / "val").glob("*/*.JPEG"))
    order, labels = [3, 0, 6, 1, 7, 4, 2, 8, 5], []
    for number, place in enumerate(order, 1):
        labels.append(place // 3)
        files[place].rename(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    for folder in [path for path in (root / "val").iterdir() if path.is_dir()]:
        folder.rmdir()
    return labels


def write_kit(root: Path, labels: list[int]) -> Path:
    """Write the development kit, whose class numbers are not in alphabetical order."""
    savemat = pytest.importorskip("scipy.io").savemat
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    numbers = {0: 2, 1: 3, 2: 1}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, f"n{8 + label:08d}", f"word {label}, other", 0) for label, number in numbers.items()]
    savemat(kit / "meta.mat", {"synsets": np.array([*rows, (4, "n00099999", "parent", 3)], kind)[:, None]})
    truth = "".join(f"{numbers[label]}\n" for label in labels)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return kit


def test_imagenet_with_a_flat_validation_set(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "imagenet")
    folders = load("imagenet", root=tmp_path).test.take(torch.arange(9))
    labels = flatten(root)
    message = refusal(lambda: load("imagenet", root=tmp_path))
    assert "ILSVRC2012_validation_ground_truth.txt" in message
    assert str(root / "val") in message
    kit = write_kit(root, labels)
    data = load("imagenet", root=tmp_path)
    assert data.test.labels.tolist() == labels
    assert data.class_names == ("word 0", "word 1", "word 2")
    for label in range(3):
        flat = {data.test.take(torch.tensor([n])).numpy().tobytes() for n in range(9) if labels[n] == label}
        assert flat == {view.numpy().tobytes() for view in folders[3 * label : 3 * label + 3, None]}
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
    assert "got 2 lines" in refusal(lambda: load("imagenet", root=tmp_path))


def test_a_missing_or_incomplete_imagenet_is_refused(tmp_path: Path) -> None:
    message = refusal(lambda: load("imagenet", root=tmp_path))
    assert "kdcache data fetch imagenet" in message
    assert f"{tmp_path}/imagenet" in message
    root = write_imagenet(tmp_path / "imagenet")
    shutil.rmtree(root / "val" / "n00000009")
    assert "only in one of them: n00000009" in refusal(lambda: load("imagenet", root=tmp_path))
    shutil.rmtree(root / "val")
    assert "expected train and val or test, got train" in refusal(lambda: load("imagenet", root=tmp_path))
