"""Arrays, image files and datasets that several test modules use, and the messages of errors."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.errors import KdcacheError, UsageError


def refusal(call: Callable[[], object], kind: type[KdcacheError] = UsageError) -> str:
    """Return the error's message, which must be one line."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def jpeg(width: int, height: int, shade: int = 0) -> bytes:
    """Encode an image of noise around a shade of gray."""
    pixels = (noise(height, width, 3) // 4 + shade).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


CLASSES = ("bright", "dark", "striped")


def write_pictures(root: Path) -> Path:
    """Write a folder dataset of three easy classes, each with 30 training and 10 test images of 32x32 pixels."""
    generator = np.random.Generator(np.random.Philox(5))
    for split, count in (("train", 30), ("val", 10)):
        for shade, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 90, (32, 32, 3)) + 60 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def write_unlabelled(root: Path, count: int = 24) -> Path:
    """Write images like those of `write_pictures` into a folder, every third one into a folder inside."""
    generator = np.random.Generator(np.random.Philox(6))
    (root / "more").mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 90, (32, 32, 3)) + 60 * (number % 3)
        folder = root / "more" if number % 3 == 0 else root
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return root


def small_settings(pictures: Path) -> dict[str, object]:
    """Settings of a training on these images that takes a second."""
    images = {"dataset": f"folder:{pictures}", "image_size": 32, "crop": "padded"}
    recipe = {"epochs": 1, "batch_size": 32, "optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4}
    schedule = {"schedule": "steps", "warmup_epochs": 0.0}
    return {**images, **recipe, **schedule, "model": "resnet8", "device": "cpu", "precision": "float32"}


def write_imagenet(root: Path, train: int = 8, val: int = 3, classes: int = 3) -> Path:
    """Write a dataset in ImageNet's layout: images of different sizes, a folder for each class."""
    number = 0
    for part, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / part / f"n{10 - label:08d}"
            folder.mkdir(parents=True)
            for place in range(count):
                number += 1
                data = jpeg(40 + number * 7 % 60, 40 + number * 11 % 50, 60 * label)
                (folder / f"{folder.name}_{place}.JPEG").write_bytes(data)
    return root


TINY_CLASSES = [f"n{(number * 77) % 200 + 1:08d}" for number in range(200)]
"""In the order of ``wnids.txt``, which is not alphabetical."""


def write_tiny(root: Path) -> Path:
    """Write Tiny ImageNet as it is distributed, with one training image per class and three validation images."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(TINY_CLASSES) + "\n")
    (folder / "words.txt").write_text("".join(f"{wnid}\tword {wnid[-3:]}, other\n" for wnid in TINY_CLASSES[1:]))
    for label, wnid in enumerate(sorted(TINY_CLASSES)):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text("no picture")
        (images / f"{wnid}_0.JPEG").write_bytes(jpeg(64, 64, label % 190))
    lines = []
    for number, wnid in ((10, TINY_CLASSES[5]), (2, TINY_CLASSES[0]), (1, TINY_CLASSES[5])):
        (folder / "val" / "images" / f"val_{number}.JPEG").write_bytes(jpeg(64, 64, number))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


BAD = ("zero.jpg", "text.jpg", "cut.jpg", "deep.png")
"""Bad images that `spoil` adds."""


def spoil(folder: Path) -> None:
    """Add four image files that cannot be decoded, and one in CMYK that can."""
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "cut.jpg").write_bytes(jpeg(60, 60)[:800])
    Image.fromarray(np.full((50, 50), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("CMYK", (50, 60), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=95)


def names_below(root: Path) -> set[str]:
    """Relative paths of all files in a folder."""
    return {os.path.relpath(path, root) for path in root.rglob("*") if path.is_file()}
