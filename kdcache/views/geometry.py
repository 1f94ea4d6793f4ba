"""Where x is cut out of an image, and how a whole batch is cropped and flipped at once."""

import math

import torch
from torch import Tensor
from torch.nn import functional

Box = tuple[int, int, int, int]

__all__ = ["crop_flip", "flip_some", "random_part", "take"]


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
    padded = functional.pad(torch.stack(mirrored.unbind(1), -1), (0, 0, *(padding,) * 4))  # channels last
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


def flip_some(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror some images left to right.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
    flip : Tensor of bool, shape (B,)

    Returns
    -------
    Tensor, shape (B, C, H, W)
    """
    return torch.where(flip[:, None, None, None], images.flip(3), images)


AREA = (0.08, 1.0)
"""Least and largest share of a picture's area that x shows."""

RATIO = (3 / 4, 4 / 3)
"""Least and largest width of x as it is cut out, in heights."""

TRIES = 10

_BITS = 15


def _roots(of: float, count: int) -> list[float]:
    roots = []
    for _ in range(count):
        of = math.sqrt(of)
        roots.append(of)
    return roots


# (4/3 : 3/4) to the power of 1/2, 1/4, ...: a square root is exactly rounded on every machine, a logarithm is not.
_POWERS = _roots(RATIO[1] / RATIO[0], _BITS)


def random_part(word: int, width: int, height: int) -> Box:
    """Find the part of a picture that x shows, as RandomResizedCrop does (Szegedy et al. 2015, torchvision).

    The share of the area is uniform, the aspect ratio log-uniform, the place uniform, each of 15 or 16 bits of a
    random word that does not depend on the picture. A part that does not fit is drawn again, from a word that follows
    from the one before; after `TRIES` it is the middle of the picture, as much as the aspect ratio allows. All
    arithmetic is exactly rounded (+ - * / and square roots), so a word means the same part on every machine.

    Parameters
    ----------
    word : int
        64 random bits; the lowest one is not looked at.
    width, height : int
        Of the picture, in pixels.

    Returns
    -------
    tuple of int
        Left, top, right, bottom, the latter two exclusive.
    """
    word -= word & 1  # the flip's
    for _ in range(TRIES):
        area = (AREA[0] + (AREA[1] - AREA[0]) * ((word >> 16 & 0xFFFF) / 2**16)) * (width * height)
        ratio = RATIO[0]
        for bit, power in enumerate(_POWERS):
            if word >> (_BITS - bit) & 1:
                ratio *= power
        wide, high = math.floor(math.sqrt(area * ratio) + 0.5), math.floor(math.sqrt(area / ratio) + 0.5)
        if 0 < wide <= width and 0 < high <= height:
            top, left = (word >> 48) * (height - high + 1) >> 16, (word >> 32 & 0xFFFF) * (width - wide + 1) >> 16
            return left, top, left + wide, top + high
        word = _following(word)
    wide = min(width, math.floor(height * RATIO[1] + 0.5))
    high = min(height, math.floor(width / RATIO[0] + 0.5))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _following(word: int) -> int:
    """Make another random word of one: a step of SplitMix64 (Steele, Lea and Flood 2014)."""
    word = (word + 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> shift) * factor % 2**64
    return word ^ word >> 31
