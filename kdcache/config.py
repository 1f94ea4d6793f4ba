"""The experiment as data: every setting of a training, validated before any data are read.

A setting comes from three layers, the later ones first: the options given, the file or preset (``--config``; without
it the preset of the dataset), and the defaults stated here, which are the paper's where the paper names a value.
"""

import json
import re
from collections.abc import Mapping, Set
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from kdcache.choices import (
    AUGMENTATIONS,
    BAD_IMAGES,
    CACHES,
    CRITERIA,
    DATASETS,
    FOLDER_PREFIX,
    HDF5_PREFIX,
    IMAGE_SIZES,
    LOSSES,
    MIXES,
    MODEL_PREFIXES,
    MODELS,
    PRECISIONS,
    RESIZABLE_DATASETS,
    STORE_DTYPES,
    Augmentation,
    OneOf,
    SumOf,
    comma_list,
)
from kdcache.errors import UsageError, problem
from kdcache.presets import read_toml

__all__ = ["CONFIG_FILE", "StudentConfig", "TeacherConfig", "TrainingConfig", "expected_by"]

CONFIG_FILE = "config.toml"
"""Name of the settings in a run folder, see `kdcache.run.folder`."""

Dataset = Annotated[str, AfterValidator(OneOf(tuple(DATASETS), ((FOLDER_PREFIX, "PATH"), (HDF5_PREFIX, "FILE"))))]
Model = Annotated[str, AfterValidator(OneOf(MODELS, MODEL_PREFIXES))]
Aug = Annotated[str, AfterValidator(SumOf(tuple(MIXES), "cutmix+mixup", alone=tuple(AUGMENTATIONS)))]
Pick = Annotated[str, AfterValidator(OneOf(tuple(CRITERIA)))]
Loss = Annotated[str, AfterValidator(SumOf(tuple(LOSSES), "crd:0.8+kd"))]
Device = Annotated[str, AfterValidator(OneOf(("auto", "cpu", "cuda", "mps")))]
BadImages = Annotated[str, AfterValidator(OneOf(BAD_IMAGES))]
Cache = Annotated[str, AfterValidator(OneOf(CACHES))]
StoreType = Annotated[str, AfterValidator(OneOf(STORE_DTYPES))]
Scope = Annotated[str, AfterValidator(OneOf(("global", "rank")))]
Precision = Annotated[str, AfterValidator(OneOf(("auto", *PRECISIONS)))]

MOST = 10**6
"""More epochs than these, or images in a step, nobody means."""

# Control characters, of which NUL ends the name of a file, and bytes that were no UTF-8: no config file can hold them.
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class TrainingConfig(BaseModel):
    """What training a teacher and training a student have in common. Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    table: ClassVar[str]
    """The table of a config file that this kind of run reads, besides the keys at the top."""
    NOT_RECORDED: ClassVar[frozenset[str]] = frozenset({"out", "overwrite", "download", "resume", "checkpoint_minutes"})
    """Settings that say where and when to write or fetch, not what to train."""
    MAY_DIFFER_ON_RESUME: ClassVar[frozenset[str]] = frozenset({"data_root", "workers"})
    """Settings that may differ when a run is gone on with: they do not change what comes out."""
    CLI_ONLY: ClassVar[frozenset[str]] = frozenset({"out", "overwrite", "download"})
    """Settings that no file may have: it would decide what is written over, or that something is fetched."""

    dataset: Dataset = Field("fashion-mini", description="Images to train on.")
    data_root: Path = Field(Path("datasets"), description="Folder that holds downloaded datasets.")
    download: bool = Field(False, description="Fetch the dataset into the data root if it is missing.")
    image_size: int | None = Field(
        None,
        ge=IMAGE_SIZES[0],
        le=IMAGE_SIZES[1],
        description="Side to which pictures are brought, in pixels [folder: 64, imagenet: 224].",
    )
    on_bad_image: BadImages = Field("error", description="What to do about a picture that cannot be read.")
    val_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of each class to keep from training; best is then the best on these."
    )
    train_fraction: float = Field(1.0, gt=0, le=1, description="Share of each class to train on.")
    workers: int | None = Field(None, ge=0, description="Processes that decode pictures [one for each core].")
    model: Model = Field("wrn_16_1", description="Network to train.")
    features: tuple[str, ...] = Field(
        (), description="Modules of a network from elsewhere whose outputs are its features, as in layer1,layer2."
    )
    epochs: int = Field(24, ge=1, le=MOST, description="Passes over the training set.")
    batch_size: int = Field(64, ge=2, le=MOST, description="Images in a step.")
    lr: float = Field(0.05, gt=0, allow_inf_nan=False, description="Learning rate at the start.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False, description="Weight decay of SGD.")
    milestones: tuple[float, ...] = Field(
        (0.625, 0.75, 0.875), description="Shares of the epochs after which the learning rate falls."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Factor by which it falls there.")
    evaluate_every: int = Field(
        1, ge=1, le=MOST, description="Epochs from one evaluation to the next; the last epoch is always evaluated."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the initial weights.")
    device: Device = Field("auto", description="Where to compute.")
    precision: Precision = Field(
        "auto", description="Arithmetic of the networks; auto is bfloat16 where the hardware has it."
    )
    compile: bool = Field(
        False, description="Train the network through torch.compile: slow at first; on processors it did not pay."
    )
    out: Path | None = Field(None, description="Run folder [a new one under runs/].")
    overwrite: bool = Field(False, description="Replace the run that the run folder holds.")
    resume: bool = Field(
        False,
        description="Go on with the unfinished run in --out, whose settings hold [the newest under runs/ with the same "
        "settings]; where there is none, begin.",
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="Minutes after which a checkpoint is written, besides the one after each epoch."
    )
    sync_batchnorm: bool = Field(
        False, description="Under torchrun, normalize by the batches of all processes (CUDA alone)."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        is_flag = info.field_name is not None and cls.model_fields[info.field_name].annotation is bool
        if isinstance(value, bool) and not is_flag:
            raise ValueError("anything but true and false")
        texts = [str(text) for text in (value if isinstance(value, list | tuple) else [value])]
        if any(map(UNWRITABLE.search, texts)):
            raise ValueError("text without control characters")
        return value

    @field_validator("milestones", "features", mode="before")
    @classmethod
    def _split(cls, shares: Any) -> Any:
        return shares.split(",") if isinstance(shares, str) else shares

    @field_validator("milestones")
    @classmethod
    def _rising_shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
            raise ValueError("rising numbers between 0 and 1")
        return shares

    @field_validator("image_size")
    @classmethod
    def _own_size_for_pictures_only(cls, size: int | None, info: ValidationInfo) -> int | None:
        dataset = info.data.get("dataset")
        if size is not None and dataset in DATASETS and dataset not in RESIZABLE_DATASETS:
            raise ValueError(
                f"only with folder:PATH, hdf5:FILE, {comma_list(RESIZABLE_DATASETS)}; others have a size of their own"
            )
        return size

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0: ``gamma`` times smaller after each milestone (Section 4)."""
        passed = sum(epoch >= round(share * self.epochs) for share in self.milestones)
        return self.lr * self.gamma**passed

    def evaluates_after(self, epoch: int) -> bool:
        """Tell whether the network is evaluated after an epoch, counted from 0."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs

    @classmethod
    def allowed_values(cls, name: str) -> tuple[str, ...]:
        """Name the words that a setting takes; none for a setting that takes something else."""
        field = cls.model_fields[name]
        # Where the setting may be left out, its annotation is a union, whose first member has the words.
        first = next(iter(get_args(field.annotation)), None)
        metadata: Any = field.metadata or getattr(first, "__metadata__", [])
        checks = [check.func for check in metadata if isinstance(check, AfterValidator)]
        return next((check.all_words() for check in checks if isinstance(check, OneOf | SumOf)), ())

    @classmethod
    def load(cls, file: str | Path | None = None, **options: Any) -> Self:
        """Resolve the layers into one config.

        Parameters
        ----------
        file : str or Path, optional
            A TOML file, or the name of a preset. By default the preset of the dataset.
        **options
            Settings that override the file; ``None`` means not given.

        Raises
        ------
        UsageError
            With one line for each problem, all at once.

        Notes
        -----
        With ``resume``, a run in ``out`` is the file.
        """
        options = {name: value for name, value in options.items() if value is not None}
        if options.get("resume") and options.get("out") and file is None:
            settings = Path(options["out"]) / CONFIG_FILE
            file = settings if settings.is_file() else None
        dataset = str(options.get("dataset", cls.model_fields["dataset"].default))
        layer, source, problems = cls._from_file(file or DATASETS.get(dataset))
        try:
            config = cls(**{**layer, **options})
        except ValidationError as error:
            keys = {name: f"{source}: {name}" for name in layer.keys() - options.keys()}
            problems += [_problem_line(detail, keys) for detail in error.errors()]
        if problems:
            raise UsageError(*problems)
        return config

    def differences(self, run: Self) -> list[str]:
        """Name the settings, as lines for people, in which this config would not go on with a run of another one.

        The epochs may differ, as long as those that are done had the rates that they would have now.
        """
        free = self.NOT_RECORDED | self.MAY_DIFFER_ON_RESUME | {"epochs"}
        found = []
        for name in type(self).model_fields.keys() - free:
            mine, its = getattr(self, name), getattr(run, name)
            if mine != its and not (name == "teacher" and mine is None):
                found.append(problem(f"--{name.replace('_', '-')}", expected=f"{its}, as in the run", got=mine))
        return sorted(found)

    @classmethod
    def _from_file(cls, file: str | Path | None) -> tuple[dict[str, Any], str, list[str]]:
        """Read the keys at the top of a config file and those of this kind's table, and name the unknown ones."""
        if file is None:
            return {}, "defaults", []
        document = read_toml(file, "--config", "preset")
        kinds: dict[str, type[TrainingConfig]] = {kind.table: kind for kind in (TeacherConfig, StudentConfig)}
        tables = {name: document.pop(name, {}) for name in kinds}
        if wrong := [name for name, table in tables.items() if not isinstance(table, dict)]:
            raise UsageError(*(problem(f"{file}: {name}", expected="a table") for name in wrong))
        problems = []
        for place, keys, fields in [
            ("", document, TrainingConfig.model_fields),
            *((f"{name}.", tables[name], kind.model_fields) for name, kind in kinds.items()),
        ]:
            strays = keys.keys() - fields.keys()
            problems += [
                problem(f"{file}: unknown key {place}{key}", expected=comma_list(fields)) for key in sorted(strays)
            ]
            reserved = keys.keys() & cls.CLI_ONLY
            problems += [problem(f"{file}: {place}{key}", expected="as an option alone") for key in sorted(reserved)]
        known = {key: value for key, value in {**document, **tables[cls.table]}.items() if key in cls.model_fields}
        return known, str(file), problems

    def to_toml(self, exclude: Set[str] | None = None) -> str:
        """Write the settings, by default without `NOT_RECORDED`, as a file that ``--config`` reads."""
        excluded = set(self.NOT_RECORDED if exclude is None else exclude)
        settings = self.model_dump(mode="json", exclude=excluded, exclude_none=True)
        # JSON's strings, numbers, booleans and arrays are TOML's too, but for its way to escape what is not ASCII.
        lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items())
        return "\n".join([f"[{self.table}]", *lines]) + "\n"


class TeacherConfig(TrainingConfig):
    """Stage one: a teacher, trained with cross-entropy on standard views."""

    table = "teacher"
    USED_WHEN_LOADING: ClassVar[tuple[str, ...]] = (
        *("dataset", "data_root", "download", "image_size", "val_fraction", "train_fraction"),
        *("device", "precision", "out", "overwrite"),
    )
    """Settings that matter to a teacher that is loaded instead of trained."""


class StudentConfig(TrainingConfig):
    """Stage two: a student, trained with the paper's step."""

    table = "student"
    MAY_DIFFER_ON_RESUME = TrainingConfig.MAY_DIFFER_ON_RESUME | {"cache", "cache_limit", "store"}

    model: Model = Field("resnet8", description="Network to train.")
    teacher: Path | None = Field(
        None, description="Run folder of the teacher [the newest finished teacher of the dataset under runs/]."
    )
    loss: Loss = Field(
        "kd",
        description="Losses and their weights, as in crd:0.8+kd [weights: those published]. kd has (1 - alpha) of the "
        "cross-entropy with it (Equation 1), other sums all of it, and those that name ce what they say.",
    )
    aug: Aug = Field("standard", description="Views of the images that the student sees.")
    pick: Pick | None = Field(
        None, validate_default=True, description="Criterion by which some of the x' are kept [cutmix-pick: kld]."
    )
    candidates: int | None = Field(
        None,
        ge=1,
        le=63,
        description="x' of each sample [one of each kind in --aug, at least two to pick from].",
    )
    keep: float | None = Field(None, gt=0, le=1, description="Share of the x' of a step that is picked [0.5].")
    pick_scope: Scope = Field(
        "global", description="Under torchrun, pick among the x' of all processes, or of each by itself."
    )
    temperature: float = Field(4.0, gt=0, allow_inf_nan=False, description="Temperature tau of the soft targets.")
    alpha: float = Field(0.9, ge=0, le=1, description="Weight of the soft targets in the loss on x.")
    view_seed: int | None = Field(None, ge=0, lt=2**63, description="Seed of the views [the seed].")
    cache: Cache = Field(
        "auto",
        description="Answers to keep and look up: none, those to clean views, to standard views in whichever epoch "
        "they came up, or to every view of the plan; auto takes what is there and fits.",
    )
    cache_limit: ByteSize | None = Field(
        None, description="Room for the store, as in '500 MB' [10 GB, or a tenth of the free disk if that is less]."
    )
    store: str | None = Field(
        None, description="Folder or URL (s3://...) of the store [answers.zarr in the teacher's run folder]."
    )
    store_dtype: StoreType = Field("float16", description="Precision of answers, stored or not.")
    topk: int | None = Field(
        None, ge=1, description="Keep only so many logits of an answer, and what the others weigh together."
    )

    @field_validator("pick")
    @classmethod
    def _pick_fits(cls, pick: str | None, info: ValidationInfo) -> str | None:
        aug, loss = info.data.get("aug"), info.data.get("loss")
        if aug is None:  # it has a fault of its own
            return pick
        base = _augmentation(aug)
        if pick is not None and not base.mixes:
            raise ValueError(_only_with_mixes())
        criterion = pick or base.pick
        if loss == "ce" and criterion is not None and CRITERIA[criterion].teacher:
            without = (name for name, reads in CRITERIA.items() if not reads.teacher)
            raise ValueError(f"{comma_list(without)} where --loss ce leaves the run without a teacher")
        return pick

    @field_validator("candidates")
    @classmethod
    def _candidates_fit(cls, candidates: int | None, info: ValidationInfo) -> int | None:
        aug = info.data.get("aug")
        if candidates is None or aug is None:
            return candidates
        if not _augmentation(aug).mixes:
            raise ValueError(_only_with_mixes())
        if candidates < len(_augmentation(aug).mixes):
            raise ValueError(f"at least one of each kind in --aug {aug}")
        return candidates

    @field_validator("keep")
    @classmethod
    def _keep_fits(cls, keep: float | None, info: ValidationInfo) -> float | None:
        aug, pick = info.data.get("aug"), info.data.get("pick")
        if keep is not None and aug is not None and not (pick or _augmentation(aug).pick):
            raise ValueError("only with --pick")
        return keep

    @property
    def augmentation(self) -> Augmentation:
        """The views, with what is in force: the kind of each x' in turn, the criterion, the share that is kept."""
        base = _augmentation(self.aug)
        pick = self.pick or base.pick
        number = self.candidates or max(len(base.mixes), 2 if pick else 1)
        mixes = tuple(islice(cycle(base.mixes), number))
        return base._replace(mixes=mixes, pick=pick, keep=self.keep or base.keep)

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss or the criterion reads the teacher's answers."""
        criterion = self.augmentation.pick
        reads = any(LOSSES[name].teacher for name in self.loss_weights)
        return reads or (criterion is not None and CRITERIA[criterion].teacher)

    @property
    def needs_features(self) -> bool:
        """Whether a loss reads inner tensors of both networks."""
        return any(LOSSES[name].features for name in self.loss_weights)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Each loss with its weight, the cross-entropy's among them."""
        stated = dict(part.partition(":")[::2] for part in self.loss.split("+"))
        weights = {name: float(weight) if weight else LOSSES[name].weight for name, weight in stated.items()}
        if "ce" in weights:
            return weights
        if "kd" in weights:
            return {"ce": 1 - self.alpha, **weights, "kd": self.alpha * weights["kd"]}
        return {"ce": 1.0, **weights}

    @property
    def effective_view_seed(self) -> int:
        """Seed of the views: ``view_seed``, or the run's own seed."""
        return self.seed if self.view_seed is None else self.view_seed


def _augmentation(aug: str) -> Augmentation:
    return AUGMENTATIONS.get(aug) or Augmentation(mixes=tuple(aug.split("+")))


def _only_with_mixes() -> str:
    return f"only with an --aug that makes x' (cutmix-pick, {comma_list(MIXES)})"


def _problem_line(detail: Any, keys: Mapping[str, str]) -> str:
    """Put one of pydantic's findings into the project's form."""
    name = str(detail["loc"][0])
    where = keys.get(name, f"--{name.replace('_', '-')}")
    if detail["type"] == "extra_forbidden":
        return problem(f"{where}: no such setting")
    return problem(where, expected=expected_by(detail), got=detail["input"])


def expected_by(detail: Any) -> str:
    """Say what would have been right, by one of pydantic's findings."""
    message: str = detail["msg"]
    return message.removeprefix("Value error, ").removeprefix("Input should be ")
