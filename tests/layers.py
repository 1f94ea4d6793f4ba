"""Layers of networks on their own."""

from typing import TypeVar

from torch import nn

from kdcache.models.hasten import hasten

__all__ = ["hastened"]

Layer = TypeVar("Layer", bound=nn.Module)


def hastened(layer: Layer) -> Layer:
    """Let a layer train as those of networks that are built do."""
    hasten(layer)
    return layer
