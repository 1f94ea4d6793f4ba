"""Conversion of arrays of images to the format that kdcache trains on."""

import numpy as np
import torch
import torch.nn.functional as F

from kdcache.cards import Card
from kdcache.datasets.split import Split
from kdcache.errors import UsageError, problem

__all__ = ["check_labels", "make_split"]


def make_split(where: object, card: Card, images: np.ndarray, labels: np.ndarray) -> Split:
    """Check arrays against the card of their dataset, and make a split of them.

    Parameters
    ----------
    where : object
        The file of the arrays, for the messages.
    card : Card
        Its number of classes is known.
    images : ndarray
        (N, H, W, C) uint8 with one or three channels. One channel is repeated to three. Images smaller than
        `card.image_size` are zero-padded, by the same amount on opposite sides.
    labels : ndarray
        (N,) integers from 0 to `card.classes` - 1.

    Raises
    ------
    UsageError
        If the arrays have another dtype, shape, or range.
    """
    size = card.image_size
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise UsageError(
            problem(f"images of {where}", expected="uint8 (N, H, W, 1 or 3)", got=f"{images.dtype} {images.shape}")
        )
    height, width = images.shape[1:3]
    if max(height, width) > size or (size - height) % 2 or (size - width) % 2:
        raise UsageError(
            problem(f"images of {where}", expected=f"{size}x{size}, or less by an even number", got=f"{height}x{width}")
        )
    check_labels(where, card, labels, len(images))
    rows, columns = (size - height) // 2, (size - width) // 2
    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    padded = F.pad(planes, (columns, columns, rows, rows)).expand(-1, 3, -1, -1).contiguous()
    return Split(padded, torch.from_numpy(labels.astype(np.int64)))


def check_labels(where: object, card: Card, labels: np.ndarray, count: int) -> None:
    """Raise `UsageError` unless there is one integer label per image, within the classes of a card."""
    classes = card.classes or 0
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UsageError(
            problem(f"labels of {where}", expected=f"integers ({count},)", got=f"{labels.dtype} {labels.shape}")
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise UsageError(
            problem(f"labels of {where}", expected=f"0 to {classes - 1}", got=f"{labels.min()} to {labels.max()}")
        )
