"""Views of images: the table that plans them, and the tensor functions that make them."""

from kdcache.views.batch import Batch, ViewMaker
from kdcache.views.geometry import crop_flip, take
from kdcache.views.mixes import cutmix, mixup
from kdcache.views.plan import PLAN_VERSION, EpochTable, Plan, Slot, rank_part, steps

__all__ = [
    "PLAN_VERSION",
    "Batch",
    "EpochTable",
    "Plan",
    "Slot",
    "ViewMaker",
    "crop_flip",
    "cutmix",
    "mixup",
    "rank_part",
    "steps",
    "take",
]
