"""Cutout and random erasing: a part of the image gets one color."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kdcache.compute import to_device
from kdcache.views.mixes import Mix, box_edges, cutmix
from kdcache.views.scaling import scaled_cutmix
from kdcache.views.words import Words, below, high, low, next_words

__all__ = ["draw_cutout", "draw_erasing", "fill_box", "make_cutout", "make_erasing"]

AREA = (0.02, 0.4)
"""Smallest and largest fraction of the image that random erasing erases."""

RATIO = (0.3, 1 / 0.3)
"""Smallest and largest aspect ratio of the erased part, height over width."""

ATTEMPTS = 10
"""Random sizes that are tried before one that does not fit is cut off."""


def make_cutout(side: float = 0.5, fill: str = "black") -> Mix:
    """Cutout: DeVries and Taylor, 2017, arXiv:1708.04552. For the options see `kdcache.config.augs.CutoutOptions`."""
    return _filling(partial(draw_cutout, side=side), fill)


def draw_cutout(words: Words, size: int, side: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Draw a square at a uniform center, clipped.

    ``side`` is that of the square, as a fraction of the image's. Returns as `kdcache.views.mixes.draw_cutmix`, with
    lambda 1.
    """
    half = np.full(len(words), int(side * size) // 2)
    return np.stack(box_edges(words[:, 1], half, size), axis=1).astype(np.int16), np.ones(len(words), np.float32)


def make_erasing(probability: float = 0.5, fill: str = "black") -> Mix:
    """Random erasing: Zhong et al., 2017, arXiv:1708.04896. For options see `kdcache.config.augs.ErasingOptions`."""
    return _filling(partial(draw_erasing, probability=probability), fill)


def _filling(draw: Callable[[Words, int], tuple[np.ndarray, np.ndarray]], fill: str) -> Mix:
    color = _color(fill)
    return Mix(draw, partial(fill_box, color=color), apply_scaled=partial(_scaled_fill_box, color=color))


def draw_erasing(words: Words, size: int, probability: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Draw a rectangle of uniform area and aspect ratio at a uniform position; an empty one for some samples.

    A rectangle that does not fit into the image is drawn again. Returns as `kdcache.views.mixes.draw_cutmix`, with
    lambda 1.
    """
    erased = low(words[:, 0]) < int(probability * 2**32)
    position = words[:, 1]
    height, width = np.zeros((2, len(words)), np.int64)
    shape = words[:, 0]
    missing = erased
    for _ in range(ATTEMPTS):
        shape = next_words(shape)
        area, ratio = (
            bounds[0] + (bounds[1] - bounds[0]) * (half * 2.0**-32)
            for bounds, half in ((AREA, high(shape)), (RATIO, low(shape)))
        )
        height[missing], width[missing] = (
            np.floor(size * np.sqrt(share) + 0.5).astype(np.int64)[missing] for share in (area * ratio, area / ratio)
        )
        missing = missing & ((height > size) | (width > size))
    height, width = np.minimum(height, size), np.minimum(width, size)
    top, left = below(high(position), size - height + 1), below(low(position), size - width + 1)
    edges = np.stack([top, top + height, left, left + width], axis=1)
    return edges.astype(np.int16), np.ones(len(words), np.float32)


def fill_box(first: Tensor, second: Tensor, parameters: np.ndarray, color: bytes) -> Tensor:
    """Fill a box of each view with a color; see `kdcache.views.mixes.cutmix`. The second image is not used."""
    return cutmix(first, _filled(first, color), parameters)


def _scaled_fill_box(first: Tensor, second: Tensor, parameters: np.ndarray, size: int, color: bytes) -> Tensor:
    """Fill a box that was drawn on images of another size; see `kdcache.views.scaling.scaled_cutmix`."""
    return scaled_cutmix(first, _filled(first, color), parameters, size)


def _filled(like: Tensor, color: bytes) -> Tensor:
    filled = to_device(torch.tensor(list(color), dtype=torch.uint8), like.device)
    return filled[:, None, None].expand_as(like)


def _color(fill: str) -> bytes:
    """Red, green and blue of an option ``fill``; ``mean`` has to be resolved before."""
    return bytes(3) if fill == "black" else bytes.fromhex(fill)
