"""The augmentations that mix two images: what a row of the view table says of them, and how it is applied.

Each kind is a pair of pure functions. ``draw`` turns random words into the row's parameters with integer and exactly
rounded operations only (+ - * / sqrt), so that a row is the same on every machine; ``apply`` makes the views.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["MIXES", "Mix", "cutmix", "draw_cutmix", "draw_mixup", "mixup"]

Words = np.ndarray[Any, np.dtype[np.uint64]]


def draw_mixup(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw lambda from Beta(1, 1), the uniform distribution, in steps of 2^-24 (mixup, Zhang et al. 2018).

    Parameters
    ----------
    words : ndarray of uint64, shape (N, 2)
    size : int
        Side of the images in pixels; mixup does not depend on it.

    Returns
    -------
    parameters : ndarray of float32, shape (N, 1)
        lambda, in [0, 1).
    kept : ndarray of float32, shape (N,)
        Share of the label that the sample keeps: lambda.
    """
    kept = ((words[:, 0] >> np.uint64(40)) * np.float64(2.0**-24)).astype(np.float32)
    return kept[:, None], kept


def mixup(first: Tensor, second: Tensor, parameters: Tensor) -> Tensor:
    """Blend two batches of views: lambda * first + (1 - lambda) * second.

    Parameters
    ----------
    first, second : Tensor, shape (B, C, H, W)
        Pixel values, 0 to 255.
    parameters : Tensor of float32, shape (B, 1)

    Returns
    -------
    Tensor of float32, shape (B, C, H, W)
    """
    return torch.lerp(second.float(), first.float(), parameters[:, :, None, None])


def draw_cutmix(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a box of area 1 - lambda, lambda from Beta(1, 1), centred uniformly and clipped (CutMix, Yun et al. 2019).

    Parameters
    ----------
    words : ndarray of uint64, shape (N, 2)
    size : int
        Side of the images in pixels.

    Returns
    -------
    parameters : ndarray of int16, shape (N, 4)
        Box that the partner fills: top, bottom, left, right, the second of each pair exclusive.
    kept : ndarray of float32, shape (N,)
        Exact share of the area that the sample keeps after clipping.
    """
    kept_before_clipping = (words[:, 0] >> np.uint64(32)) * np.float64(2.0**-32)
    half = (size * np.sqrt(1.0 - kept_before_clipping)).astype(np.int64) // 2
    halves_of_word = (words[:, 1] >> np.uint64(32), words[:, 1] & np.uint64(0xFFFFFFFF))
    edges = []
    for word in halves_of_word:
        centre = (word * np.uint64(size) >> np.uint64(32)).astype(np.int64)
        edges += [np.maximum(centre - half, 0), np.minimum(centre + half, size)]
    top, bottom, left, right = edges
    kept = 1.0 - (bottom - top) * (right - left) / (size * size)
    return np.stack(edges, axis=1).astype(np.int16), kept.astype(np.float32)


def cutmix(first: Tensor, second: Tensor, parameters: Tensor) -> Tensor:
    """Fill a box of each view with the pixels of its partner.

    Parameters
    ----------
    first, second : Tensor, shape (B, C, H, W)
    parameters : Tensor of int16, shape (B, 4)
        Top, bottom, left, right, as drawn by `draw_cutmix`.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        Of the dtype of ``first``.
    """
    top, bottom, left, right = parameters[:, :, None].unbind(1)
    row = torch.arange(first.shape[2], device=first.device)
    column = torch.arange(first.shape[3], device=first.device)
    box = ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None, :]
    return torch.where(box[:, None], second, first)


class Mix(NamedTuple):
    """One kind of mixing."""

    draw: Callable[[Words, int], tuple[np.ndarray, np.ndarray]]
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]


MIXES = {"mixup": Mix(draw_mixup, mixup), "cutmix": Mix(draw_cutmix, cutmix)}
