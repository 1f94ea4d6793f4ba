"""Checks of the settings of a student's views, against its losses and against each other."""

from pydantic import ValidationInfo

from kdcache.choices import CRITERIA, LOSSES, MIXES
from kdcache.config.augs import AugOptions, augmentation_of
from kdcache.config.losses import loss_weights, trains_on_mixed_views
from kdcache.config.settings import Invalid, has_no_effect
from kdcache.extensions import is_trusted

__all__ = [
    "check_aug",
    "check_candidates",
    "check_keep",
    "check_pick",
    "check_scoring_updates_stats",
    "check_separate_forwards",
    "complete_augs",
]


def check_aug(aug: str, info: ValidationInfo) -> str:
    """Refuse views that the losses are not trained on."""
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


def complete_augs(augs: AugOptions, info: ValidationInfo) -> AugOptions:
    """Add the default options of the augmentations in ``--aug``; refuse those of others."""
    aug = info.data.get("aug")
    if aug is None:  # --aug has a problem of its own
        return augs
    names = augmentation_of(aug).mixes
    augs.require_used(names, "augmentations in --aug", "augmentation")
    return augs.completed(names)


def check_pick(pick: str | None, info: ValidationInfo) -> str | None:
    """Refuse a criterion without x' to pick from, for losses on pairs, or without the teacher that it reads."""
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


def check_candidates(candidates: int | None, info: ValidationInfo) -> int | None:
    """Refuse too few candidates for the kinds of x', and several for losses on pairs."""
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


def check_keep(keep: float | None, info: ValidationInfo) -> float | None:
    """Refuse a fraction to pick where nothing is picked."""
    aug, pick = info.data.get("aug"), info.data.get("pick")
    if keep is not None and aug is not None and not (pick or augmentation_of(aug).pick):
        raise Invalid("no value without --pick", "Add --pick, or leave --keep out.")
    return keep


def check_separate_forwards(separate: bool, info: ValidationInfo) -> bool:
    """Refuse separate forwards of x and x' where only one of them is trained on."""
    aug, loss = info.data.get("aug"), info.data.get("loss")
    if separate and aug is not None and not augmentation_of(aug).mixes:
        raise has_no_effect("separate-forwards", f"with --aug {aug}, which makes no x'")
    if separate and loss is not None and is_trusted(loss) and loss_weights(loss, alpha=0.9).keys() == {"ce"}:
        raise has_no_effect("separate-forwards", f"with --loss {loss}, which is trained on x' alone")
    return separate


def check_scoring_updates_stats(updates: bool, info: ValidationInfo) -> bool:
    """Refuse it where the student does not score."""
    aug = info.data.get("aug")
    if not updates or aug is None or "pick" not in info.data:  # they have problems of their own
        return updates
    criterion = info.data["pick"] or augmentation_of(aug).pick
    if criterion is None or (is_trusted(criterion) and not CRITERIA[criterion].student):
        scoring = ", ".join(name for name, reads in CRITERIA.items() if reads.student)
        raise has_no_effect("scoring-updates-stats", f"without a criterion that reads the student ({scoring})")
    return updates


def _pairs(loss: str) -> bool:
    """Whether a sum has a loss on pairs of x and x'."""
    return any(LOSSES[name].acts_on == "pairs" for name in loss_weights(loss, alpha=0.9))


def _keeps_label(mix: str) -> bool:
    """Whether an x' is made from one image."""
    return not MIXES[mix].takes_partner


def _needs_mixes(aug: str) -> Invalid:
    remedy = f"Choose an --aug that makes x': cutmix-pick, or a sum of {', '.join(MIXES)}."
    return Invalid(f"no value with --aug {aug}", remedy)
