"""The sizes of the networks, computed from the code."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdcache.choices import ModelSize
from kdcache.models.registry import REGISTRY

__all__ = ["model_sizes"]


def model_sizes(num_classes: int, image_size: int) -> dict[str, ModelSize]:
    """Count the parameters and multiply-adds of every network of kdcache, on torch's ``meta`` device."""
    return {name: _size_of(name, num_classes, image_size) for name in REGISTRY}


def _size_of(name: str, num_classes: int, image_size: int) -> ModelSize:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        body = REGISTRY[name](num_classes).eval()
        body(torch.empty(1, 3, image_size, image_size))
    parameters = sum(parameter.numel() for parameter in body.parameters() if parameter.requires_grad)
    return ModelSize(parameters, counter.get_total_flops() // 2)
