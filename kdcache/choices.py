"""Every word that a setting may take, and what it stands for; nothing here imports torch.

The modules that implement the words are checked against these tables by the tests.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

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
    "load",
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
    """How a loss is declared.

    Attributes
    ----------
    implementation : str
        ``module:class`` of its `kdcache.losses.DistillLoss`.
    reads : str
        ``labels``, ``logits`` of the teacher, or its ``features``.
    acts_on : str
        ``x``; ``each`` of x and x', apart; or ``pairs`` of x and x' of the same image.
    weight : float
        Its weight in the recipe that was published with it.
    """

    implementation: str
    reads: str
    acts_on: str = "x"
    weight: float = 1.0

    @property
    def teacher(self) -> bool:
        """Whether it needs a teacher."""
        return self.reads != "labels"

    @property
    def features(self) -> bool:
        """Whether it needs the features of both networks."""
        return self.reads == "features"


LOSSES = {
    "ce": LossInfo("kdcache.losses.terms:CrossEntropy", reads="labels"),
    "kd": LossInfo("kdcache.losses.terms:KnowledgeDistillation", reads="logits", acts_on="each"),
    "dkd": LossInfo("kdcache.losses.terms:DecoupledKD", reads="logits"),
    "crd": LossInfo("kdcache.losses.crd:CRD", reads="features", weight=0.8),
    "sp": LossInfo("kdcache.losses.terms:SimilarityPreserving", reads="features", weight=3000.0),
    "at": LossInfo("kdcache.losses.terms:AttentionTransfer", reads="features", weight=1000.0),
    "fitnet": LossInfo("kdcache.losses.terms:FitNet", reads="features", weight=100.0),
    "rkd": LossInfo("kdcache.losses.terms:RelationalKD", reads="features"),
    "pkt": LossInfo("kdcache.losses.terms:ProbabilisticTransfer", reads="features", weight=30000.0),
    "cc": LossInfo("kdcache.losses.terms:CorrelationCongruence", reads="features", weight=0.02),
    "vid": LossInfo("kdcache.losses.terms:VariationalInformation", reads="features"),
    "nst": LossInfo("kdcache.losses.terms:NeuronSelectivity", reads="features", weight=50.0),
}

PRECISIONS = ("float32", "bfloat16")
"""Arithmetic of networks."""

STORE_DTYPES = ("float16", "float32")
"""Precision of stored answers."""

CACHES = ("auto", "off", "clean", "standard", "replay")


class Criterion(NamedTuple):
    """How a pick criterion is declared.

    Attributes
    ----------
    implementation : str
        ``module:function`` that scores `kdcache.selection.Candidates`.
    teacher, student : bool
        Whether it reads the teacher's logits of the candidates, and the student's.
    """

    implementation: str
    teacher: bool
    student: bool


CRITERIA = {
    "kld": Criterion("kdcache.selection:kl_divergence_score", teacher=True, student=True),
    "teacher-entropy": Criterion("kdcache.selection:teacher_entropy_score", teacher=True, student=False),
    "student-entropy": Criterion("kdcache.selection:student_entropy_score", teacher=False, student=True),
    "random": Criterion("kdcache.selection:random_score", teacher=False, student=False),
}


MIXES = {
    "mixup": "kdcache.views.mixes:MIXUP",
    "cutmix": "kdcache.views.mixes:CUTMIX",
    "cutout": "kdcache.views.mixes:CUTOUT",
    "autoaugment": "kdcache.views.mixes:AUTOAUGMENT",
    "trivialaugment": "kdcache.views.mixes:TRIVIALAUGMENT",
}
"""What makes an x' of an x, a mix with another image or a strong augmentation: ``module:name`` of its `Mix`."""


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


@cache
def load(implementation: str) -> Any:
    """Import what a table names as ``module:name``."""
    module, _, name = implementation.partition(":")
    return getattr(import_module(module), name)


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
