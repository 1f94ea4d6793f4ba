"""Knowledge distillation on every augmented view, with a cache of the teacher's logits.

The public names are imported when they are first used, so that ``import kdcache`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcache import datasets, models
    from kdcache import losses as losses
    from kdcache.answers.cached_teacher import CachedTeacher as CachedTeacher
    from kdcache.answers.teacher import Teacher as Teacher
    from kdcache.compute import Compute as Compute
    from kdcache.config import StudentConfig as StudentConfig
    from kdcache.config import TeacherConfig as TeacherConfig
    from kdcache.datasets import ImageData as ImageData
    from kdcache.errors import KdcacheError as KdcacheError
    from kdcache.errors import UsageError as UsageError
    from kdcache.models import checkpoint
    from kdcache.models.network import Network as Network
    from kdcache.models.wrapped import wrap_function as wrap_function
    from kdcache.register import register_aug as register_aug
    from kdcache.register import register_dataset as register_dataset
    from kdcache.register import register_loss as register_loss
    from kdcache.register import register_model as register_model
    from kdcache.register import register_pick as register_pick
    from kdcache.run.folder import FinishedRun as FinishedRun
    from kdcache.run.loop_statistics import Statistics as Statistics
    from kdcache.selection import pick as pick
    from kdcache.stages import train_student as train_student
    from kdcache.stages import train_teacher as train_teacher
    from kdcache.stages.teacher import load_teacher as load_teacher
    from kdcache.teachers import open_ensemble as open_ensemble
    from kdcache.teachers import open_teacher as open_teacher
    from kdcache.views import Batch as Batch
    from kdcache.views import ViewPlan as ViewPlan
    from kdcache.views import Views as Views

    load_dataset, build_network, load_network = datasets.load, models.build, checkpoint.load

__version__ = "0.1.0"

PUBLIC = {
    "Batch": ("views", "Batch"),
    "CachedTeacher": ("answers.cached_teacher", "CachedTeacher"),
    "Compute": ("compute", "Compute"),
    "FinishedRun": ("run.folder", "FinishedRun"),
    "ImageData": ("datasets", "ImageData"),
    "KdcacheError": ("errors", "KdcacheError"),
    "Network": ("models.network", "Network"),
    "Statistics": ("run.loop_statistics", "Statistics"),
    "StudentConfig": ("config", "StudentConfig"),
    "Teacher": ("answers.teacher", "Teacher"),
    "TeacherConfig": ("config", "TeacherConfig"),
    "UsageError": ("errors", "UsageError"),
    "ViewPlan": ("views", "ViewPlan"),
    "Views": ("views", "Views"),
    "build_network": ("models", "build"),
    "load_dataset": ("datasets", "load"),
    "load_network": ("models.checkpoint", "load"),
    "load_teacher": ("stages.teacher", "load_teacher"),
    "losses": ("losses", ""),
    "open_ensemble": ("teachers", "open_ensemble"),
    "open_teacher": ("teachers", "open_teacher"),
    "pick": ("selection", "pick"),
    **{name: ("register", name) for name in ("register_aug", "register_dataset", "register_loss")},
    **{name: ("register", name) for name in ("register_model", "register_pick")},
    "train_student": ("stages", "train_student"),
    "train_teacher": ("stages", "train_teacher"),
    "wrap_function": ("models.wrapped", "wrap_function"),
}
"""The module of each public name, and its name there; none for a module."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = PUBLIC[name]
    found = import_module(f"{__name__}.{module}")
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
