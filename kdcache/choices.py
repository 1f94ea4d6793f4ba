"""The values that settings may take, and what each needs. Nothing here imports torch.

The names of networks are those of ``data/model_sizes.json``, which `data/make_model_sizes.py` writes; datasets have
their own table in `kdcache.cards`.
"""

import importlib.resources
import json
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from kdcache.errors import problem
from kdcache.extensions import PYTHON_PREFIX, Registry

__all__ = [
    "AUGMENTATIONS",
    "BAD_IMAGES",
    "CACHES",
    "CRITERIA",
    "CROPS",
    "CUSTOM_MODELS",
    "DEVICES",
    "EXPORT_FORMATS",
    "FOLDER_PREFIX",
    "HDF5_PREFIX",
    "HF_PREFIX",
    "IMAGE_SIZES",
    "INTERPOLATIONS",
    "LOSSES",
    "MAX_CLASSES",
    "MAX_PIXELS",
    "MIXES",
    "MODELS",
    "MODEL_PREFIXES",
    "ONNX_MODELS",
    "PRECISIONS",
    "PYTHON_FORM",
    "SHIPPED",
    "STORE_DTYPES",
    "TORCHVISION_PREFIX",
    "TRACKERS",
    "Augmentation",
    "Criterion",
    "CustomCode",
    "ExportFormat",
    "LossInfo",
    "MixInfo",
    "ModelSize",
    "TrackerInfo",
]

SHIPPED = "shipped"
"""The name of the teacher that ships with kdcache, where weights are named."""

FOLDER_PREFIX, HDF5_PREFIX = "folder:", "hdf5:"
"""Prefixes of the user's own datasets; the path of a folder or of a packed file follows."""

HF_PREFIX, TORCHVISION_PREFIX = "hf:", "torchvision:"
"""Prefixes of datasets of Hugging Face, by name or folder, and of torchvision's, by name."""

BAD_IMAGES = ("error", "skip")
"""What to do about an image file that cannot be decoded."""

CROPS = ("resized", "padded")
"""Random crop of x: a part of the picture, resized; or a crop of the padded clean view."""

IMAGE_SIZES = (32, 1024)
"""Smallest and largest image size of a network, in pixels."""

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""How pictures are resized, in Pillow's names."""

MAX_PIXELS = 2**26
"""Pixels above which a picture is not decoded, by default."""

MAX_CLASSES = 2**20
"""A file that claims more classes than this is refused."""

DEVICES = ("auto", "cpu", "cuda", "mps")

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
"""Precision of networks. In tf32, weights and activations are float32, and products have the precision of TF32."""


class ModelSize(NamedTuple):
    """The size of a network for some number of classes and size of images.

    Attributes
    ----------
    parameters : int
        Trainable parameters.
    multiply_adds : int
        Of convolutions, linear layers and attention, per image.
    """

    parameters: int
    multiply_adds: int


def _model_sizes() -> dict[str, ModelSize]:
    text = (importlib.resources.files("kdcache.data") / "model_sizes.json").read_text("utf-8")
    return {name: ModelSize(**size) for name, size in json.loads(text).items()}


MODELS = _model_sizes()
"""The networks of kdcache."""

PYTHON_FORM = (PYTHON_PREFIX, "MODULE:CALLABLE")
"""The address of the user's own code, see `kdcache.extensions`."""

ONNX_MODELS = ("onnx:",)
"""Prefix of the names of networks in ONNX files, which only ``teacher-load`` makes."""

MODEL_PREFIXES = (("torchvision:", "NAME"), ("timm:", "NAME"), PYTHON_FORM)
"""Prefixes of external networks, with what follows."""


class CustomCode(NamedTuple):
    """How a network or a dataset of the user's own code is declared: by its address alone."""

    implementation: str


CUSTOM_MODELS = Registry("model", CustomCode, MODELS)
"""Networks that the user's code has registered."""


Reads = Literal["labels", "logits", "vectors", "features"]
ActsOn = Literal["x", "each", "pairs"]


@dataclass(frozen=True)
class LossInfo:
    """How a loss is declared.

    Attributes
    ----------
    implementation : str
        ``module:class`` of its `kdcache.losses.DistillLoss`.
    reads : str
        ``labels``; of the teacher, ``logits``, the ``vectors`` that its last layer reads, or its ``features``, which
        are known for x alone.
    acts_on : str
        ``x``; ``each`` of x and x', apart; or ``pairs`` of x and x' of the same image.
    weight : float
        Its weight in its published recipe.
    cross_entropy : float
        The weight of cross-entropy beside it there; 0 for a loss that has a cross-entropy of its own.
    needs_labels : bool
        Whether it has no meaning for an image without a label, whose label is -1.

    Raises
    ------
    ValueError
        If it reads or acts on something else.
    """

    implementation: str
    reads: Reads
    acts_on: ActsOn = "x"
    weight: float = 1.0
    cross_entropy: float = 1.0
    needs_labels: bool = False

    def __post_init__(self) -> None:
        for field, value, known in (("reads", self.reads, Reads), ("acts_on", self.acts_on, ActsOn)):
            if value not in get_args(known):
                expected = f"one of {', '.join(get_args(known))}"
                raise ValueError(problem(f"{field} of {self.implementation}", expected=expected, got=value))
        if self.features and self.acts_on != "x":
            what = f"acts_on of {self.implementation}, which reads features"
            raise ValueError(problem(what, expected="x", got=self.acts_on))

    @property
    def teacher(self) -> bool:
        """Whether it needs a teacher."""
        return self.reads != "labels"

    @property
    def features(self) -> bool:
        """Whether it needs the features of both networks."""
        return self.reads == "features"

    @property
    def vectors(self) -> bool:
        """Whether it needs the vectors of both networks."""
        return self.reads == "vectors"


LOSSES = Registry("loss", LossInfo)
LOSSES |= {
    "ce": LossInfo("kdcache.losses.terms:CrossEntropy", reads="labels"),
    "kd": LossInfo("kdcache.losses.terms:KnowledgeDistillation", reads="logits", acts_on="each"),
    "dkd": LossInfo("kdcache.losses.target_class:DecoupledKD", reads="logits", acts_on="each"),
    "dist": LossInfo("kdcache.losses.dist:DIST", reads="logits", acts_on="each", weight=2.0),
    "nkd": LossInfo("kdcache.losses.target_class:NormalizedKD", reads="logits", acts_on="each"),
    "rld": LossInfo("kdcache.losses.target_class:RefinedLogits", reads="logits", acts_on="each", needs_labels=True),
    "ofa": LossInfo("kdcache.losses.target_class:OneForAll", reads="logits", acts_on="each"),
    "ttm": LossInfo("kdcache.losses.temperature:TransformedMatching", reads="logits", acts_on="each", weight=45.0),
    "wttm": LossInfo("kdcache.losses.temperature:WeightedMatching", reads="logits", acts_on="each", weight=4.0),
    "ctkd": LossInfo(
        "kdcache.losses.temperature:CurriculumTemperature",
        reads="logits",
        acts_on="each",
        weight=0.9,
        cross_entropy=0.1,
    ),
    "mlkd": LossInfo("kdcache.losses.mlkd:MultiLevelKD", reads="logits", acts_on="pairs", cross_entropy=0.0),
    "mlkd-one-view": LossInfo(
        "kdcache.losses.mlkd:OneViewMultiLevelKD", reads="logits", acts_on="each", weight=0.9, cross_entropy=0.1
    ),
    "crld": LossInfo("kdcache.losses.crld:CrossViewKD", reads="logits", acts_on="pairs", cross_entropy=0.0),
    "crd": LossInfo("kdcache.losses.crd:CRD", reads="vectors", weight=0.8, needs_labels=True),
    "sp": LossInfo("kdcache.losses.terms:SimilarityPreserving", reads="features", weight=3000.0),
    "at": LossInfo("kdcache.losses.terms:AttentionTransfer", reads="features", weight=1000.0),
    "fitnet": LossInfo("kdcache.losses.terms:FitNet", reads="features", weight=100.0),
    "embed": LossInfo("kdcache.losses.terms:EmbeddingDistillation", reads="vectors", acts_on="each"),
    "rkd": LossInfo("kdcache.losses.terms:RelationalKD", reads="vectors", acts_on="each"),
    "pkt": LossInfo("kdcache.losses.terms:ProbabilisticTransfer", reads="vectors", acts_on="each", weight=30000.0),
    "cc": LossInfo("kdcache.losses.terms:CorrelationCongruence", reads="vectors", acts_on="each", weight=0.02),
    "vid": LossInfo("kdcache.losses.terms:VariationalInformation", reads="features"),
    "nst": LossInfo("kdcache.losses.terms:NeuronSelectivity", reads="features", weight=50.0),
}

STORE_DTYPES = ("float16", "float32")
"""Precision of stored logits and vectors."""

STORE_FORMATS = ("auto", "logits", "vectors")
"""What is stored of a view: logits, or the vectors from which they follow; with ``auto`` as the losses need it."""

CACHES = ("auto", "off", "clean", "standard", "replay")
"""Which of the teacher's logits are stored."""


class Criterion(NamedTuple):
    """How a pick criterion is declared.

    Attributes
    ----------
    implementation : str
        ``module:function`` that scores `kdcache.selection.Candidates`.
    teacher, student : bool
        Whether it reads the teacher's logits of the candidates, and the student's.
    needs_labels : bool
        Whether it has no meaning for an image without a label, whose label is -1.
    """

    implementation: str
    teacher: bool
    student: bool
    needs_labels: bool = False


CRITERIA = Registry("pick", Criterion)
CRITERIA |= {
    "kld": Criterion("kdcache.selection:kl_divergence_score", teacher=True, student=True),
    "teacher-entropy": Criterion("kdcache.selection:teacher_entropy_score", teacher=True, student=False),
    "student-entropy": Criterion("kdcache.selection:student_entropy_score", teacher=False, student=True),
    "random": Criterion("kdcache.selection:score_at_random", teacher=False, student=False),
}


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


class MixInfo(NamedTuple):
    """How a mix is declared.

    Attributes
    ----------
    implementation : str
        ``module:function`` that makes the `kdcache.views.mixes.Mix`; its parameters are the options of the mix.
    takes_partner : bool
        Whether x' is made from two images; if not, the label stays.
    """

    implementation: str
    takes_partner: bool = True


MIXES = Registry("aug", MixInfo, AUGMENTATIONS)
MIXES |= {
    "mixup": MixInfo("kdcache.views.mixes:make_mixup"),
    "cutmix": MixInfo("kdcache.views.mixes:make_cutmix"),
    "cutout": MixInfo("kdcache.views.erasing:make_cutout", takes_partner=False),
    "erasing": MixInfo("kdcache.views.erasing:make_erasing", takes_partner=False),
    "autoaugment": MixInfo("kdcache.views.policies:make_autoaugment", takes_partner=False),
    "randaugment": MixInfo("kdcache.views.policies:make_randaugment", takes_partner=False),
    "trivialaugment": MixInfo("kdcache.views.policies:make_trivialaugment", takes_partner=False),
}
"""What makes an x' of x: mixing with another image, or a strong augmentation. Options: `kdcache.config.augs`."""


class ExportFormat(NamedTuple):
    """A format in which a network is exported.

    Attributes
    ----------
    suffix : str
        Of the file; none for a folder.
    build : str
        ``module:function`` that converts a network, see `kdcache.models.export.Build`.
    run : str
        ``module:function`` that computes probabilities by the file, see `kdcache.models.export.Run`.
    extra : str or None
        Of ``pip install 'kdcache[EXTRA]'``, if other packages are needed.
    """

    suffix: str
    build: str
    run: str
    extra: str | None = None


_EXPORT = "kdcache.models.export_formats"

EXPORT_FORMATS = {
    "safetensors": ExportFormat(".safetensors", f"{_EXPORT}:build_safetensors", f"{_EXPORT}:run_predictor"),
    "onnx": ExportFormat(".onnx", f"{_EXPORT}:build_onnx", f"{_EXPORT}:run_predictor", "onnx"),
    "torch-export": ExportFormat(".pt2", f"{_EXPORT}:build_torch_export", f"{_EXPORT}:run_torch_export"),
    "openvino": ExportFormat("", f"{_EXPORT}:build_openvino", f"{_EXPORT}:run_openvino", "openvino"),
}
"""The formats of ``kdcache export``."""


class TrackerInfo(NamedTuple):
    """An experiment tracker.

    Attributes
    ----------
    implementation : str
        ``module:class``, a `kdcache.report.trackers.Tracker`.
    package : str
        The library that it needs; it is installed by the extra of the tracker's name.
    """

    implementation: str
    package: str


TRACKERS = {
    "tensorboard": TrackerInfo("kdcache.report.tensorboard:TensorBoard", "tensorboard"),
    "wandb": TrackerInfo("kdcache.report.wandb:Wandb", "wandb"),
    "trackio": TrackerInfo("kdcache.report.wandb:Trackio", "trackio"),
    "mlflow": TrackerInfo("kdcache.report.mlflow:Mlflow", "mlflow"),
}
"""What ``--track`` records a training in, besides the run folder."""
