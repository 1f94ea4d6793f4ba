"""Crops and flips: of whole batches at once, and the boxes of random resized crops."""

import math

import torch
from torch import Tensor
from torch.nn import functional

Box = tuple[int, int, int, int]

__all__ = ["crop_flip", "flip_some", "random_resized_box", "take"]


def crop_flip(images: Tensor, crop: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Crop each image after zero padding, and flip some of them.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
    crop : Tensor of integers, shape (B, 2)
        Top and left edge of the crop in the padded image, 0 to ``2 * padding``.
    flip : Tensor of bool, shape (B,)
        Which images are flipped horizontally after the crop.
    padding : int
        Pixels of zeros (black) added on each side.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        In channels-last memory format.
    """
    count, channels, height, width = images.shape
    numbers = torch.arange(count, device=images.device)
    flipped = torch.cat([images, images.flip(3)]).index_select(0, numbers + count * flip)
    padded = functional.pad(torch.stack(flipped.unbind(1), -1), (0, 0, *(padding,) * 4))  # channels last
    top, left = crop.long().unbind(1)
    left = torch.where(flip, 2 * padding - left, left)  # in the flipped image
    rows = numbers[:, None] * padded.shape[1] + top[:, None] + torch.arange(height, device=images.device)
    # A row of a crop is contiguous in memory: copying rows takes a quarter of the time of gathering pixels.
    contiguous = padded.view(-1).unfold(0, width * channels, 1)
    crops = contiguous.index_select(0, ((rows * padded.shape[2] + left[:, None]) * channels).view(-1))
    return crops.view(count, height, width, channels).permute(0, 3, 1, 2)


def take(images: Tensor, rows: Tensor) -> Tensor:
    """Copy some images of a batch, (B, C, H, W), in channels-last memory format.

    Whole images are copied at once; indexing copies element by element and takes ten times as long.
    """
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def flip_some(images: Tensor, flip: Tensor) -> Tensor:
    """Flip some images horizontally.

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
"""Smallest and largest fraction of a picture's area in a crop."""

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest aspect ratio of a crop, width over height."""

ATTEMPTS = 10
"""Random boxes that are tried before the central one is taken."""

_BITS = 15


def _repeated_roots(value: float, count: int) -> list[float]:
    roots = []
    for _ in range(count):
        value = math.sqrt(value)
        roots.append(value)
    return roots


# (4/3 : 3/4) to the power of 1/2, 1/4, ...: square roots are exactly rounded on every machine, logarithms are not.
_POWERS = _repeated_roots(RATIO[1] / RATIO[0], _BITS)


def random_resized_box(word: int, width: int, height: int) -> Box:
    """Compute the box of a random resized crop (Szegedy et al., 2015, arXiv:1409.4842).

    The area is uniform, the aspect ratio log-uniform and the position uniform, each from 15 or 16 bits of a random
    word that does not depend on the picture. A box that does not fit is drawn again from the next word; after
    `ATTEMPTS` the largest central box of an allowed aspect ratio is taken. All arithmetic is exactly rounded (+ - * /
    and square roots), so a word gives the same box on every machine.

    Parameters
    ----------
    word : int
        64 random bits; the lowest one is ignored.
    width, height : int
        Size of the picture, in pixels.

    Returns
    -------
    tuple of int
        Left, top, right, bottom; the last two are exclusive.
    """
    word -= word & 1  # the flip's bit
    for _ in range(ATTEMPTS):
        area = (AREA[0] + (AREA[1] - AREA[0]) * ((word >> 16 & 0xFFFF) / 2**16)) * (width * height)
        ratio = RATIO[0]
        for bit, power in enumerate(_POWERS):
            if word >> (_BITS - bit) & 1:
                ratio *= power
        wide, high = math.floor(math.sqrt(area * ratio) + 0.5), math.floor(math.sqrt(area / ratio) + 0.5)
        if 0 < wide <= width and 0 < high <= height:
            top, left = (word >> 48) * (height - high + 1) >> 16, (word >> 32 & 0xFFFF) * (width - wide + 1) >> 16
            return left, top, left + wide, top + high
        word = _next_word(word)
    wide = min(width, math.floor(height * RATIO[1] + 0.5))
    high = min(height, math.floor(width / RATIO[0] + 0.5))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _next_word(word: int) -> int:
    """Advance a random word: a step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    word = (word + 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> shift) * factor % 2**64
    return word ^ word >> 31
