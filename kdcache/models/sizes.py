"""The sizes of the networks, computed from the code."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdcache.choices import ModelSize
from kdcache.models.registry import REGISTRY

__all__ = ["describe_cost", "model_sizes"]

LARGEST_IMAGE = 64
"""Height and width in pixels of the largest images for which networks of kdcache were made: those of Tiny ImageNet."""

MOBILE = "torchvision:mobilenet_v3_small"
MOBILE_MULTIPLY_ADDS = 1.13e-3
"""A network for pictures on phones, and its multiply-adds per pixel, in millions."""


def model_sizes(num_classes: int, image_size: int) -> dict[str, ModelSize]:
    """Count the parameters and multiply-adds of every network of kdcache, on torch's ``meta`` device."""
    return {name: _size_of(name, num_classes, image_size) for name in REGISTRY}


def describe_cost(name: str, image_size: int) -> str | None:
    """Say what a network of kdcache costs on images for which it was not made; ``None`` for others.

    It has no stem that reduces the resolution before the first block.
    """
    if name not in REGISTRY or image_size <= LARGEST_IMAGE:
        return None
    millions, mobile = _size_of(name, 10, image_size).multiply_adds / 1e6, MOBILE_MULTIPLY_ADDS * image_size**2
    return (
        f"{name} was made for images of 32 pixels: at {image_size} it takes {millions:,.0f} million multiply-adds per "
        f"image, {millions / mobile:.0f} times those of {MOBILE} ({mobile:,.0f} million)."
    )


def _size_of(name: str, num_classes: int, image_size: int) -> ModelSize:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        body = REGISTRY[name](num_classes).eval()
        body(torch.empty(1, 3, image_size, image_size))
    parameters = sum(parameter.numel() for parameter in body.parameters() if parameter.requires_grad)
    return ModelSize(parameters, counter.get_total_flops() // 2)
