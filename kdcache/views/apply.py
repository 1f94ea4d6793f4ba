"""The x' of a batch, made by a mix at the size of its images, and checked."""

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.extensions import explained
from kdcache.views.mixes import find_mix
from kdcache.views.plan import ViewPlan

__all__ = ["apply_mix", "check_sizes"]


def check_sizes(plan: ViewPlan, image_size: int) -> None:
    """Refuse images of another size than the plan's if its views would not show the same."""
    if image_size == plan.image_size:
        return
    if plan.crop_flip and not plan.random_resized:
        what = "image size for views that are padded crops"
        raise UsageError(problem(what, expected=plan.image_size, got=image_size))
    for mix in plan.mixes:
        if find_mix(mix).apply_scaled is None:
            what = f"augmentation {mix} of images of {plan.image_size} pixels: image size of the student"
            remedy = "Its Mix needs an apply_scaled for other sizes, see docs/extending.md."
            raise UsageError(problem(what, expected=plan.image_size, got=image_size, remedy=remedy))


def apply_mix(name: str, first: Tensor, second: Tensor, parameters: np.ndarray, size: int) -> Tensor:
    """Make the x' of a batch, whose parameters were drawn for images of some size.

    Raises
    ------
    KdcacheError
        If they are of a wrong shape or type.
    """
    mix = find_mix(name)
    with explained(f"augmentation {name}", name):
        if mix.apply_scaled is None or first.shape[-1] == size:
            made = mix.apply(first, second, parameters)
        else:
            made = mix.apply_scaled(first, second, parameters, size)
    if not isinstance(made, Tensor):
        raise KdcacheError(problem(f"augmentation {name}: its views", expected="a tensor", got=type(made).__name__))
    dtype = torch.float32 if mix.gives_float else torch.uint8
    if (made.dtype, made.shape, made.device) != (dtype, first.shape, first.device):
        expected, got = (
            f"{str(kind).removeprefix('torch.')} of shape {tuple(shape)} on {device}"
            for kind, shape, device in ((dtype, first.shape, first.device), (made.dtype, made.shape, made.device))
        )
        remedy = "Views are uint8, 0 to 255; the Mix of one that gives float32 in the same range says gives_float=True."
        raise KdcacheError(problem(f"augmentation {name}: its views", expected=expected, got=got, remedy=remedy))
    return made
