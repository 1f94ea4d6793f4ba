"""Boxes on images of another size than that on which they were drawn."""

import numpy as np
import torch
from torch import Tensor

from kdcache.compute import to_device

__all__ = ["axis_coverage", "scaled_cutmix"]

ROWS, COLUMNS = slice(0, 2), slice(2, 4)
"""Edges of a box along each axis: top and bottom, left and right."""


def scaled_cutmix(first: Tensor, second: Tensor, parameters: np.ndarray, size: int) -> Tensor:
    """Fill a box of each view that was drawn on images of another size.

    The box keeps its share of the image: a pixel that it covers in part is mixed by that part. Computed in integers.

    Parameters
    ----------
    first, second, parameters
        As for `kdcache.views.mixes.cutmix`; the images are uint8.
    size : int
        Side of the images on which the boxes were drawn.
    """
    side, device = first.shape[-1], first.device
    rows, columns = (to_device(axis_coverage(parameters[:, edges], size, side), device) for edges in (ROWS, COLUMNS))
    box = (rows[:, :, None] * columns[:, None])[..., None]
    outer, inner = (images.permute(0, 2, 3, 1).int() for images in (first, second))
    whole = size * size
    mixed = (outer * whole + (inner - outer) * box + whole // 2) // whole
    return mixed.byte().permute(0, 3, 1, 2)


def axis_coverage(edges: np.ndarray, size: int, side: int) -> Tensor:
    """Compute which part of each row or column of pixels is in a box that was drawn on images of another size.

    Parameters
    ----------
    edges : ndarray of integers, shape (B, 2)
        First and last edge along the axis, as drawn by `kdcache.views.mixes.draw_cutmix` on images of `size`.
    size : int
    side : int
        Side of the images whose pixels are covered.

    Returns
    -------
    Tensor of int32, shape (B, side)
        In parts of ``size``. Their sum is exactly the length of the box.
    """
    low, high = (torch.from_numpy(edges).int() * side)[:, :, None].unbind(1)  # a pixel is now `size` long
    start = torch.arange(side, dtype=torch.int32) * size
    return (torch.minimum(start + size, high) - torch.maximum(start, low)).clamp(min=0)
