"""The teacher: a frozen network that answers views, always in forwards of one size."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kdcache.compute import Compute
from kdcache.models import Network

__all__ = ["FORWARD_ROWS", "Teacher"]

FORWARD_ROWS = {"cpu": 64, "cuda": 256, "mps": 256}
"""Rows of every forward of the teacher, Q, by kind of device.

The last bits of a row depend on the size of the forward, not on its neighbours: with one size an answer is the same
bits whoever asks it along with whatever else.
"""


class Teacher:
    """A frozen network that answers views.

    Parameters
    ----------
    network : Network
    compute : Compute
        Where and how precisely it runs.
    """

    def __init__(self, network: Network, compute: Compute) -> None:
        self.network = network.to(compute.device).eval().requires_grad_(False)
        self.compute = compute
        self.rows = FORWARD_ROWS[compute.device.type]

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> Tensor:
        """Answer views, in forwards of exactly Q rows, the last one padded.

        Parameters
        ----------
        views : Tensor, shape (B, 3, H, W)
            Pixel values 0 to 255.

        Returns
        -------
        Tensor of float32, shape (B, C)
            Logits.
        """
        answers = []
        for rows, padded in self._forwards(views):
            with self.compute.autocast():
                answers.append(self.network(padded)[:rows].float())
        return torch.cat(answers)

    @torch.no_grad()
    def with_features(self, views: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Answer views with what the network's inner tensors were in the same forwards.

        Returns
        -------
        logits : Tensor of float32, shape (B, C)
        features : list of Tensor of float32
            See `kdcache.models.Network.with_features`.
        """
        answers = []
        for rows, padded in self._forwards(views):
            with self.compute.autocast():
                logits, features = self.network.with_features(padded)
            answers.append([tensor[:rows].float() for tensor in (logits, *features)])
        logits, *features = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return logits, features

    def _forwards(self, views: Tensor) -> Iterator[tuple[int, Tensor]]:
        for rows in views.split(self.rows):
            missing = self.rows - len(rows)
            yield len(rows), torch.cat([rows, rows[:1].expand(missing, -1, -1, -1)]) if missing else rows
