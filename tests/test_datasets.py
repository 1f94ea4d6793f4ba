"""Datasets: cards, the shipped dataset, splits, and images held out for validation."""

import hashlib
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.datasets import CARDS, Dataset, Split, card_of, load
from tests.samples import noise, refusal

SHIPPED = Path(str(files("kdcache.data"))) / "fashion-mini.h5"
MINI = CARDS["fashion-mini"]


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load("fashion-mini")


# Cards


def test_cards_are_read_without_torch() -> None:
    script = "import sys, kdcache.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["", "imagenette", "folder:", "hdf5:", "Fashion-Mini"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    message = refusal(lambda: load(name))
    assert all(word in message for word in (*CARDS, "folder:PATH", repr(name)))


def test_only_folders_have_another_image_size() -> None:
    assert card_of("cifar10", 32) is CARDS["cifar10"]
    assert "expected 32, got 64" in refusal(lambda: card_of("cifar10", 64))
    for stated, size, shorter_side in ((None, 160, 182), (224, 224, 256), (40, 40, 45)):
        own = card_of("folder:x", stated)
        assert (own.image_size, own.shorter_side, own.padding) == (size, shorter_side, None)
        padded = card_of("folder:x", stated, "padded")
        assert (padded.image_size, padded.shorter_side, padded.padding) == (size, None, size // 8)
    assert card_of("imagenet", 40, "padded").padding == 5
    assert "whose images have one size" in refusal(lambda: card_of("cifar10", crop="resized"))
    assert "got 0" in refusal(lambda: card_of("folder:x", 0))


# The shipped dataset


def test_the_shipped_file_is_the_described_one(mini: Dataset) -> None:
    text = SHIPPED.with_suffix(".md").read_text()
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() in text
    for value in (MINI.mean[0], MINI.std[0]):
        assert f"{value:.4f}" in text
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


def test_shipped_images_are_padded_and_gray(mini: Dataset) -> None:
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


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (["cat", "caf\udce9"], ["cat", "caf\udce9"], r"expected UTF-8, got 'caf\udce9'. Rename the class."),
        (["cat", "caf\u00e9"], ["cat", "cafe\u0301"], r"got 'caf\xe9' and 'cafe\u0301', which look the same"),
        (["caf\u00e9", "cafe\u0301"], ["caf\u00e9", "cafe\u0301"], "which look the same"),
        (["cat", "cat "], ["cat", "cat "], "got 'cat' and 'cat ', which look the same"),
        (["a b", "a\u00a0b"], ["a b", "a\u00a0b"], "which look the same"),
        (["a\nb", "cat"], ["a\nb", "cat"], r"expected text without control characters, got 'a\nb'. Rename the class."),
        (["a\u2028b", "cat"], ["a\u2028b", "cat"], "expected text without control characters"),
    ],
)
@pytest.mark.parametrize("reader", ["folder", "imagenet"])
def test_class_names_that_cannot_be_stored_or_told_apart_are_refused(
    train: list[str], val: list[str], words: str, reader: str, tmp_path: Path
) -> None:
    for part, names in (("train", train), ("val", val)):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "a.png").write_bytes(b"not decoded here")
    name = f"folder:{tmp_path}" if reader == "folder" else reader
    assert words in refusal(lambda: load(name, root=tmp_path, workers=0))


def test_packed_class_names_are_checked_too(tmp_path: Path) -> None:
    shutil.copy(SHIPPED, tmp_path / "packed.h5")
    with h5py.File(tmp_path / "packed.h5", "a") as file:
        del file.attrs["class_names"]
        file.attrs["class_names"] = ["caf\u00e9", "cafe\u0301", *"cdefghij"]
    assert "which look the same" in refusal(lambda: load(f"hdf5:{tmp_path / 'packed.h5'}", image_size=32))


def test_take_selects_samples() -> None:
    split = Split(torch.from_numpy(noise(5, 3, 4, 4)), torch.arange(5))
    samples = torch.tensor([3, 0, 3])
    assert torch.equal(split.take(samples), split.images[[3, 0, 3]])
    with pytest.raises(IndexError):
        split.take(torch.tensor([5]))


def test_the_fingerprint_depends_on_the_content_alone() -> None:
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


# Validation


def test_nothing_is_held_out_by_default(mini: Dataset) -> None:
    assert mini.val is None


def test_validation_holds_out_a_fraction_of_each_class_the_same_images_each_time(mini: Dataset) -> None:
    first, again = (load("fashion-mini", val_fraction=0.1) for _ in range(2))
    assert first.val is not None
    assert again.val is not None
    assert first.val.labels.bincount().tolist() == [60] * 10
    assert first.train.labels.bincount().tolist() == [540] * 10
    assert first.test.fingerprint == mini.test.fingerprint
    assert again.val.fingerprint == first.val.fingerprint
    assert again.train.fingerprint == first.train.fingerprint != mini.train.fingerprint

    def rows(split: Split) -> list[bytes]:
        return [image.numpy().tobytes() for image in split.images]

    assert sorted(rows(first.train) + rows(first.val)) == sorted(rows(mini.train))


def test_a_class_is_never_held_out_completely(mini: Dataset) -> None:
    message = refusal(lambda: load("fashion-mini", val_fraction=0.9999))
    assert "T-shirt/top" in message
    assert "got 600" in message


@settings(max_examples=10)
@given(st.sampled_from([0.02, 0.1, 0.35]), st.sampled_from([1.5, 2.0, 2.5]), st.sampled_from([0.0, 0.2]))
def test_a_fraction_of_each_class_is_a_subset_of_a_larger_fraction(fraction: float, times: float, kept: float) -> None:
    few, more = (
        load("fashion-mini", val_fraction=kept, train_fraction=share) for share in (fraction, fraction * times)
    )

    def images(split: Split) -> set[bytes]:
        return {image.numpy().tobytes() for image in split.images}

    assert few.train.labels.bincount().tolist() == [round(fraction * 600 * (1 - kept))] * 10
    assert images(few.train) < images(more.train)
    if few.val is not None and more.val is not None:
        assert few.val.fingerprint == more.val.fingerprint
        assert not images(few.train) & images(few.val)
