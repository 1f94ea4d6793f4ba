"""The values that settings may take, and what each needs. Nothing here imports torch.

The names of networks are those of ``data/model_sizes.json``, which `data/make_model_sizes.py` writes; datasets have
their own table in `kdcache.cards`.
"""

import importlib.resources
import json
from typing import NamedTuple

__all__ = [
    "AUGMENTATIONS",
    "BAD_IMAGES",
    "CACHES",
    "CRITERIA",
    "DEVICES",
    "FOLDER_PREFIX",
    "HDF5_PREFIX",
    "IMAGE_SIZES",
    "LOSSES",
    "MAX_CLASSES",
    "MIXES",
    "MODELS",
    "MODEL_PREFIXES",
    "PRECISIONS",
    "STORE_DTYPES",
    "Augmentation",
    "Criterion",
    "LossInfo",
    "ModelSize",
]

FOLDER_PREFIX, HDF5_PREFIX = "folder:", "hdf5:"
"""Prefixes of the user's own datasets; the path of a folder or of a packed file follows."""

BAD_IMAGES = ("error", "skip")
"""What to do about an image file that cannot be decoded."""

IMAGE_SIZES = (32, 1024)
"""Smallest and largest image size of a network, in pixels."""

MAX_CLASSES = 2**20
"""A file that claims more classes than this is refused."""

DEVICES = ("auto", "cpu", "cuda", "mps")

PRECISIONS = ("float32", "bfloat16")
"""Precision of networks."""


class ModelSize(NamedTuple):
    """The size of a network for 100 classes and 32x32 images.

    Attributes
    ----------
    parameters : int
        Trainable parameters.
    multiply_adds : int
        Of convolutions and linear layers, per image.
    """

    parameters: int
    multiply_adds: int


def _model_sizes() -> dict[str, ModelSize]:
    text = (importlib.resources.files("kdcache.data") / "model_sizes.json").read_text("utf-8")
    return {name: ModelSize(**size) for name, size in json.loads(text).items()}


MODELS = _model_sizes()
"""The networks of kdcache."""

MODEL_PREFIXES = (("torchvision:", "NAME"), ("timm:", "NAME"), ("python:", "MODULE:CALLABLE"))
"""Prefixes of external networks, with what follows."""


class LossInfo(NamedTuple):
    """What a loss reads, and its published weight."""

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

STORE_DTYPES = ("float16", "float32")
"""Precision of stored logits."""

CACHES = ("auto", "off", "clean", "standard", "replay")
"""Which of the teacher's logits are stored."""


class Criterion(NamedTuple):
    """Which logits a pick criterion reads."""

    teacher: bool
    student: bool


CRITERIA = {
    "kld": Criterion(teacher=True, student=True),
    "teacher-entropy": Criterion(teacher=True, student=False),
    "student-entropy": Criterion(teacher=False, student=True),
    "random": Criterion(teacher=False, student=False),
}


MIXES = ("mixup", "cutmix", "cutout", "autoaugment", "trivialaugment")
"""What makes an x' of x: mixing with another image, or a strong augmentation."""


class Augmentation(NamedTuple):
    """The views of an image: crop and flip make x; each mix makes one x' of x, and some of the x' may be picked.

    Attributes
    ----------
    crop_flip : bool
    mixes : tuple of str
        Items of `MIXES`, one for each x'.
    pick : str or None
        A key of `CRITERIA`; ``None``: the student is trained on every x'.
    keep : float
        Fraction of the x' of a step that is picked: half, the paper's N_p = N/2.
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
"""The augmentations that are not sums of mixes."""
