"""The teacher: a frozen network whose forward passes all have the same number of rows."""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from kdcache.answers.head import LinearHead, padded_blocks
from kdcache.compute import Compute
from kdcache.errors import KdcacheError, problem
from kdcache.models import FeatureNet, Network, checkpoint
from kdcache.models.inference import fuse_for_inference

__all__ = ["FORWARD_BATCH_SIZE", "Teacher"]

FORWARD_BATCH_SIZE = {"cpu": 64, "cuda": 256, "mps": 256}
"""Rows Q of every forward of the teacher, by type of device.

The last bits of a row of logits depend on the number of rows in the forward, but not on the other rows. With a fixed
number of rows, a view has the same logits in whichever batch it comes.
"""

OUT_OF_MEMORY_REMEDY = "a smaller teacher, or logits that kdcache cache fill stored on a larger machine"
"""For an error message: the number of rows cannot be reduced."""


class Teacher:
    """A frozen network in evaluation mode.

    Parameters
    ----------
    network : Network
    compute : Compute
        Device and precision.
    """

    def __init__(self, network: Network, compute: Compute) -> None:
        self.network = network.to(compute.device).eval().requires_grad_(False)
        body = self.network.body
        if not network.is_native:  # neither onnxruntime nor a function knows of autocast
            compute = replace(compute, precision=str(body.precision))
        self.compute = compute
        self._versions = self._count_changes()
        self.rows = FORWARD_BATCH_SIZE[compute.device.type]
        # In bfloat16, rounding changes the logits more than folded batch norms do. In float32, nothing is fused.
        can_fuse = compute.device.type == "cpu" and compute.precision == "bfloat16"
        self._fused = fuse_for_inference(body, torch.bfloat16) if can_fuse and isinstance(body, FeatureNet) else None

    @property
    def is_fused(self) -> bool:
        """Whether the network is fused for inference, see `kdcache.models.inference`."""
        return self._fused is not None

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what the logits depend on, see `kdcache.models.checkpoint.fingerprint`."""
        return checkpoint.fingerprint(self.network)

    @cached_property
    def head(self) -> LinearHead:
        """Its last layer; a `UsageError` if that is not linear."""
        return LinearHead(self.network.linear_head(), self.rows)

    @property
    def origin(self) -> dict[str, str]:
        """What a run records of its teacher, and compares when it is resumed."""
        return {"teacher": self.fingerprint, "teacher precision": self.compute.precision}

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> Tensor:
        """Compute logits in forwards of exactly Q rows, the last one padded.

        Parameters
        ----------
        views : Tensor, shape (B, 3, H, W)
            Pixel values 0 to 255.

        Returns
        -------
        Tensor of float32, shape (B, C)
            Logits.
        """
        return self._output(views, 0, with_features=False)

    @torch.inference_mode()
    def vectors(self, views: Tensor) -> Tensor:
        """Compute the vectors that the last layer reads, float32 (B, D), in the same forwards as logits."""
        return self._output(views, -1, with_features=True)

    def _output(self, views: Tensor, index: int, with_features: bool) -> Tensor:
        self._require_unchanged()
        blocks = padded_blocks(views, self.rows)
        return torch.cat([self._forward(padded, with_features)[index][:rows].float() for rows, padded in blocks])

    @torch.no_grad()
    def with_features(self, views: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute logits and features in the same forwards; the logits are the same bits as without features.

        Returns
        -------
        logits : Tensor of float32, shape (B, C)
        features : list of Tensor of float32
            See `kdcache.models.Network.with_features`.
        """
        self._require_unchanged()
        parts = []
        for rows, padded in padded_blocks(views, self.rows):
            outputs = self._forward(padded, with_features=True)
            parts.append([output[:rows].float() for output in outputs])
        logits, *features = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
        return logits, features

    def _forward(self, views: Tensor, with_features: bool) -> tuple[Tensor, ...]:
        """Compute the logits, and the features if they are wanted."""
        work = f"a forward of {len(views)} views through the teacher {self.network.name}"
        with self.compute.memory_explained(work, OUT_OF_MEMORY_REMEDY):
            if self._fused is not None:
                outputs: tuple[Tensor, ...] = self._fused(self.network.normalize(views).bfloat16())
                return outputs
            with self.compute.autocast():
                if not with_features:
                    return (self._checked(self.network(views), len(views)),)
                logits, features = self.network.with_features(views)
            return (logits, *features)

    def _checked(self, logits: object, rows: int) -> Tensor:
        """Check what a network of the user's own returns."""
        expected = (rows, self.network.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            what = f"what the teacher {self.network.name} returns for {rows} images"
            raise KdcacheError(problem(what, expected=f"logits of shape {expected}", got=got))
        return logits

    def _count_changes(self) -> int:
        """Count how often the tensors of the network were changed in place, as far as torch tells."""
        tensors = (*self.network.parameters(), *self.network.buffers())
        return sum(tensor._version for tensor in tensors if not tensor.is_inference())

    def _require_unchanged(self) -> None:
        """Keep the network as its fingerprint says: the caller may have the same module.

        Raises
        ------
        KdcacheError
            If its weights were changed.
        """
        if self.network.training:
            self.network.eval()
        if self._count_changes() != self._versions:
            what, remedy = f"weights of the teacher {self.network.name}", "Open it again after they were changed."
            raise KdcacheError(problem(what, expected="those that it was opened with", got="others", remedy=remedy))
