"""The settings of a student's training."""

import logging
import os
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ByteSize, ValidationInfo, field_validator

from kdcache.cards import CARDS, DATASET_PREFIXES, canonical
from kdcache.checked_files import kind_of
from kdcache.choices import AUGMENTATIONS, CACHES, CRITERIA, LOSSES, MIXES, STORE_DTYPES, STORE_FORMATS, Augmentation
from kdcache.config.augs import AugOptions, format_mix
from kdcache.config.losses import LossOptions, loss_names, loss_weights, trains_on_mixed_views
from kdcache.config.optimization import known_epochs
from kdcache.config.options import OptionTables, as_tables, merge_tables
from kdcache.config.settings import SET_BY_PRESET, Choice, ChoiceOf, ChoiceSum, Invalid, PlaceChoice, flag_of, setting
from kdcache.config.training import CONFIG_FILE, Model, TrainingConfig, recorded_images
from kdcache.errors import printable
from kdcache.extensions import is_trusted
from kdcache.presets import ConfigFile, read_recipe

__all__ = ["StudentSettings", "augmentation_of", "has_no_effect"]

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
    alpha: float = setting("loss", 0.9, "Weight of the soft targets in the loss on x.", ge=0, le=1)
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

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, loss: str, info: ValidationInfo) -> str:
        changed = _changes_cross_entropy(info)
        if changed and is_trusted(loss) and not loss_weights(loss, alpha=0.9).get("ce"):
            raise Invalid(f"a sum with ce, because of --{changed}", f"Add ce, or give {_UNCHANGED[changed]}.")
        return loss

    @field_validator("aug")
    @classmethod
    def _check_aug(cls, aug: str, info: ValidationInfo) -> str:
        loss, mixes = info.data.get("loss"), augmentation_of(aug).mixes
        if loss is None or not is_trusted(f"{loss} {aug}"):  # --loss has a problem of its own, or is not for use
            return aug
        if _pairs(loss) and not (len(mixes) == 1 and augmentation_of(aug).pick is None and _keeps_label(mixes[0])):
            keeping = ", ".join(filter(_keeps_label, MIXES))
            raise Invalid(f"one of {keeping}, since --loss {loss} compares x with an x' of the same image and label")
        if mixes and not trains_on_mixed_views(loss_weights(loss, alpha=0.9)):
            on_mixed = ", ".join(name for name, declared in LOSSES.items() if declared.acts_on == "each")
            raise Invalid(
                f"one of none, standard, since --loss {loss} is not trained on x'",
                f"Add one of {on_mixed}, or give it a weight above 0.",
            )
        return aug

    @field_validator("alpha")
    @classmethod
    def _check_alpha(cls, alpha: float, info: ValidationInfo) -> float:
        aug, loss = info.data.get("aug"), info.data.get("loss")
        if not aug or not loss or not is_trusted(loss):
            return alpha
        if (changed := _changes_cross_entropy(info)) and not loss_weights(loss, alpha).get("ce"):
            raise Invalid(
                f"less than 1 with --{changed}, which is about cross-entropy", f"Or give {_UNCHANGED[changed]}."
            )
        if augmentation_of(aug).mixes and not trains_on_mixed_views(loss_weights(loss, alpha)):
            raise Invalid(f"more than 0 with --aug {aug}, since kd alone is trained on x'")
        return alpha

    @field_validator("losses", "augs", mode="before")
    @classmethod
    def _read_options(cls, given: Any, info: ValidationInfo) -> Any:
        tables = as_tables(given)
        if not isinstance(tables, Mapping | OptionTables):
            form, example = {
                "losses": ("LOSS.NAME=VALUE", "dkd.beta=6"), "augs": ("AUG.NAME=VALUE", "cutmix.alpha=0.2")
            }[str(info.field_name)]  # fmt: skip
            raise Invalid(f"{form}, such as {example}")
        return tables

    @field_validator("augs")
    @classmethod
    def _complete_augs(cls, augs: AugOptions, info: ValidationInfo) -> AugOptions:
        aug = info.data.get("aug")
        if aug is None:  # --aug has a problem of its own
            return augs
        names = augmentation_of(aug).mixes
        augs.require_used(names, "augmentations in --aug", "augmentation")
        return augs.completed(names)

    @field_validator("losses")
    @classmethod
    def _complete_losses(cls, losses: LossOptions, info: ValidationInfo) -> LossOptions:
        loss, epochs = info.data.get("loss"), known_epochs(info)
        if loss is None or epochs is None:  # they have problems of their own, or are not known yet
            return losses
        return losses.completed_for(loss_names(loss), epochs)

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
    def combined(cls, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Combine layers of settings as `TrainingConfig.combined` does, and tables of options option by option."""
        combined = super().combined(layers)
        for name in combined.keys() & {"losses", "augs"}:
            combined[name] = merge_tables([layer[name] for layer in layers if name in layer])
        return combined

    @field_validator("pick")
    @classmethod
    def _check_pick(cls, pick: str | None, info: ValidationInfo) -> str | None:
        aug, loss = info.data.get("aug"), info.data.get("loss")
        if aug is None:  # --aug has a problem of its own
            return pick
        base = augmentation_of(aug)
        if pick is not None and not base.mixes:
            raise _needs_mixes(aug)
        if not is_trusted(f"{loss} {pick}"):
            return pick
        if pick is not None and loss is not None and _pairs(loss):
            raise Invalid(f"no value, since --loss {loss} compares x with the x' of every image")
        criterion = pick or base.pick
        if loss == "ce" and criterion is not None and CRITERIA[criterion].teacher:
            without = ", ".join(name for name, reads in CRITERIA.items() if not reads.teacher)
            raise Invalid(f"one of {without}, because --loss ce trains without a teacher")
        return pick

    @field_validator("candidates")
    @classmethod
    def _check_candidates(cls, candidates: int | None, info: ValidationInfo) -> int | None:
        aug = info.data.get("aug")
        if candidates is None or aug is None:
            return candidates
        kinds = len(augmentation_of(aug).mixes)
        if not kinds:
            raise _needs_mixes(aug)
        if candidates < kinds:
            raise Invalid(f"at least {kinds}, one of each kind in --aug {aug}")
        loss = info.data.get("loss")
        if candidates > 1 and loss is not None and is_trusted(loss) and _pairs(loss):
            raise Invalid(f"1, since --loss {loss} compares x with one x'")
        return candidates

    @field_validator("keep")
    @classmethod
    def _check_keep(cls, keep: float | None, info: ValidationInfo) -> float | None:
        aug, pick = info.data.get("aug"), info.data.get("pick")
        if keep is not None and aug is not None and not (pick or augmentation_of(aug).pick):
            raise Invalid("no value without --pick", "Add --pick, or leave --keep out.")
        return keep

    @field_validator("separate_forwards")
    @classmethod
    def _check_separate_forwards(cls, separate: bool, info: ValidationInfo) -> bool:
        aug, loss = info.data.get("aug"), info.data.get("loss")
        if separate and aug is not None and not augmentation_of(aug).mixes:
            raise has_no_effect("separate-forwards", f"with --aug {aug}, which makes no x'")
        if separate and loss is not None and is_trusted(loss) and loss_weights(loss, alpha=0.9).keys() == {"ce"}:
            raise has_no_effect("separate-forwards", f"with --loss {loss}, which is trained on x' alone")
        return separate

    @field_validator("scoring_updates_stats")
    @classmethod
    def _check_scoring_updates_stats(cls, updates: bool, info: ValidationInfo) -> bool:
        aug = info.data.get("aug")
        if not updates or aug is None or "pick" not in info.data:  # they have problems of their own
            return updates
        criterion = info.data["pick"] or augmentation_of(aug).pick
        if criterion is None or (is_trusted(criterion) and not CRITERIA[criterion].student):
            scoring = ", ".join(name for name, reads in CRITERIA.items() if reads.student)
            raise has_no_effect("scoring-updates-stats", f"without a criterion that reads the student ({scoring})")
        return updates

    @field_validator("unlabelled")
    @classmethod
    def _check_unlabelled(cls, unlabelled: str | None, info: ValidationInfo) -> str | None:
        if unlabelled is None and info.data.get("train_fraction") == 0:
            raise Invalid("images, since --train-fraction 0 leaves none of --dataset")
        if unlabelled is None or not {"loss", "alpha", "aug", "pick"} <= info.data.keys():
            return unlabelled
        loss, pick = info.data["loss"], info.data["pick"] or augmentation_of(info.data["aug"]).pick
        if not is_trusted(f"{loss} {pick}"):
            return unlabelled
        weights = loss_weights(loss, info.data["alpha"])
        reads_label = [f"--loss {name}" for name in weights if LOSSES[name].needs_labels]
        reads_label += [f"--pick {pick}"] if pick is not None and CRITERIA[pick].needs_labels else []
        if reads_label:
            raise Invalid(f"no value with {reads_label[0]}, which needs the label of every image")
        if not any(weight and LOSSES[name].teacher for name, weight in weights.items()):
            alpha = " --alpha 0" if "kd" in weights else ""
            raise Invalid(
                f"no value with --loss {loss}{alpha}, which is not trained on images without labels",
                "Add a loss that reads the teacher, such as kd.",
            )
        return unlabelled

    @field_validator("store_format")
    @classmethod
    def _check_store_format(cls, store_format: str, info: ValidationInfo) -> str:
        topk, loss, aug = (info.data.get(name) for name in ("topk", "loss", "aug"))
        if store_format == "vectors" and topk is not None:
            raise Invalid("auto or logits with --topk, which keeps the largest logits")
        if loss is None or aug is None or not is_trusted(loss):  # they have problems of their own
            return store_format
        on_mixed = [name for name in loss_weights(loss, alpha=0.9) if _reads_vectors_of_mixed(name)]
        if on_mixed and augmentation_of(aug).mixes and not _keeps_vectors(store_format, topk, True):
            remedy = "Leave --topk out." if topk is not None else None
            raise Invalid(f"vectors with --loss {on_mixed[0]}, which reads the teacher's vectors of x'", remedy)
        return store_format

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
        return _keeps_vectors(self.store_format, self.topk, self.needs_vectors)

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


def augmentation_of(aug: str) -> Augmentation:
    """Find the views that a value of ``--aug`` names."""
    return AUGMENTATIONS.get(aug) or Augmentation(mixes=tuple(aug.split("+")))


def _pairs(loss: str) -> bool:
    """Whether a sum has a loss on pairs of x and x'."""
    return any(LOSSES[name].acts_on == "pairs" for name in loss_weights(loss, alpha=0.9))


def _keeps_vectors(store_format: str, topk: int | None, needed: bool) -> bool:
    """Whether vectors are stored; with ``auto``, if they are needed and not all logits are dropped but a few."""
    return store_format == "vectors" or (store_format == "auto" and needed and topk is None)


def _reads_vectors_of_mixed(name: str) -> bool:
    """Whether a loss reads the vectors of x'."""
    return LOSSES[name].vectors and LOSSES[name].acts_on != "x"


def _keeps_label(mix: str) -> bool:
    """Whether an x' is made from one image."""
    return not MIXES[mix].takes_partner


def _needs_mixes(aug: str) -> Invalid:
    remedy = f"Choose an --aug that makes x': cutmix-pick, or a sum of {', '.join(MIXES)}."
    return Invalid(f"no value with --aug {aug}", remedy)


_UNCHANGED = {"label-smoothing": "--label-smoothing 0", "class-weights": "--class-weights none"}


def _changes_cross_entropy(info: ValidationInfo) -> str | None:
    """Name an option that changes cross-entropy, if one was given."""
    if info.data.get("label_smoothing"):
        return "label-smoothing"
    return "class-weights" if info.data.get("class_weights") == "balanced" else None


def has_no_effect(switch: str, where: str) -> Invalid:
    """Make the error of a switch that does nothing with the other settings."""
    return Invalid(f"false {where}", f"Leave it out, or turn that of a recipe off with --no-{switch}.")
