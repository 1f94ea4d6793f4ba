"""Encoded logits on their way from the device to the host."""

from typing import NamedTuple

import numpy as np
import torch

from kdcache.answers.encoding import EncodedAnswers, require_finite

__all__ = ["CopiedAnswers", "on_cpu"]


class CopiedAnswers(NamedTuple):
    """The encoded logits of some views, which are on the host once an event of the GPU has happened.

    Attributes
    ----------
    keys : ndarray of int64, shape (B,)
        Keys of the views, see `kdcache.views.ViewPlan.standard_keys`.
    columns : EncodedAnswers
    event : Event or None
        ``None`` if they are there.
    """

    keys: np.ndarray
    columns: EncodedAnswers
    event: torch.cuda.Event | None

    @classmethod
    def of(cls, keys: np.ndarray, columns: EncodedAnswers) -> "CopiedAnswers":
        """Begin to copy; waits for devices other than GPUs."""
        if not all(column.is_cuda for column in columns.values()):
            return cls(keys, on_cpu(columns), None)
        copied = {name: column.to("cpu", non_blocking=True) for name, column in columns.items()}
        event = torch.cuda.Event()
        event.record()
        return cls(keys, copied, event)

    def is_done(self) -> bool:
        """Whether the logits are on the host."""
        return self.event is None or self.event.query()

    def finished(self) -> EncodedAnswers:
        """Wait for the copy, and check the logits."""
        if self.event is not None:
            self.event.synchronize()
            require_finite(self.columns)
        return self.columns


def on_cpu(columns: EncodedAnswers) -> EncodedAnswers:
    """Copy logits to the host, and check those that come from a device; waits for it."""
    if all(column.device.type == "cpu" for column in columns.values()):
        return columns  # checked when they were encoded
    copied = {name: column.cpu() for name, column in columns.items()}
    require_finite(copied)
    return copied
