"""Every word that a setting may take, and what it stands for; nothing here imports torch.

The modules that implement the words are checked against these tables by the tests.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "AUGMENTATIONS",
    "BAD_IMAGES",
    "CACHES",
    "CRITERIA",
    "DATASETS",
    "FOLDER_PREFIX",
    "HDF5_PREFIX",
    "IMAGE_SIZES",
    "LOSSES",
    "MAX_CLASSES",
    "MIXES",
    "MODELS",
    "MODEL_PREFIXES",
    "PRECISIONS",
    "RESIZABLE_DATASETS",
    "STORE_DTYPES",
    "Augmentation",
    "Criterion",
    "LossInfo",
    "OneOf",
    "SumOf",
    "comma_list",
]

DATASETS = {
    "fashion-mini": "mini",
    "fashion-mnist": "mini",
    "cifar10": "cifar100",
    "cifar100": "cifar100",
    "tiny-imagenet": "tiny-imagenet",
    "imagenet": "imagenet",
}
"""Each dataset by name, and the preset in ``configs/`` that it is trained with by default."""

FOLDER_PREFIX, HDF5_PREFIX = "folder:", "hdf5:"
"""What the name of a dataset of the user's own starts with; the path of its folder, or of its one file, follows."""

RESIZABLE_DATASETS = ("imagenet",)
"""Datasets with a name whose pictures can be brought to any size."""

BAD_IMAGES = ("error", "skip")
"""What to do about a picture that cannot be read."""

IMAGE_SIZES = (32, 1024)
"""Least and largest side of the images of a network, in pixels."""

MAX_CLASSES = 2**20
"""More classes than this no file is believed to have."""

MODELS = (
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4"),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("ResNet50", "MobileNetV2", "ShuffleV1", "ShuffleV2"),
)


MODEL_PREFIXES = (("torchvision:", "NAME"), ("timm:", "NAME"), ("python:", "MODULE:CALLABLE"))
"""What the name of a network from elsewhere starts with."""


class LossInfo(NamedTuple):
    """What a loss reads, and its weight in the recipe that was published with it."""

    teacher: bool
    features: bool
    weight: float


LOSSES = {
    "ce": LossInfo(teacher=False, features=False, weight=1.0),
    "kd": LossInfo(teacher=True, features=False, weight=1.0),
    "dkd": LossInfo(teacher=True, features=False, weight=1.0),
    "crd": LossInfo(teacher=True, features=True, weight=0.8),
    "sp": LossInfo(teacher=True, features=True, weight=3000.0),
    "at": LossInfo(teacher=True, features=True, weight=1000.0),
    "fitnet": LossInfo(teacher=True, features=True, weight=100.0),
    "rkd": LossInfo(teacher=True, features=True, weight=1.0),
    "pkt": LossInfo(teacher=True, features=True, weight=30000.0),
    "cc": LossInfo(teacher=True, features=True, weight=0.02),
    "vid": LossInfo(teacher=True, features=True, weight=1.0),
    "nst": LossInfo(teacher=True, features=True, weight=50.0),
}

PRECISIONS = ("float32", "bfloat16")
"""Arithmetic of networks."""

STORE_DTYPES = ("float16", "float32")
"""Precision of stored answers."""

CACHES = ("auto", "off", "clean", "standard", "replay")


class Criterion(NamedTuple):
    """What a pick criterion reads."""

    teacher: bool
    student: bool


CRITERIA = {
    "kld": Criterion(teacher=True, student=True),
    "teacher-entropy": Criterion(teacher=True, student=False),
    "student-entropy": Criterion(teacher=False, student=True),
    "random": Criterion(teacher=False, student=False),
}


MIXES = ("mixup", "cutmix", "cutout", "autoaugment", "trivialaugment")
"""What makes an x' of an x: a mix with another image, or a strong change of the one."""


class Augmentation(NamedTuple):
    """What happens to an image: crop and flip make x; one x' is made of it for each mix, and the best may be picked.

    Attributes
    ----------
    crop_flip : bool
    mixes : tuple of str
        Words of `MIXES`.
    pick : str or None
        A word of `CRITERIA`; without it, the student is trained on every x'.
    keep : float
        Share of the x' of a step that is picked: half, the paper's N_p = N/2.
    """

    crop_flip: bool = True
    mixes: tuple[str, ...] = ()
    pick: str | None = None
    keep: float = 0.5


AUGMENTATIONS = {
    "none": Augmentation(crop_flip=False),
    "standard": Augmentation(),
    "cutmix-pick": Augmentation(mixes=("cutmix",), pick="kld"),
}
"""The augmentations that are no sum of mixes."""


def comma_list(words: Iterable[str]) -> str:
    """Name the allowed words for an error or a help page."""
    return ", ".join(words)


@dataclass(frozen=True)
class OneOf:
    """Validate a setting that takes one of some words, or a beginning such as ``folder:`` with something behind it."""

    words: tuple[str, ...]
    beginnings: tuple[tuple[str, str], ...] = ()
    """Each with what stands behind it, for people."""

    def __call__(self, word: str) -> str:
        """Give back a word that is allowed; any other is a ``ValueError`` that lists them."""
        if word in self.words or any(word.startswith(start) and word != start for start, _ in self.beginnings):
            return word
        raise ValueError(comma_list(self.all_words()))

    def all_words(self) -> tuple[str, ...]:
        """Name what is allowed, for people."""
        return self.words + tuple(start + rest for start, rest in self.beginnings)


@dataclass(frozen=True)
class SumOf:
    """Validate a sum of different words, or a word that stands alone.

    Attributes
    ----------
    words : tuple of str
    example : str
        Of a sum; where its words have weights, they may have some.
    alone : tuple of str
    """

    words: tuple[str, ...]
    example: str
    alone: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        """Give back a text that can be read; any other is a ``ValueError`` that says how one looks."""
        if text in self.alone:
            return text
        parts = [part.partition(":") for part in text.split("+")]
        names = {name for name, _, _ in parts}
        weights = [weight for _, colon, weight in parts if colon]
        weighted = not weights or ":" in self.example
        if len(names) < len(parts) or not names <= set(self.words) or not (weighted and all(map(_is_weight, weights))):
            before = f"{comma_list(self.alone)}, or " if self.alone else ""
            raise ValueError(f"{before}a sum of different ones, as in {self.example}, of {comma_list(self.words)}")
        return text

    def all_words(self) -> tuple[str, ...]:
        """Name what is allowed, for people."""
        return (*self.alone, *self.words, self.example)


def _is_weight(text: str) -> bool:
    try:
        return 0 <= float(text) < 1e9
    except ValueError:
        return False
