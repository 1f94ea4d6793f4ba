"""The networks of kdcache by name, and how a network is built.

A new network is one entry in the ``NETWORKS`` of its module. ``python data/make_model_sizes.py`` then adds its name and
size to the table that the command line reads without torch.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from kdcache.choices import IMAGE_SIZES, MAX_CLASSES
from kdcache.compute import random_weights
from kdcache.errors import UsageError, did_you_mean, problem
from kdcache.models import bottleneck, external, mobilenet, resnet, shufflenet, vgg, wrn
from kdcache.models.base import FeatureNet
from kdcache.models.network import Network

__all__ = ["REGISTRY", "build", "expected_state"]

#: Builds the body of each network for a number of classes.
REGISTRY: dict[str, Callable[[int], FeatureNet]] = {
    name: make
    for family in (resnet, wrn, vgg, bottleneck, mobilenet, shufflenet)
    for name, make in family.NETWORKS.items()
}


def build(
    name: str,
    *,
    num_classes: int,
    image_size: int = 32,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    seed: int | None = None,
    feature_names: tuple[str, ...] = (),
) -> Network:
    """Build a network with fresh weights.

    Parameters
    ----------
    name : str
        A key of `REGISTRY`, ``torchvision:NAME``, ``timm:NAME``, or ``python:module:callable``. The callable gets
        ``num_classes``, and must have been trusted, see `kdcache.choices.trust`.
    num_classes : int
        Width of the logits.
    image_size : int
        Height and width of the images, within `kdcache.choices.IMAGE_SIZES`.
    mean, std : tuple of float
        Normalization of the three channels on a scale of 0 to 1. By default pixels become -1..1.
    seed : int, optional
        Makes the weights a function of this number, and leaves torch's global generators unchanged. Without it, the
        weights come from torch's global generator.
    feature_names : tuple of str
        Modules of an external network whose outputs are its features.

    Raises
    ------
    UsageError
        If the name is unknown or a value is out of range, with one line for each problem.
    """
    problems = _problems(name, num_classes, image_size)
    numbers = (*mean, *std)
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, numbers)) or min(std) <= 0:
        problems.append(problem("normalization", expected="three finite means, three positive stds", got=(mean, std)))
    if problems:
        raise UsageError(*problems)
    with nullcontext() if seed is None else random_weights(seed):
        body = REGISTRY[name](num_classes) if name in REGISTRY else external.build_body(name, num_classes, image_size)
    return Network(
        body,
        name=name,
        num_classes=num_classes,
        image_size=image_size,
        mean=mean,
        std=std,
        feature_names=tuple(feature_names),
        channels_last=True,
    )


def expected_state(name: str, num_classes: int, image_size: int) -> dict[str, Tensor] | None:
    """Compute the shapes and dtypes of a network's state without allocating memory for it.

    Parameters
    ----------
    name : str
        As for `build`.
    num_classes, image_size : int

    Returns
    -------
    dict of str to Tensor or None
        Tensors on torch's ``meta`` device. ``None`` for the few networks that cannot be built there, and for
        ``python:`` code, which may not support it.

    Raises
    ------
    UsageError
        As for `build`.
    """
    if problems := _problems(name, num_classes, image_size):
        raise UsageError(*problems)
    with random_weights(), torch.device("meta"), _WithoutRandomValues():
        if name in REGISTRY:
            return REGISTRY[name](num_classes).state_dict()
        body = external.build_meta_body(name, num_classes, image_size)
    return body.state_dict() if body else None


class _WithoutRandomValues(TorchFunctionMode):
    """Draws nothing: tensors without memory have no values, and torch would import its compiler to draw them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _problems(name: str, num_classes: int, image_size: int) -> list[str]:
    smallest, largest = IMAGE_SIZES
    problems = []
    if name not in REGISTRY and name.partition(":")[0] not in external.SOURCES:
        expected, remedy = f"one of {', '.join(REGISTRY)}", did_you_mean(name, REGISTRY)
        problems.append(problem("network name", expected=expected, got=name, remedy=remedy))
    if not 1 <= num_classes <= MAX_CLASSES:
        problems.append(problem("number of classes", expected=f"1 to {MAX_CLASSES}", got=num_classes))
    if not smallest <= image_size <= largest:
        problems.append(problem("image size", expected=f"{smallest} to {largest}", got=image_size))
    return problems
