"""Crop and flip of a whole batch at once."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop_flip"]


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
    """
    height, width = images.shape[2:]
    padded = functional.pad(images, (padding,) * 4)
    rows = crop[:, :1].long() + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = crop[:, 1:].long() + torch.where(flip[:, None], columns.flip(0), columns)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # One gather does both: a mirrored view reads its columns from right to left.
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
