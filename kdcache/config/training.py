"""The settings of a teacher's training, and those that a student's has too."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, ValidationInfo, field_validator

from kdcache.cards import CARDS, CUSTOM_DATASETS, DATASET_PREFIXES, PICTURES, canonical
from kdcache.checked_files import read_toml
from kdcache.choices import (
    BAD_IMAGES,
    CROPS,
    CUSTOM_MODELS,
    DEVICES,
    FOLDER_PREFIX,
    HDF5_PREFIX,
    HF_PREFIX,
    IMAGE_SIZES,
    MAX_PIXELS,
    MODEL_PREFIXES,
    MODELS,
    ONNX_MODELS,
    PRECISIONS,
    TRACKERS,
)
from kdcache.config.optimization import MAX_COUNT, OptimizationConfig, known_epochs
from kdcache.config.settings import SET_BY_PRESET, Choice, Invalid, PlaceChoice, flag_of, setting
from kdcache.errors import problem

__all__ = ["Model", "TeacherConfig", "TrainingConfig", "recorded_images"]

Dataset = Annotated[
    str,
    AfterValidator(PlaceChoice(tuple(CARDS), DATASET_PREFIXES, CUSTOM_DATASETS)),
    AfterValidator(canonical),
]
Model = Annotated[str, AfterValidator(Choice(tuple(MODELS), MODEL_PREFIXES, CUSTOM_MODELS, ONNX_MODELS))]
Device = Annotated[str, AfterValidator(Choice(DEVICES))]
BadImages = Annotated[str, AfterValidator(Choice(BAD_IMAGES))]
Crop = Annotated[str, AfterValidator(Choice(CROPS))]
Tracker = Annotated[str, AfterValidator(Choice((*TRACKERS, "none")))]
Precision = Annotated[str, AfterValidator(Choice(("auto", *PRECISIONS)))]


class TrainingConfig(OptimizationConfig):
    """The settings of every training. Frozen; unknown keys are refused."""

    CODE: ClassVar[tuple[str, ...]] = ("dataset", "model")
    NOT_RECORDED = frozenset({"out", "overwrite", "download", "resume", "checkpoint_minutes"})
    CLI_ONLY = frozenset({"out", "overwrite", "download"})
    DOWNLOADED = frozenset({"init"})
    MAY_DIFFER_ON_RESUME: ClassVar[frozenset[str]] = frozenset({"data_root", "workers", "threads", "track"})
    """Recorded settings that may change when a run is resumed: they do not affect its results. The number of threads is
    compared with that of the run's environment, see `kdcache.setup.choose_compute`."""

    dataset: Dataset = setting("data", "fashion-mini", "Training images.")
    data_root: Path = setting("data", Path("datasets"), "Folder of the downloaded datasets.")
    download: bool = setting("data", False, "Download the dataset into the data root if it is missing.")
    image_size: int | None = setting(
        "data",
        None,
        "Resize images to this height and width, in pixels. For datasets of image files and imagenet. A student has "
        "that of the --teacher that is named, or another one where x is a random part of a picture.",
        shown="160, 224 for imagenet",
        ge=IMAGE_SIZES[0],
        le=IMAGE_SIZES[1],
    )
    crop: Crop | None = setting(
        "data",
        None,
        "Random crop of x, for the datasets of --image-size. resized: a random part of the picture, resized; padded: a "
        "crop of the clean view padded by an eighth of its size.",
        shown="resized",
    )
    on_bad_image: BadImages = setting("data", "error", "What to do about an image file that cannot be decoded.")
    max_pixels: int = setting(
        "data",
        MAX_PIXELS,
        "Pixels above which an image is not decoded, as it is stored or after its shorter side is resized.",
        ge=1,
        le=2**31,
    )
    val_fraction: float = setting(
        "data", 0.0, "Fraction of each class held out for validation, which then selects the best epoch.", ge=0, lt=1
    )
    train_fraction: float = setting("data", 1.0, "Fraction of each class to train on.", ge=0, le=1)
    workers: int | None = setting("data", None, "Processes that decode images.", shown="one per core", ge=0)
    model: Model = setting("network", "wrn_16_1", "Network to train.", shown=SET_BY_PRESET)
    features: tuple[str, ...] = setting(
        "network",
        (),
        "Modules of an external network whose outputs are its features, for losses on features; such as layer1,layer2.",
    )
    init: str | None = setting(
        "network",
        None,
        "Weights to start from: a run folder, a file as for teacher-load, or the name of published ones, which are "
        "downloaded: IMAGENET1K_V1 or DEFAULT for torchvision:NAME, timm:NAME.TAG, hf-hub:ORG/NAME. Other classes get "
        "a new head.",
        shown="random weights from --seed",
        min_length=1,
    )
    freeze_epochs: int = setting(
        "recipe", 0, "First epochs in which only the head of the network that --init gave weights is trained.", ge=0
    )
    patience: int | None = setting(
        "recipe",
        None,
        "Stop after this many evaluations without a better accuracy, on validation images if there are some.",
        shown="train all epochs",
        ge=1,
    )
    evaluate_every: int = setting(
        "run", 1, "Epochs between evaluations. The last epoch is always evaluated.", ge=1, le=MAX_COUNT
    )
    seed: int = setting("recipe", 0, "Seed of the initial weights, and of dropout.", ge=0, lt=2**63)
    device: Device = setting("run", "auto", "Device to compute on.")
    precision: Precision = setting(
        "run",
        "auto",
        "Precision of the networks: float32, tf32 (on GPUs), bfloat16, or float16, in which the loss is scaled. auto: "
        "bfloat16 if the hardware computes it, else float16 on GPUs with fast float16, else float32.",
    )
    threads: int | None = setting(
        "run",
        None,
        "Threads of torch, in each process. A resumed run keeps its number.",
        shown="OMP_NUM_THREADS, or else one per core",
        ge=1,
        le=MAX_COUNT,
    )
    compile: bool = setting(
        "run", False, "Train through torch.compile. The first step is slow; on CPUs it was never faster."
    )
    out: Path | None = setting("run", None, "Run folder.", shown="a new folder in runs/")
    overwrite: bool = setting("run", False, "Replace the run in the run folder.")
    resume: bool = setting(
        "run",
        False,
        "Resume the unfinished run in --out with its own settings, or without --out the newest run in runs/ with the "
        "same settings. Starts a new run if there is none.",
    )
    checkpoint_minutes: float = setting(
        "run", 10.0, "Minutes between checkpoints within an epoch. One is always written at its end.", gt=0
    )
    sync_batchnorm: bool = setting(
        "network", False, "Under torchrun, compute batch-norm statistics over all processes (CUDA only)."
    )

    track: tuple[Tracker, ...] = setting(
        "run",
        (),
        "Also record the training in an experiment tracker, see docs/trackers.md. May be repeated. Needs "
        "kdcache[wandb], kdcache[mlflow] and so on. A resumed run has those of the run; none ends them.",
    )

    @field_validator("out", "init", "teacher", "store", "answers", check_fields=False)
    @classmethod
    def _expand_home(cls, path: Path | str | None) -> Path | str | None:
        if path is None or not str(path).startswith("~"):
            return path
        expanded = os.path.expanduser(path)
        if str(expanded).startswith("~"):
            raise Invalid("the home folder of a user who exists, or ./ before ~")
        return type(path)(expanded)

    @field_validator("milestones", "features", "track", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("track")
    @classmethod
    def _check_track(cls, track: tuple[str, ...]) -> tuple[str, ...]:
        if "none" in track and len({*track}) > 1:
            raise Invalid("none, or trackers")
        return tuple(name for name in dict.fromkeys(track) if name != "none")

    @field_validator("freeze_epochs")
    @classmethod
    def _check_freeze_epochs(cls, freeze_epochs: int, info: ValidationInfo) -> int:
        if freeze_epochs and info.data.get("init") is None:
            raise Invalid("0 without --init, since random weights would be frozen")
        epochs = known_epochs(info)
        if epochs is not None and freeze_epochs > epochs:
            raise Invalid(f"at most the {epochs} epochs")
        return freeze_epochs

    @field_validator("image_size", "crop")
    @classmethod
    def _check_rendering(cls, value: int | str | None, info: ValidationInfo) -> int | str | None:
        card = CARDS.get(info.data.get("dataset", ""))
        if value is not None and card is not None and card.padding is not None:
            raise Invalid(
                f"no value for {card.name}, whose images are {card.image_size} pixels wide",
                "Only datasets of image files, such as folder:PATH and imagenet, can be resized.",
            )
        return value

    @classmethod
    @cache  # asked for each of many runs
    def in_group(cls, group: str) -> tuple[str, ...]:
        """Names of the settings of one group, see `kdcache.config.settings.GROUPS`."""
        declared: Any = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return tuple(name for name in declared if declared[name]["group"] == group)

    @property
    def downloads_init(self) -> bool:
        """Whether the weights that ``init`` names may be downloaded: the user asked for it, and not a file alone."""
        return self.download or "init" in self._downloadable

    @property
    def image_settings(self) -> dict[str, Any]:
        """The settings that say which images a run is about, as plain data."""
        return self.model_dump(mode="json", include=set(type(self).image_setting_names()))

    @classmethod
    def image_setting_names(cls) -> list[str]:
        """Names of the settings that say which images a run is about."""
        return [name for name in cls.in_group("data") if name not in ("download", "workers")]

    def evaluates_after(self, epoch: int) -> bool:
        """Whether the network is evaluated after an epoch, counted from 0."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs

    @classmethod
    def _preset(cls, given: Mapping[str, Any]) -> str | None:
        card = CARDS.get(str(given.get("dataset", cls.model_fields["dataset"].default)))
        return card.preset if card else PICTURES

    def differences(self, run: Self, moved: bool = False) -> list[str]:
        """List the settings with which a run cannot be resumed, a message for each.

        The number of epochs may differ, as long as the finished epochs would have had the same learning rates.

        Parameters
        ----------
        run : TrainingConfig
            The settings that the run was started with.
        moved : bool
            Whether a dataset of the user's own may be in another place. Its images are compared when it is read.
        """
        # A teacher may have been moved: its weights are compared, not its folder.
        free = self.NOT_RECORDED | self.MAY_DIFFER_ON_RESUME | {"teacher", "further_teachers"}
        if self.schedule == "steps":  # a cosine depends on the length of the training from its first step on
            free |= {"epochs", "steps"}
        elif self.steps is not None:
            free |= {"epochs"}
        found = []
        for name in type(self).model_fields.keys() - free:
            now, recorded = getattr(self, name), getattr(run, name)
            is_moved = moved and name in ("dataset", "unlabelled") and _is_path(now) and _is_path(recorded)
            if now != recorded and not is_moved:
                flag = flag_of(name, type(self).model_fields[name])
                found.append(problem(flag, expected=f"{recorded}, as in the run", got=now))
        return sorted(found)


class TeacherConfig(TrainingConfig):
    """Stage one: a teacher, trained with cross-entropy on standard views."""

    table = "teacher"
    USED_WHEN_LOADING: ClassVar[tuple[str, ...]] = (
        *("dataset", "data_root", "download", "image_size", "crop", "on_bad_image", "max_pixels", "val_fraction"),
        *("train_fraction", "workers", "device", "precision", "threads", "out", "overwrite"),
    )
    """Settings that apply to a teacher that is loaded instead of trained."""

    @field_validator("train_fraction")
    @classmethod
    def _require_labels(cls, train_fraction: float) -> float:
        if not train_fraction:
            raise Invalid("more than 0, since a teacher is trained on labels")
        return train_fraction


def _is_path(dataset: str | None) -> bool:
    return dataset is not None and dataset.startswith((FOLDER_PREFIX, HDF5_PREFIX, HF_PREFIX))


def recorded_images(file: Path) -> dict[str, Any]:
    """Read the settings of a run that say which images it is about, from its config file."""
    tables = [table for table in read_toml(file).values() if isinstance(table, dict)]
    return {name: table[name] for name in TrainingConfig.image_setting_names() for table in tables if name in table}
