"""Checks of the settings of a student's losses, and of what they read: labels, and stored vectors of the teacher."""

from pydantic import ValidationInfo

from kdcache.choices import CRITERIA, LOSSES
from kdcache.config.augs import augmentation_of
from kdcache.config.losses import LossOptions, loss_names, loss_weights, trains_on_mixed_views
from kdcache.config.optimization import known_epochs
from kdcache.config.settings import Invalid
from kdcache.extensions import is_trusted

__all__ = ["check_alpha", "check_loss", "check_store_format", "check_unlabelled", "complete_losses", "keeps_vectors"]

_UNCHANGED = {"label-smoothing": "--label-smoothing 0", "class-weights": "--class-weights none"}


def check_loss(loss: str, info: ValidationInfo) -> str:
    """Refuse losses without cross-entropy where an option changes it."""
    changed = _changes_cross_entropy(info)
    if changed and is_trusted(loss) and not loss_weights(loss, alpha=0.9).get("ce"):
        raise Invalid(f"a sum with ce, because of --{changed}", f"Add ce, or give {_UNCHANGED[changed]}.")
    return loss


def check_alpha(alpha: float, info: ValidationInfo) -> float:
    """Refuse weights of 0 for cross-entropy where an option changes it, and for the only loss on x'."""
    aug, loss = info.data.get("aug"), info.data.get("loss")
    if not aug or not loss or not is_trusted(loss):
        return alpha
    if (changed := _changes_cross_entropy(info)) and not loss_weights(loss, alpha).get("ce"):
        raise Invalid(f"less than 1 with --{changed}, which is about cross-entropy", f"Or give {_UNCHANGED[changed]}.")
    if augmentation_of(aug).mixes and not trains_on_mixed_views(loss_weights(loss, alpha)):
        raise Invalid(f"more than 0 with --aug {aug}, since kd alone is trained on x'")
    return alpha


def complete_losses(losses: LossOptions, info: ValidationInfo) -> LossOptions:
    """Add the default options of the losses in ``--loss``; refuse those of others."""
    loss, epochs = info.data.get("loss"), known_epochs(info)
    if loss is None or epochs is None:  # they have problems of their own, or are not known yet
        return losses
    return losses.completed_for(loss_names(loss), epochs)


def check_unlabelled(unlabelled: str | None, info: ValidationInfo) -> str | None:
    """Refuse images without labels that a loss or criterion needs, or that no loss is trained on."""
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


def check_store_format(store_format: str, info: ValidationInfo) -> str:
    """Refuse to store too little for a loss that reads the teacher's vectors of x'."""
    topk, loss, aug = (info.data.get(name) for name in ("topk", "loss", "aug"))
    if store_format == "vectors" and topk is not None:
        raise Invalid("auto or logits with --topk, which keeps the largest logits")
    if loss is None or aug is None or not is_trusted(loss):  # they have problems of their own
        return store_format
    on_mixed = [name for name in loss_weights(loss, alpha=0.9) if _reads_vectors_of_mixed(name)]
    if on_mixed and augmentation_of(aug).mixes and not keeps_vectors(store_format, topk, True):
        remedy = "Leave --topk out." if topk is not None else None
        raise Invalid(f"vectors with --loss {on_mixed[0]}, which reads the teacher's vectors of x'", remedy)
    return store_format


def keeps_vectors(store_format: str, topk: int | None, needed: bool) -> bool:
    """Whether vectors are stored; with ``auto``, if they are needed and not all logits are dropped but a few."""
    return store_format == "vectors" or (store_format == "auto" and needed and topk is None)


def _reads_vectors_of_mixed(name: str) -> bool:
    """Whether a loss reads the vectors of x'."""
    return LOSSES[name].vectors and LOSSES[name].acts_on != "x"


def _changes_cross_entropy(info: ValidationInfo) -> str | None:
    """Name an option that changes cross-entropy, if one was given."""
    if info.data.get("label_smoothing"):
        return "label-smoothing"
    return "class-weights" if info.data.get("class_weights") == "balanced" else None
