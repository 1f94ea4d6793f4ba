"""Crop and flip of a whole batch at once."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop_flip", "take"]


def crop_flip(images: Tensor, crop: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Cut a window out of each zero-padded image, and mirror some.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
    crop : Tensor of integers, shape (B, 2)
        Top and left edge of the window in the padded image, 0 to ``2 * padding``.
    flip : Tensor of bool, shape (B,)
        Which images are mirrored left to right, after the crop.
    padding : int
        Pixels of zeros (black) added at each side.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        In channels-last order.
    """
    count, channels, height, width = images.shape
    numbers = torch.arange(count, device=images.device)
    mirrored = torch.cat([images, images.flip(3)]).index_select(0, numbers + count * flip)
    padded = torch.stack(functional.pad(mirrored, (padding,) * 4).unbind(1), -1)  # channels last
    top, left = crop.long().unbind(1)
    left = torch.where(flip, 2 * padding - left, left)  # of the mirror image
    rows = numbers[:, None] * padded.shape[1] + top[:, None] + torch.arange(height, device=images.device)
    # A row of a window is a stretch of memory. Copying those takes a quarter of the time of gathering pixels.
    stretches = padded.view(-1).unfold(0, width * channels, 1)
    windows = stretches.index_select(0, ((rows * padded.shape[2] + left[:, None]) * channels).view(-1))
    return windows.view(count, height, width, channels).permute(0, 3, 1, 2)


def take(images: Tensor, rows: Tensor) -> Tensor:
    """Copy some images of a batch, (B, C, H, W), in the channels-last order that networks read.

    Indexing goes element by element, and takes ten times as long as copying images whole.
    """
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
