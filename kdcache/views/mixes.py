"""How x' is made from x: mixes of two images, and strong augmentations of one.

Each kind is a pair of pure functions. ``draw`` turns random words into the parameters of each row, with integer and
exactly rounded operations only (+ - * / sqrt), so that rows are the same on every machine. ``apply`` makes the views.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache.choices import MIXES, import_object

__all__ = [
    "Mix",
    "autoaugment",
    "cutmix",
    "cutout",
    "draw_cutmix",
    "draw_cutout",
    "draw_mixup",
    "draw_seed",
    "find_mix",
    "mixup",
    "trivialaugment",
]

Words = np.ndarray[Any, np.dtype[np.uint64]]
Transform = Callable[[Tensor], Tensor]


def draw_mixup(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw lambda from Beta(1, 1), the uniform distribution, in steps of 2^-24.

    mixup: Zhang et al., 2018, arXiv:1710.09412.

    Parameters
    ----------
    words : ndarray of uint64, shape (N, 2)
    size : int
        Side of the images in pixels; not used.

    Returns
    -------
    parameters : ndarray of float32, shape (N, 1)
        lambda, in [0, 1).
    lam : ndarray of float32, shape (N,)
        Share of the label that the sample keeps: lambda.
    """
    lam = ((words[:, 0] >> np.uint64(40)) * np.float64(2.0**-24)).astype(np.float32)
    return lam[:, None], lam


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
    """Draw a box of area 1 - lambda, lambda from Beta(1, 1), at a uniform center, clipped.

    CutMix: Yun et al., 2019, arXiv:1905.04899.

    Parameters
    ----------
    words : ndarray of uint64, shape (N, 2)
    size : int
        Side of the images in pixels.

    Returns
    -------
    parameters : ndarray of int16, shape (N, 4)
        Box filled with the partner: top, bottom, left, right; bottom and right are exclusive.
    lam : ndarray of float32, shape (N,)
        Exact fraction of the area outside the clipped box.
    """
    lam_before_clipping = (words[:, 0] >> np.uint64(32)) * np.float64(2.0**-32)
    half = (size * np.sqrt(1.0 - lam_before_clipping)).astype(np.int64) // 2
    edges = _edges(words[:, 1], half, size)
    top, bottom, left, right = edges
    lam = 1.0 - (bottom - top) * (right - left) / (size * size)
    return np.stack(edges, axis=1).astype(np.int16), lam.astype(np.float32)


def _edges(words: Words, half: np.ndarray, size: int) -> list[np.ndarray]:
    """Put a square at a uniform center and clip it: top, bottom, left, right, each (N,)."""
    edges = []
    for word in (words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)):
        center = (word * np.uint64(size) >> np.uint64(32)).astype(np.int64)
        edges += [np.maximum(center - half, 0), np.minimum(center + half, size)]
    return edges


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
    channels, height, width = first.shape[1:]
    top, bottom, left, right = parameters[:, :, None].unbind(1)
    row = torch.arange(height, device=first.device)
    column = torch.arange(width, device=first.device).repeat_interleave(channels)
    box = ((row >= top) & (row < bottom)).byte()[:, :, None] * ((column >= left) & (column < right)).byte()[:, None]
    # Arithmetic on whole rows: torch.where on bytes is not vectorized.
    outer, inner = (images.permute(0, 2, 3, 1).flatten(2) for images in (first, second))
    mixed = outer * (1 - box) + inner * box
    return mixed.unflatten(2, (width, channels)).permute(0, 3, 1, 2)


def draw_cutout(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a square of half the image's side at a uniform center, clipped.

    Cutout: DeVries and Taylor, 2017, arXiv:1708.04552. Parameters and returns as in `draw_cutmix`; lambda is 1.
    """
    quarter = np.full(len(words), size // 4)
    return np.stack(_edges(words[:, 1], quarter, size), axis=1).astype(np.int16), np.ones(len(words), np.float32)


def cutout(first: Tensor, second: Tensor, parameters: Tensor) -> Tensor:
    """Fill a box of each view with black; see `cutmix`. The second image is not used."""
    return cutmix(first, torch.zeros_like(first), parameters)


def draw_seed(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the seed of each image's random transform, int64 (N, 1); lambda is 1."""
    return (words[:, :1] >> np.uint64(1)).astype(np.int64), np.ones(len(words), np.float32)


def autoaugment(first: Tensor, second: Tensor, parameters: Tensor) -> Tensor:
    """Apply AutoAugment (Cubuk et al., 2019, arXiv:1805.09501): the CIFAR-10 policy up to 64 pixels, else ImageNet's.

    Parameters
    ----------
    first : Tensor of uint8, shape (B, 3, H, W)
    second : Tensor
        Not used.
    parameters : Tensor of int64, shape (B, 1)
        Seed of each image.

    Returns
    -------
    Tensor of uint8, shape (B, 3, H, W)
    """
    return _seeded(_autoaugment("CIFAR10" if first.shape[-1] <= 64 else "IMAGENET"), first, parameters)


def trivialaugment(first: Tensor, second: Tensor, parameters: Tensor) -> Tensor:
    """Apply TrivialAugment, wide (Müller and Hutter, 2021, arXiv:2103.10158); see `autoaugment`."""
    return _seeded(_trivialaugment(), first, parameters)


# torchvision takes seconds to import.
@cache
def _autoaugment(policy: str) -> Transform:
    from torchvision.transforms import v2

    transform: Transform = v2.AutoAugment(v2.AutoAugmentPolicy[policy])
    return transform


@cache
def _trivialaugment() -> Transform:
    from torchvision.transforms import v2

    transform: Transform = v2.TrivialAugmentWide()
    return transform


def _seeded(transform: Transform, images: Tensor, seeds: Tensor) -> Tensor:
    """Transform each image with its own seed."""
    views = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, seeds[:, 0].tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            views.append(transform(image))
    return torch.stack(views)


class Mix(NamedTuple):
    """One way to make x' from x.

    Attributes
    ----------
    draw : callable
        From random words (N, 2) and the side of the images in pixels: the parameters (N, K) of each row, and lambda
        (N,), the share of the label that its own image keeps.
    apply : callable
        From the x of a batch, the x of its partners, and the parameters: the x'.
    takes_partner : bool
        Whether x' is made from two images.
    """

    draw: Callable[[Words, int], tuple[np.ndarray, np.ndarray]]
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    takes_partner: bool = True


MIXUP = Mix(draw_mixup, mixup)
CUTMIX = Mix(draw_cutmix, cutmix)
CUTOUT = Mix(draw_cutout, cutout, takes_partner=False)
AUTOAUGMENT = Mix(draw_seed, autoaugment, takes_partner=False)
TRIVIALAUGMENT = Mix(draw_seed, trivialaugment, takes_partner=False)


def find_mix(name: str) -> Mix:
    """Find a `Mix` by its name in `kdcache.choices.MIXES`."""
    mix: Mix = import_object(MIXES[name])
    return mix
