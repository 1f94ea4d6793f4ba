"""What a format of the store costs in truth: how far its answers are from the whole ones."""

from typing import NamedTuple

from torch import Tensor

from kdcache.answers.codec import Format, require_finite
from kdcache.losses import kl_divergence

__all__ = ["Loss", "loss_of"]


class Loss(NamedTuple):
    """What gets lost when answers pass through a format.

    Attributes
    ----------
    mean, largest : float
        Kullback-Leibler divergence of an answer that went through the format from the whole one, in nats.
    flips : float
        Share of the answers whose first class is another.
    """

    mean: float
    largest: float
    flips: float


def loss_of(logits: Tensor, format: Format, temperature: float) -> Loss:
    """Send logits (B, C) through a format, and measure what comes out at a temperature."""
    columns = format.encode(logits)
    require_finite(columns)
    found = format.decode(columns, logits.shape[1])
    divergence = kl_divergence(found.double(), logits.double(), temperature)
    flips = (found.argmax(1) != logits.argmax(1)).double().mean()
    return Loss(divergence.mean().item(), divergence.max().item(), flips.item())
