"""Evaluation mode for a while, after which each module has its own mode again."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context in evaluation mode. Afterwards, batch norms that the user froze are in evaluation mode still."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        network.train(modes[network])  # which does more than set the mode in some networks
        for module, mode in modes.items():
            module.training = mode
