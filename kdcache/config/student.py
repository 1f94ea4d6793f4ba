"""The settings of a student's training."""

import logging
import os
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ByteSize, field_validator

from kdcache.cards import CARDS, DATASET_PREFIXES, canonical
from kdcache.checked_files import kind_of
from kdcache.choices import AUGMENTATIONS, CACHES, CRITERIA, LOSSES, MIXES, STORE_DTYPES, STORE_FORMATS, Augmentation
from kdcache.config.augs import AugOptions, augmentation_of, format_mix
from kdcache.config.layers import CONFIG_FILE
from kdcache.config.loss_checks import (
    check_alpha,
    check_loss,
    check_store_format,
    check_unlabelled,
    complete_losses,
    keeps_vectors,
)
from kdcache.config.losses import LossOptions, loss_weights
from kdcache.config.options import merge_tables, read_tables
from kdcache.config.settings import SET_BY_PRESET, Choice, ChoiceOf, ChoiceSum, PlaceChoice, flag_of, setting
from kdcache.config.training import Model, TrainingConfig, recorded_images
from kdcache.config.view_checks import (
    check_aug,
    check_candidates,
    check_keep,
    check_pick,
    check_scoring_updates_stats,
    check_separate_forwards,
    complete_augs,
)
from kdcache.errors import printable
from kdcache.presets import ConfigFile, read_recipe

__all__ = ["StudentSettings"]

log = logging.getLogger("kdcache")

Aug = Annotated[str, AfterValidator(ChoiceSum(MIXES, "cutmix+mixup", alone=tuple(AUGMENTATIONS)))]
Pick = Annotated[str, AfterValidator(ChoiceOf(CRITERIA))]
Loss = Annotated[str, AfterValidator(ChoiceSum(LOSSES, "crd:0.8+kd"))]
Cache = Annotated[str, AfterValidator(Choice(CACHES))]
StoreType = Annotated[str, AfterValidator(Choice(STORE_DTYPES))]
StoreFormat = Annotated[str, AfterValidator(Choice(STORE_FORMATS))]
Unlabelled = Annotated[str, AfterValidator(PlaceChoice((), DATASET_PREFIXES[:2])), AfterValidator(canonical)]
Scope = Annotated[str, AfterValidator(Choice(("global", "rank")))]


class StudentSettings(TrainingConfig):
    """The views, losses and cache of a student; `kdcache.config.teachers.StudentConfig` adds where logits come from."""

    CODE = (*TrainingConfig.CODE, "loss", "aug", "pick")
    MAY_DIFFER_ON_RESUME = TrainingConfig.MAY_DIFFER_ON_RESUME | {"cache", "cache_limit", "store", "answers"}

    model: Model = setting("network", "resnet8", "Network to train.", shown=SET_BY_PRESET)
    teacher: Path | None = setting(
        "network",
        None,
        "Run folder of the teacher. Given several times, the student learns from the mean of the teachers.",
        shown="the newest finished teacher of the dataset in runs/",
    )
    loss: Loss = setting(
        "loss",
        "kd",
        "Losses and their weights. A loss without a weight has its published one. Unless ce is among them, kd comes "
        "with cross-entropy at weight 1 - alpha (Equation 1), any other sum with cross-entropy at the weight of its "
        "recipe, mostly 1. docs/losses.md says what each loss reads and acts on.",
    )
    aug: Aug = setting(
        "views", "standard", "Views of the images that the student is trained on.", validate_default=True
    )
    augs: AugOptions = setting(
        "views",
        AugOptions(),
        "An option of an augmentation, such as cutmix.alpha=0.2; may be given several times. "
        + "; ".join(f"{mix}: {', '.join(names)}" for mix, names in AugOptions.names().items())
        + ".",
        shown="see docs/augmentations.md",
        flag="--aug-option",
        validate_default=True,
    )
    pick: Pick | None = setting(
        "views",
        None,
        "Criterion that picks some of the x'.",
        shown="kld with cutmix-pick, else none",
        validate_default=True,
    )
    candidates: int | None = setting(
        "views",
        None,
        "Number of x' per image.",
        shown="one of each kind in --aug, with --pick at least 2",
        ge=1,
        le=63,
    )
    keep: float | None = setting("views", None, "Fraction of the x' of a step to pick.", shown="0.5", gt=0, le=1)
    pick_scope: Scope = setting(
        "views", "global", "Under torchrun, pick among the x' of all processes, or of each process."
    )
    separate_forwards: bool = setting(
        "recipe",
        False,
        "Forward x and x' through the student one after the other, so that batch norm normalizes each by its own "
        "statistics, as the code of the paper's authors does.",
    )
    scoring_updates_stats: bool = setting(
        "recipe",
        False,
        "Let the forward that scores the x' for --pick update the running statistics of batch norm, as the code of the "
        "paper's authors does.",
    )
    temperature: float = setting("loss", 4.0, "Temperature tau of the soft targets.", gt=0, allow_inf_nan=False)
    alpha: float = setting(
        "loss",
        0.9,
        "Weight of kd on x and on x'; cross-entropy on x has the rest of 1. No effect in sums without kd, or with ce.",
        ge=0,
        le=1,
    )
    losses: LossOptions = setting(
        "loss",
        LossOptions(),
        "A constant of a loss, such as dkd.beta=6; may be given several times. "
        + "; ".join(f"{loss}: {', '.join(names)}" for loss, names in LossOptions.names().items())
        + ".",
        shown="as published, see docs/losses.md",
        flag="--loss-option",
        validate_default=True,
    )
    view_seed: int | None = setting("views", None, "Seed of the views.", shown="--seed", ge=0, lt=2**63)
    cache: Cache = setting(
        "cache",
        "auto",
        "Teacher logits to store and reuse: none (off), those of clean views, of standard views from any epoch, or of "
        "every view of the plan (replay). auto: the largest that is stored already or fits the limit.",
    )
    cache_limit: ByteSize | None = setting(
        "cache",
        None,
        "Size limit of all stores of the teacher, such as '500 MB'.",
        shown="10 GB, at most a tenth of the free disk",
    )
    store: str | None = setting(
        "cache",
        None,
        "Folder or URL (s3://...) of the store of logits.",
        shown="in the teacher's run folder, one for each set of images",
    )
    store_dtype: StoreType = setting("cache", "float16", "Precision of teacher logits, stored or not.")
    topk: int | None = setting(
        "cache", None, "Keep only this many logits per view, and the total weight of the others.", shown="all", ge=1
    )
    store_format: StoreFormat = setting(
        "cache",
        "auto",
        "What is stored of a view: the teacher's logits, or the vector that its last layer reads, from which they "
        "follow. With vectors, losses that read them need no teacher forward. auto: vectors with such a loss.",
        validate_default=True,
    )

    unlabelled: Unlabelled | None = setting(
        "data",
        None,
        "Further training images, without labels, on which losses of the teacher are trained: all image files below a "
        "folder, or the training images of a packed file. An epoch shows them too.",
        shown="none",
        validate_default=True,
    )

    _read_tables = field_validator("losses", "augs", mode="before")(read_tables)
    _check_loss = field_validator("loss")(check_loss)
    _check_aug = field_validator("aug")(check_aug)
    _complete_augs = field_validator("augs")(complete_augs)
    _check_pick = field_validator("pick")(check_pick)
    _check_candidates = field_validator("candidates")(check_candidates)
    _check_keep = field_validator("keep")(check_keep)
    _check_separate_forwards = field_validator("separate_forwards")(check_separate_forwards)
    _check_scoring_updates_stats = field_validator("scoring_updates_stats")(check_scoring_updates_stats)
    _check_alpha = field_validator("alpha")(check_alpha)
    _complete_losses = field_validator("losses")(complete_losses)
    _check_store_format = field_validator("store_format")(check_store_format)
    _check_unlabelled = field_validator("unlabelled")(check_unlabelled)

    @classmethod
    def _inherited(cls, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        file = Path(os.path.expanduser(str(given.get("teacher")))) / CONFIG_FILE
        wanted = [name for name in TrainingConfig.image_setting_names() if name not in given]
        if "dataset" in given:  # the same images elsewhere, or others, which the teacher needs in this size
            card, rendering = CARDS.get(str(given["dataset"])), ("image_size", "crop")
            wanted = [name for name in wanted if name in rendering and not (card and card.padding is not None)]
        # The settings of a run name all, and are read whether its teacher is damaged or not.
        if not wanted or not given.get("teacher") or kind_of(file) is None:
            return {}
        images = {name: value for name, value in recorded_images(file).items() if name in wanted}
        if not images:
            return {}
        fields = cls.model_fields
        changed = {name: value for name, value in images.items() if str(value) != str(fields[name].default)}
        if changed:
            chosen = " ".join(f"{flag_of(name, fields[name])} {value}" for name, value in changed.items())
            log.info("images as in the run of the teacher %s: %s", given["teacher"], printable(chosen))
        return {str(file): images}

    @classmethod
    def _read_files(
        cls, file: str | Path | ConfigFile | None, options: dict[str, Any]
    ) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
        layers, problems = super()._read_files(file, options)
        if (recipe := options.pop("recipe", None)) is not None:
            settings, more = read_recipe(recipe)
            return {**layers, str(recipe): settings}, [*problems, *more]
        return layers, problems

    @classmethod
    def _put_over(cls, below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
        """Combine layers as `TrainingConfig` does, and tables of options option by option."""
        combined = super()._put_over(below, layer)
        for name in combined.keys() & {"losses", "augs"}:
            combined[name] = merge_tables([one[name] for one in (below, layer) if name in one])
        return combined

    @property
    def augmentation(self) -> Augmentation:
        """The views in effect: the kind of each x', the criterion, and the fraction that is kept."""
        base = augmentation_of(self.aug)
        pick = self.pick or base.pick
        number = self.candidates or max(len(base.mixes), 2 if pick else 1)
        names = [format_mix(name, self.augs.of(name)) for name in base.mixes]
        mixes = tuple(islice(cycle(names), number))
        return base._replace(mixes=mixes, pick=pick, keep=self.keep or base.keep)

    @property
    def views(self) -> str:
        """``aug``, with the options that are not the default."""
        stated = [mix for mix in dict.fromkeys(self.augmentation.mixes) if "," in mix]
        return f"{self.aug} ({'; '.join(stated)})" if stated else self.aug

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss or the criterion reads the teacher's logits."""
        criterion = self.augmentation.pick
        reads = any(LOSSES[name].teacher for name in self.loss_weights)
        return reads or (criterion is not None and CRITERIA[criterion].teacher)

    @property
    def needs_features(self) -> bool:
        """Whether a loss reads features of both networks."""
        return any(LOSSES[name].features for name in self.loss_weights)

    @property
    def needs_vectors(self) -> bool:
        """Whether a loss reads the vectors of both networks."""
        return any(LOSSES[name].vectors for name in self.loss_weights)

    @property
    def keeps_vectors(self) -> bool:
        """Whether the teacher's vectors are stored, and not its logits."""
        return keeps_vectors(self.store_format, self.topk, self.needs_vectors)

    @property
    def recomputes_x(self) -> bool:
        """Whether x goes through the teacher in every step, because a loss reads what is not stored."""
        return self.needs_features or (self.needs_vectors and not self.keeps_vectors)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, including cross-entropy."""
        return loss_weights(self.loss, self.alpha)

    @property
    def effective_view_seed(self) -> int:
        """Seed of the views: ``view_seed`` if given, else ``seed``."""
        return self.seed if self.view_seed is None else self.view_seed
