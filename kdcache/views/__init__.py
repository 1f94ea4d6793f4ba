"""Views of images: the table that plans them, and the tensor functions that make them."""

from importlib import import_module
from typing import TYPE_CHECKING

from kdcache.views.plan import PLAN_VERSION, EpochTable, Slot, ViewPlan, rank_part, steps

if TYPE_CHECKING:
    from kdcache.views.batch import Batch
    from kdcache.views.geometry import crop_flip, take
    from kdcache.views.mixes import cutmix, mixup
    from kdcache.views.views import Views

__all__ = [
    "PLAN_VERSION",
    "Batch",
    "EpochTable",
    "Slot",
    "ViewPlan",
    "Views",
    "crop_flip",
    "cutmix",
    "mixup",
    "rank_part",
    "steps",
    "take",
]

# Imported on first use: they need torch, and counting views does not.
_MODULES = {
    "Batch": "batch",
    "Views": "views",
    "crop_flip": "geometry",
    "take": "geometry",
    "cutmix": "mixes",
    "mixup": "mixes",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
