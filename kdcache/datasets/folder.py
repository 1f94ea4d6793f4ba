"""A dataset of the user's own: a folder of image files for each class."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from kdcache.datasets import Dataset, Split
from kdcache.datasets.cards import Card
from kdcache.errors import UsageError, fault, first_line
from kdcache.words import FOLDER

__all__ = ["load", "read_image"]

_TESTS = ("val", "test")

# Pillow knows many more, of which some start other programs. A picture's name does not say what is in it.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")

_MOST_PIXELS = 2**26
"""Pixels of a picture, beyond which it is not decoded: a small file may claim to be huge."""
_SHOWN = 5


def load(card: Card, root: Path, download: bool) -> Dataset:
    """Read and decode a folder of images, all into memory; `root` and `download` are not needed.

    Parameters
    ----------
    card : Card
        Its name is ``folder:PATH``. PATH holds ``train`` and ``val``, or else ``test``; each holds a folder for each
        class, named alike in both. The classes are numbered in the order of their names.

    Returns
    -------
    Dataset
        The images as RGB (transparency is dropped), the shorter side resized to `card.image_size` pixels (bilinear,
        antialiased), then cropped to the central square.

    Raises
    ------
    UsageError
        If a folder is missing or empty, the classes differ or are fewer than two, or a file is no 8-bit image.
    """
    path = Path(card.name.removeprefix(FOLDER)).expanduser()
    if not path.is_dir():
        raise UsageError(fault(f"dataset folder {path}", allowed="an existing folder", given="none"))
    train = path / "train"
    test = next((path / name for name in _TESTS if (path / name).is_dir()), None)
    if not train.is_dir() or test is None:
        present = _listed(entry.name for entry in path.iterdir() if entry.is_dir())
        raise UsageError(
            fault(f"folders of {path}", allowed=f"train and {' or '.join(_TESTS)}", given=present or "none")
        )
    classes, test_classes = _classes(train), _classes(test)
    if odd := set(classes) ^ set(test_classes):
        raise UsageError(
            fault(
                f"classes of {path}", allowed=f"the same in train and {test.name}", given=f"only in one: {_listed(odd)}"
            )
        )
    if len(classes) < 2:
        raise UsageError(fault(f"classes of {train}", allowed="2 folders or more", given=len(classes)))
    listings = [_files(part, classes) for part in (train, test)]  # both before any image is decoded
    splits = [_decode(listing, card.image_size) for listing in listings]
    return Dataset(replace(card, classes=len(classes)), tuple(classes), *splits)


def _classes(part: Path) -> list[str]:
    try:
        return find_classes(part)[0]
    except FileNotFoundError:  # what torchvision says if there is none
        return []


def _files(part: Path, classes: list[str]) -> list[tuple[str, int]]:
    numbered = {name: label for label, name in enumerate(classes)}
    files = make_dataset(part, numbered, extensions=IMG_EXTENSIONS, allow_empty=True)
    if empty := set(range(len(classes))) - {label for _, label in files}:
        names = _listed(classes[label] for label in empty)
        raise UsageError(fault(f"no image for some classes of {part}", allowed=" ".join(IMG_EXTENSIONS), given=names))
    return files


def _decode(files: list[tuple[str, int]], size: int) -> Split:
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes without Python's lock
        decoded = pool.map(lambda file: read_image(file[0], size), files)
        for row, image in zip(images, decoded, strict=True):
            row.copy_(image)
    return Split(images, torch.tensor([label for _, label in files]))


def read_image(path: str, size: int) -> Tensor:
    """Read a picture as networks see it: (3, size, size) uint8, the central square of its shorter side resized."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {_MOST_PIXELS}")
            mode, rgb = image.mode, image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds at damaged files
        raise UsageError(fault(f"cannot read {path}", allowed="an image file", given=first_line(error))) from error
    if mode.startswith(("I", "F")):  # Pillow would clip these to white
        raise UsageError(fault(f"pixels of {path}", allowed="8 bits a channel", given=f"Pillow mode {mode}"))
    return pil_to_tensor(center_crop(resize(rgb, [size], InterpolationMode.BILINEAR, antialias=True), [size, size]))


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
