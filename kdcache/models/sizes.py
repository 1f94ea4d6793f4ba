"""The sizes of the networks, computed from the code."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdcache.choices import ModelSize
from kdcache.errors import UsageError, problem
from kdcache.models.external import build_meta_body
from kdcache.models.registry import REGISTRY

__all__ = ["describe_cost", "model_sizes", "size_of", "vector_width"]

LARGEST_IMAGE = 64
"""Height and width in pixels of the largest images for which networks of kdcache were made: those of Tiny ImageNet."""

MOBILE = "torchvision:mobilenet_v3_small"
MOBILE_MULTIPLY_ADDS = 1.13e-3
"""A network for pictures on phones, and its multiply-adds per pixel, in millions."""


def model_sizes(num_classes: int, image_size: int) -> dict[str, ModelSize]:
    """Count the parameters and multiply-adds of every network of kdcache, on torch's ``meta`` device."""
    with torch.device("meta"):
        image = torch.empty(1, 3, image_size, image_size)
        return {name: size_of(REGISTRY[name](num_classes).eval(), image) for name in REGISTRY}


def size_of(body: nn.Module, image: Tensor) -> ModelSize:
    """Count the parameters of a network in evaluation mode, and its multiply-adds for an image (1, 3, H, W)."""
    # Attention as products of matrices, which are counted; not all of the faster implementations are.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            body(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return ModelSize(sum(parameter.numel() for parameter in body.parameters()), counter.get_total_flops() // 2)


def vector_width(name: str, num_classes: int, image_size: int) -> int:
    """Find the length of the vector that the last linear layer of a network reads.

    Raises
    ------
    UsageError
        If it has none.
    """
    with torch.device("meta"):
        body = build_meta_body(name, num_classes, image_size) if name not in REGISTRY else REGISTRY[name](num_classes)
    layers = [] if body is None else [module for module in body.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(problem(f"network {name}", expected="a last layer that is linear", got="another"))
    return layers[-1].in_features


def describe_cost(name: str, image_size: int) -> str | None:
    """Say what a network of kdcache costs on images for which it was not made; ``None`` for others.

    It has no stem that reduces the resolution before the first block.
    """
    if name not in REGISTRY or image_size <= LARGEST_IMAGE:
        return None
    with torch.device("meta"):
        size = size_of(REGISTRY[name](10).eval(), torch.empty(1, 3, image_size, image_size))
    millions, mobile = size.multiply_adds / 1e6, MOBILE_MULTIPLY_ADDS * image_size**2
    return (
        f"{name} was made for images of 32 pixels: at {image_size} it takes {millions:,.0f} million multiply-adds per "
        f"image, {millions / mobile:.0f} times those of {MOBILE} ({mobile:,.0f} million)."
    )
