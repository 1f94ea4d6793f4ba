"""Layers that torch is slow with on a processor get another forward; their class and their state stay as they are."""

from collections.abc import Callable
from types import MethodType

from torch import Tensor, nn

from kdcache.models import activation, depthwise, norm, pool

__all__ = ["hasten"]

WAYS: tuple[tuple[Callable[[nn.Module], bool], Callable[..., Tensor]], ...] = (
    (depthwise.suits, depthwise.forward),
    (norm.suits, norm.forward),
    (pool.suits, pool.forward),
    (activation.suits, activation.forward),
)
"""Which modules get which forward; each falls back to torch's where that is as fast."""


def hasten(network: nn.Module) -> None:
    """Let a network, whoever wrote it, train faster; what its layers give is the same, up to rounding."""
    for module in network.modules():
        for suits, forward in WAYS:
            if suits(module):
                module.forward = MethodType(forward, module)
