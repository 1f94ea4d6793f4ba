"""The views of one training step, with their labels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.cards import Rendering
from kdcache.datasets.split import UNLABELLED

__all__ = ["Batch", "hard_labels"]


@dataclass(frozen=True)
class Batch:
    """The views of one step: x of B samples, then the M B mixed views, slot by slot.

    Row i of ``views`` has the address (``epoch``, ``positions[i % B]``, ``i // B``); slot 0 is x.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    step : int
        Index in the epoch, counted from 0.
    positions : range
        Index of each sample in the epoch's order, B of them.
    global_positions : range
        Positions of all processes; ``positions`` is this one's part.
    samples, labels : Tensor of int64, shape (B,)
        The label of a sample without one is -1.
    views : Tensor, shape ((1 + M) B, 3, H, W)
        Pixel values 0 to 255; uint8, or float32 with mixup.
    partner_labels : Tensor of int64, shape (M B,)
    lam : Tensor of float32, shape (M B,)
        Share of the label that the sample keeps; the partner has the rest.
    random_score : Tensor of float32, shape (M B,)
    partners : ndarray of int64, shape (M B,)
        Index of the sample whose x is mixed in; the sample's own where x' is made from x alone.
    standard_keys : ndarray of int64, shape (B,)
        Index of each x among all possible ones; see `ViewPlan.standard_keys`.
    views_of : object or None
        Identifies the `Views` that made it, see `Views.same_as`.
    other_images : Tensor or None
        What `Views.of_batch` makes the views of another network from, if it was decoded already.
    other_rendering : Rendering or None
        How they were rendered.
    """

    epoch: int
    step: int
    positions: range
    global_positions: range
    samples: Tensor
    labels: Tensor
    views: Tensor
    partner_labels: Tensor
    lam: Tensor
    random_score: Tensor
    partners: np.ndarray
    standard_keys: np.ndarray
    views_of: object | None = None
    other_images: Tensor | None = None
    other_rendering: Rendering | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def slots(self) -> int:
        """Mixed views per sample, M."""
        return len(self.views) // len(self) - 1

    def mixed_views(self) -> Tensor:
        """The mixed views alone, (M B, 3, H, W)."""
        return self.views[len(self) :]

    def mixed_labels(self) -> Tensor:
        """Argmax of each mixed label, (M B,) int64, see `hard_labels`."""
        return hard_labels(self.labels.repeat(self.slots), self.partner_labels, self.lam)


def hard_labels(labels: Tensor, partner_labels: Tensor, lam: Tensor) -> Tensor:
    """Argmax of each mixed label, int64 (R,). Ties go to the lower class; it is -1 where either label is unknown.

    Parameters
    ----------
    labels, partner_labels : Tensor of int64, shape (R,)
    lam : Tensor of float32, shape (R,)
        Share of the label that belongs to ``labels``.
    """
    by_share = torch.where(lam > 0.5, labels, partner_labels)
    lower = torch.minimum(labels, partner_labels)
    return torch.where((lam == 0.5) | (lower == UNLABELLED), lower, by_share)
