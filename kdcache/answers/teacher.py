"""The teacher: a frozen network that answers views, always in forwards of one size."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from kdcache.compute import Compute
from kdcache.models import FeatureNet, Network, checkpoint
from kdcache.models.inference import rewrite

__all__ = ["FORWARD_ROWS", "Teacher"]

FORWARD_ROWS = {"cpu": 64, "cuda": 256, "mps": 256}
"""Rows of every forward of the teacher, Q, by kind of device.

The last bits of a row depend on the size of the forward, not on its neighbours: with one size an answer is the same
bits whoever asks it along with whatever else.
"""

REMEDY = "a smaller teacher, or answers that kdcache cache fill stored on a larger machine"
"""What to try where the memory does not suffice for a forward: its rows are what they are."""


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
        small = compute.device.type == "cpu" and compute.precision == "bfloat16"
        body = self.network.body
        self._quick = rewrite(body, torch.bfloat16) if small and isinstance(body, FeatureNet) else None

    @property
    def rewritten(self) -> bool:
        """Whether its batch norms are folded and its steps joined, see `kdcache.models.inference`.

        That is so for our networks on processors in bfloat16, whose rounding moves the answers more than folding does.
        In float32 they run as they stand.
        """
        return self._quick is not None

    @cached_property
    def fingerprint(self) -> str:
        """What its answers follow from, see `kdcache.models.checkpoint.fingerprint`; computed once, as it is frozen."""
        return checkpoint.fingerprint(self.network)

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
            logits = self._forward(padded, with_features=False)[0]
            answers.append(logits[:rows].float())
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
            found = self._forward(padded, with_features=True)
            answers.append([tensor[:rows].float() for tensor in found])
        logits, *features = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return logits, features

    def _forward(self, views: Tensor, with_features: bool) -> tuple[Tensor, ...]:
        """Logits, and with them the features if these are wanted: the logits are the same bits either way."""
        work = f"a forward of {len(views)} views through the teacher {self.network.name}"
        with self.compute.memory_explained(work, REMEDY):
            if self._quick is not None:
                found: tuple[Tensor, ...] = self._quick(self.network.normalize(views).bfloat16())
                return found
            with self.compute.autocast():
                if not with_features:
                    return (self.network(views),)
                logits, features = self.network.with_features(views)
            return (logits, *features)

    def _forwards(self, views: Tensor) -> Iterator[tuple[int, Tensor]]:
        for rows in views.split(self.rows):
            missing = self.rows - len(rows)
            yield len(rows), torch.cat([rows, rows[:1].expand(missing, -1, -1, -1)]) if missing else rows
