"""The sizes of the networks, computed from the code."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdcache.choices import ModelSize
from kdcache.models.registry import REGISTRY

__all__ = ["model_sizes", "size_of"]


def model_sizes(num_classes: int, image_size: int) -> dict[str, ModelSize]:
    """Count the parameters and multiply-adds of every network of kdcache, on torch's ``meta`` device."""
    with torch.device("meta"):
        image = torch.empty(1, 3, image_size, image_size)
        return {name: size_of(REGISTRY[name](num_classes).eval(), image) for name in REGISTRY}


def size_of(body: nn.Module, image: Tensor) -> ModelSize:
    """Count the parameters of a network in evaluation mode, and its multiply-adds for an image (1, 3, H, W)."""
    # Attention as products of matrices, which are counted; not all of the faster implementations are.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        body(image)
    return ModelSize(sum(parameter.numel() for parameter in body.parameters()), counter.get_total_flops() // 2)
