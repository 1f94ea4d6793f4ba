"""How large networks are, and which of them the paper put together."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdcache.models import REGISTRY

__all__ = ["PAIRS", "Size", "sizes"]

PAIRS = (
    ("wrn_40_2", "wrn_16_2", "CIFAR-100, Tiny ImageNet"),
    ("resnet56", "resnet20", "CIFAR-100, Tiny ImageNet"),
    ("resnet32x4", "resnet8x4", "CIFAR-100, Tiny ImageNet"),
    ("vgg13", "vgg8", "CIFAR-100, Tiny ImageNet"),
    ("vgg13", "MobileNetV2", "CIFAR-100, Tiny ImageNet"),
    ("ResNet50", "vgg8", "CIFAR-100, Tiny ImageNet"),
    ("resnet32x4", "ShuffleV2", "CIFAR-100, Tiny ImageNet"),
    ("torchvision:resnet34", "torchvision:resnet18", "ImageNet"),
)
"""Teacher, student and datasets of Tables 3 to 5."""


class Size(NamedTuple):
    """Size of a network.

    Attributes
    ----------
    name : str
    parameters : int
        Trainable ones.
    multiply_adds : int
        Of convolutions and linear layers, for one image.
    """

    name: str
    parameters: int
    multiply_adds: int


def sizes(num_classes: int, image_size: int) -> Iterator[Size]:
    """Count the parameters and multiply-adds of every network that is known by name; nothing is computed."""
    for name, make in REGISTRY.items():
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            body = make(num_classes).eval()
            body(torch.empty(1, 3, image_size, image_size))
        parameters = sum(parameter.numel() for parameter in body.parameters() if parameter.requires_grad)
        yield Size(name, parameters, counter.get_total_flops() // 2)
