"""What is known of each dataset before it is read. Nothing here imports torch."""

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kdcache.choices import FOLDER_PREFIX, HDF5_PREFIX, HF_PREFIX, PYTHON_FORM, TORCHVISION_PREFIX, CustomCode
from kdcache.errors import UsageError, did_you_mean, problem
from kdcache.extensions import Registry

__all__ = [
    "CARDS",
    "CUSTOM_DATASETS",
    "DATASET_PREFIXES",
    "Card",
    "Rendering",
    "canonical",
    "card_of",
    "check_normalization",
    "cropped",
    "resized",
    "same_dataset",
    "with_prefix",
]

DEFAULT_FOLDER_SIZE = 160
"""Image size of ``folder:PATH`` in pixels, unless ``--image-size`` gives another."""

PICTURES = "pictures"
"""Preset of datasets without a card of their own, which are taken to be pictures."""


@dataclass(frozen=True)
class Rendering:
    """How pictures of any size become the images of a network.

    Parameters
    ----------
    image_size : int
        Height and width of the images, in pixels.
    shorter_side : int
        For the clean view, the shorter side of a picture is resized to this many pixels before the center crop.
    interpolation : str
        Of resizing, one of `kdcache.choices.INTERPOLATIONS`.
    """

    image_size: int
    shorter_side: int
    interpolation: str = "bilinear"

    @property
    def evaluation(self) -> str:
        """Describe the clean view."""
        how = "" if self.interpolation == "bilinear" else f" ({self.interpolation})"
        return f"shorter side resized to {self.shorter_side}{how}, center crop {self.image_size}x{self.image_size}"


@dataclass(frozen=True)
class Card:
    """The facts of a dataset.

    Parameters
    ----------
    name : str
        A key of `CARDS`, ``folder:PATH``, ``hdf5:FILE`` or ``python:MODULE:CALLABLE``.
    classes : int or None
        Number of classes; ``None`` if it is only known after reading.
    image_size : int
        Height and width of the training images, in pixels.
    padding : int or None
        Zero pixels on each side before the random crop. ``None``: x is a random crop of 8 to 100 % of the area with an
        aspect ratio of 3/4 to 4/3, resized (RandomResizedCrop; Szegedy et al. 2015, arXiv:1409.4842).
    mean, std : tuple of float
        Per channel (red, green, blue) over the training images, on a scale of 0 to 1.
    source, license : str
        Where the data come from, and their terms of use.
    reader : str
        Module of `kdcache.datasets` that reads the dataset.
    preset : str or None
        Preset in ``configs/`` that a training on this dataset uses by default.
    folders : tuple of str
        Possible locations below the data root.
    counts : tuple of int or None
        Training and test images of the complete dataset; ``None`` if unknown.
    shorter_side : int or None
        For the clean view, the shorter side of an image is resized to this many pixels before the center crop;
        ``None`` means `image_size`.
    interpolation : str
        Of resizing, one of `kdcache.choices.INTERPOLATIONS`.
    """

    name: str
    classes: int | None
    image_size: int
    padding: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    license: str
    reader: str = "folder"
    preset: str | None = None
    folders: tuple[str, ...] = ()
    counts: tuple[int, int] | None = None
    shorter_side: int | None = None
    interpolation: str = "bilinear"

    @property
    def rendering(self) -> Rendering:
        """How its pictures become images."""
        return Rendering(self.image_size, self.shorter_side or self.image_size, self.interpolation)

    def rendered(self, rendering: Rendering) -> "Card":
        """Return the card of the same pictures, rendered in another way."""
        return replace(self, **asdict(rendering))

    @property
    def training(self) -> str:
        """Describe the view x."""
        if self.padding is None:
            return f"random crop of 8 to 100 % of the area resized to {self.image_size}x{self.image_size}, flip"
        return f"random crop of the clean view padded by {self.padding}, flip"


_FASHION = "https://github.com/zalandoresearch/fashion-mnist"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_IMAGENET = "https://image-net.org"
_UNSTATED = "not stated by its authors"
_RESEARCH = "ImageNet's terms: non-commercial research and education"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGENET_SIZE, _IMAGENET_SHORTER_SIDE = 224, 256

#: The datasets that kdcache knows by name. Fashion-MNIST: statistics of the images zero-padded to 32x32.
CARDS = {
    card.name: card
    for card in (
        Card(
            *("fashion-mini", 10, 32, 4, (0.2176,) * 3, (0.3303,) * 3, _FASHION, "MIT"),
            reader="packed",
            preset="mini",
            counts=(6000, 10000),
        ),
        Card(
            *("fashion-mnist", 10, 32, 4, (0.2190,) * 3, (0.3318,) * 3, _FASHION, "MIT"),
            reader="vision",
            preset="mini",
            folders=("FashionMNIST/raw",),
            counts=(60000, 10000),
        ),
        Card(
            *("cifar10", 10, 32, 4, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _CIFAR, _UNSTATED),
            reader="vision",
            preset="cifar100",
            folders=("cifar-10-batches-py",),
            counts=(50000, 10000),
        ),
        Card(
            *("cifar100", 100, 32, 4, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), _CIFAR, _UNSTATED),
            reader="vision",
            preset="cifar100",
            folders=("cifar-100-python",),
            counts=(50000, 10000),
        ),
        Card(
            *("tiny-imagenet", 200, 64, 8, _IMAGENET_MEAN, _IMAGENET_STD, _TINY, _RESEARCH),
            reader="tiny",
            preset="tiny-imagenet",
            folders=("tiny-imagenet-200", "tiny-imagenet", "tinyimagenet"),
            counts=(100000, 10000),
        ),
        Card(
            *("imagenet", None, _IMAGENET_SIZE, None, _IMAGENET_MEAN, _IMAGENET_STD, _IMAGENET, _RESEARCH),
            reader="imagenet",
            preset="imagenet",
            folders=("imagenet", "ILSVRC2012"),
            counts=(1281167, 50000),
            shorter_side=_IMAGENET_SHORTER_SIDE,
        ),
    )
}

CUSTOM_DATASETS = Registry("dataset", CustomCode, CARDS)
"""Datasets that the user's code has registered."""

DATASET_PREFIXES = (
    (FOLDER_PREFIX, "PATH"),
    (HDF5_PREFIX, "FILE"),
    (HF_PREFIX, "NAME"),
    (TORCHVISION_PREFIX, "NAME"),
    PYTHON_FORM,
)
"""Prefixes of the user's own datasets and of those of libraries, with what follows."""

NAMED = {
    f"{TORCHVISION_PREFIX}FashionMNIST": "fashion-mnist",
    f"{TORCHVISION_PREFIX}CIFAR10": "cifar10",
    f"{TORCHVISION_PREFIX}CIFAR100": "cifar100",
}
"""Datasets of torchvision that have a card, with its name."""


def canonical(name: str) -> str:
    """Spell the name of a dataset in one way: ``folder:base`` for ``folder:./base/``, and a home folder for ``~``."""
    if name.startswith(f"{HF_PREFIX}~"):
        return HF_PREFIX + os.path.expanduser(name.removeprefix(HF_PREFIX))
    prefix, path = _split_prefix(name)
    if not path:
        return NAMED.get(name, name)
    spelled = str(Path(os.path.expanduser(path)))
    if spelled.startswith("~") and not path.startswith("~"):
        spelled = f"./{spelled}"
    return prefix + spelled


def with_prefix(path: str) -> str | None:
    """Propose the name of a dataset for the path of a folder or file that is there."""
    is_packed = path.endswith((".h5", ".hdf5")) and os.path.isfile(path)
    prefix = FOLDER_PREFIX if os.path.isdir(path) else HDF5_PREFIX if is_packed else None
    return f"Did you mean {prefix}{path}?" if prefix else None


def same_dataset(name: str, other: str) -> bool:
    """Whether two names mean the same dataset, seen from the current folder."""
    (prefix, path), (other_prefix, other_path) = _split_prefix(canonical(name)), _split_prefix(canonical(other))
    return prefix == other_prefix and (path == other_path or os.path.realpath(path) == os.path.realpath(other_path))


def _split_prefix(name: str) -> tuple[str, str]:
    """Split ``folder:PATH`` and ``hdf5:FILE`` into the prefix and the path, which all other names lack."""
    prefix = next((prefix for prefix in (FOLDER_PREFIX, HDF5_PREFIX) if name.startswith(prefix)), name)
    return prefix, name.removeprefix(prefix)


def check_normalization(what: str, values: Any, is_divisor: bool) -> tuple[float, float, float]:
    """Check the mean or, if `is_divisor`, the standard deviation of each channel; `what` names it in the message."""
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError):
        red = green = blue = math.nan
    if not all(0 <= value <= 1 and (value or not is_divisor) for value in (red, green, blue)):
        remedy = "Divide values for pixels 0..255 by 255."
        expected = f"three numbers from 0 to 1{', none of them 0' if is_divisor else ''}"
        raise UsageError(problem(what, expected=expected, got=values, remedy=remedy))
    return red, green, blue


def card_of(name: str, image_size: int | None = None, crop: str | None = None) -> Card:
    """Find the card of a dataset by its name, without reading data.

    Parameters
    ----------
    name : str
        A key of `CARDS`, or ``folder:PATH``, which gets ImageNet's mean and std, and its crop.
    image_size : int, optional
        Height and width in pixels, for ``folder:PATH`` and ImageNet. Every other dataset has a fixed size.
    crop : str, optional
        One of `kdcache.choices.CROPS`, for the same datasets.

    Raises
    ------
    UsageError
        If the name is unknown, or the size or the crop does not fit the dataset.
    """
    if name in CARDS:
        return cropped(resized(CARDS[name], image_size), crop)
    name = canonical(name)
    path = name.removeprefix(FOLDER_PREFIX)
    if path in ("", name):
        known = ", ".join((*CARDS, *(prefix + rest for prefix, rest in DATASET_PREFIXES)))
        remedy = with_prefix(name) or did_you_mean(name, CARDS)
        raise UsageError(problem("unknown dataset", expected=f"one of {known}", got=repr(name), remedy=remedy))
    size = DEFAULT_FOLDER_SIZE
    card = Card(
        *(name, None, size, None, _IMAGENET_MEAN, _IMAGENET_STD, path, "the user's own"),
        shorter_side=_with_margin(size),
    )
    return cropped(resized(card, image_size), crop)


def resized(card: Card, image_size: int | None, encoded: bool = False) -> Card:
    """Give a card another image size.

    Parameters
    ----------
    card : Card
    image_size : int, optional
        Defaults to that of the card.
    encoded : bool
        Whether the dataset is known to consist of image files, which can be decoded at any size. A dataset without
        `padding` always does.

    Raises
    ------
    UsageError
        If the dataset has a fixed size, or the size is below 1.
    """
    if image_size in (None, card.image_size):
        return card
    if card.padding is not None and not encoded:
        raise UsageError(problem(f"image size of {card.name}", expected=card.image_size, got=image_size))
    if image_size < 1:
        raise UsageError(problem(f"requested image size of {card.name}", expected="at least 1 pixel", got=image_size))
    if card.padding is not None:
        return replace(card, image_size=image_size, padding=image_size // 8)
    return replace(card, image_size=image_size, shorter_side=_with_margin(image_size))


def cropped(card: Card, crop: str | None, encoded: bool = False) -> Card:
    """Give a card another kind of random crop, with the clean view that belongs to it.

    Parameters
    ----------
    card : Card
    crop : str, optional
        ``resized``: a random part of the picture, resized; ``padded``: a crop of the clean view padded by an eighth of
        its size. Defaults to that of the card.
    encoded : bool
        See `resized`.

    Raises
    ------
    UsageError
        If the dataset consists of images of one size.
    """
    if crop is None or (crop == "padded") == (card.padding is not None):
        return card
    if card.padding is not None and not encoded:
        raise UsageError(problem(f"--crop of {card.name}, whose images have one size", expected="padded", got=crop))
    if crop == "padded":
        return replace(card, padding=card.image_size // 8, shorter_side=None)
    return replace(card, padding=None, shorter_side=_with_margin(card.image_size))


def _with_margin(size: int) -> int:
    return size * _IMAGENET_SHORTER_SIDE // _IMAGENET_SIZE
