"""How x' is made from x: mixes of two images, and strong augmentations of one.

Each kind is a pair of pure functions. ``draw`` turns random words into the parameters of each row, with integer and
exactly rounded operations only (+ - * / sqrt), so that rows are the same on every machine. ``apply`` makes the views.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache.choices import MIXES
from kdcache.compute import to_device
from kdcache.config.augs import parse_mix
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.extensions import call, explained, import_object, is_address
from kdcache.views.beta import beta_lambdas
from kdcache.views.scaling import scaled_cutmix
from kdcache.views.words import Words, below, high, low

__all__ = [
    "Mix",
    "Words",
    "box_edges",
    "cutmix",
    "draw_cutmix",
    "draw_mixup",
    "draw_rows",
    "find_mix",
    "make_cutmix",
    "make_mixup",
    "mixup",
]


class Mix(NamedTuple):
    """One way to make x' from x.

    Attributes
    ----------
    draw : callable
        From random words (N, 2) and the side of the images in pixels: the parameters (N, K) of each row, and lambda
        (N,), float32, the share of the label that its own image keeps.
    apply : callable
        From the x of a batch, the x of its partners, and the rows of parameters, which are still on the host: the x'.
    probability : float
        Fraction of the samples that are mixed. The others are their own partner, and lambda is 1; so mixing has to
        leave an image that is mixed with itself as it is.
    gives_float : bool
        Whether the x' are float32, 0 to 255; otherwise they are uint8.
    batch_size : int or None
        Size of the batches that draw once for all of their samples; ``None`` if each sample draws for itself.
    apply_scaled : callable or None
        As `apply`, for images of another size than that of which the parameters were drawn, which is the last argument.
        ``None`` if there are no such x'.
    """

    draw: Callable[[Words, int], tuple[np.ndarray, np.ndarray]]
    apply: Callable[[Tensor, Tensor, np.ndarray], Tensor]
    probability: float = 1.0
    gives_float: bool = False
    batch_size: int | None = None
    apply_scaled: Callable[[Tensor, Tensor, np.ndarray, int], Tensor] | None = None

    def mixed(self, words: Words) -> np.ndarray:
        """Tell which samples are mixed, from the lower halves of their first words: bool (N,)."""
        return low(words[:, 0]) < int(self.probability * 2**32)


def find_mix(text: str) -> Mix:
    """Find a `Mix` by its name and options, see `kdcache.config.augs.parse_mix`.

    One of the user's own code is made anew unless the text states its digest: a notebook may define it again.
    """
    changes = "," not in text and is_address(MIXES.address(text))
    return _make(text) if changes else _made(text)


def _make(text: str) -> Mix:
    try:
        name, options = parse_mix(text)
    except ValueError:
        expected = f"one of {', '.join(MIXES)}, with options as in the names of kinds of views"
        raise UsageError(problem("augmentation", expected=expected, got=text)) from None
    implementation = MIXES[name].implementation
    if is_address(implementation):
        return call("augmentation", implementation, (Mix, "a kdcache.views.mixes.Mix"))
    mix: Mix = import_object(implementation)(**(options.model_dump() if options else {}))
    return mix


_made = cache(_make)


def draw_rows(text: str, words: Words, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw some rows of the view table.

    Parameters
    ----------
    text : str
        A mix with its options.
    words : ndarray of uint64, shape (N, 2)
    size : int
        Side of the images in pixels.

    Returns
    -------
    parameters : ndarray, shape (N, K)
    lam : ndarray of float32, shape (N,)
    alone : ndarray of bool, shape (N,)
        Whether x' is made from x alone.

    Raises
    ------
    KdcacheError
        If the mix draws something of a wrong shape, type or range.
    """
    mix = find_mix(text)
    with explained(f"augmentation {text}", text):
        parameters, lam = mix.draw(words, size)
    _check_rows(text, parameters, lam, len(words))
    if not MIXES[parse_mix(text)[0]].takes_partner:
        return parameters, lam, np.ones(len(words), bool)
    alone = ~mix.mixed(words)
    return parameters, np.where(alone, np.float32(1), lam), alone


def _check_rows(mix: str, parameters: object, lam: object, count: int) -> None:
    expected, got = "two arrays of NumPy", f"{type(parameters).__name__} and {type(lam).__name__}"
    if isinstance(parameters, np.ndarray) and isinstance(lam, np.ndarray):
        expected, got = f"parameters of shape ({count}, K)", str(parameters.shape)
        if parameters.ndim == 2 and len(parameters) == count:
            expected, got = f"float32 lambdas of shape ({count},)", f"{lam.dtype} of shape {lam.shape}"
            if (lam.dtype, lam.shape) == (np.float32, (count,)):
                if ((lam >= 0) & (lam <= 1)).all():
                    return
                expected, got = "lambdas from 0 to 1", f"{lam.min()} to {lam.max()}"
    raise KdcacheError(problem(f"augmentation {mix}: what it draws", expected=expected, got=got))


def make_mixup(alpha: float = 1.0, probability: float = 1.0, mode: str = "elem") -> Mix:
    """mixup: Zhang et al., 2018, arXiv:1710.09412. For the options see `kdcache.config.augs.MixingOptions`."""
    return Mix(partial(draw_mixup, alpha=alpha), mixup, probability, True, _batch_size(mode), _scaled_mixup)


def _batch_size(mode: str) -> int | None:
    if mode == "batch":  # which a config resolves
        raise UsageError(problem("mode of a mix", expected="elem or batchN, for batches of N", got=mode))
    return None if mode == "elem" else int(mode.removeprefix("batch"))


def draw_mixup(words: Words, size: int, alpha: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw lambda from Beta(alpha, alpha), in steps of 2^-24.

    Parameters
    ----------
    words : ndarray of uint64, shape (N, 2)
    size : int
        Side of the images in pixels; not used.
    alpha : float

    Returns
    -------
    parameters : ndarray of float32, shape (N, 1)
        lambda, in [0, 1], without 1 if alpha is 1.
    lam : ndarray of float32, shape (N,)
        Share of the label that the sample keeps: lambda.
    """
    lam = beta_lambdas(words[:, 0] >> np.uint64(40), 24, alpha).astype(np.float32)
    return lam[:, None], lam


def mixup(first: Tensor, second: Tensor, parameters: np.ndarray | Tensor) -> Tensor:
    """Blend two batches of views: lambda * first + (1 - lambda) * second.

    Parameters
    ----------
    first, second : Tensor, shape (B, C, H, W)
        Pixel values, 0 to 255.
    parameters : ndarray or Tensor of float32, shape (B, 1)

    Returns
    -------
    Tensor of float32, shape (B, C, H, W)
    """
    lam = to_device(parameters, first.device)
    return torch.lerp(second.float(), first.float(), lam[:, :, None, None])


def _scaled_mixup(first: Tensor, second: Tensor, parameters: np.ndarray, size: int) -> Tensor:
    """Blend images of any size."""
    return mixup(first, second, parameters)


def make_cutmix(alpha: float = 1.0, probability: float = 1.0, mode: str = "elem") -> Mix:
    """CutMix: Yun et al., 2019, arXiv:1905.04899. For the options see `kdcache.config.augs.MixingOptions`."""
    draw = partial(draw_cutmix, alpha=alpha)
    return Mix(draw, cutmix, probability, batch_size=_batch_size(mode), apply_scaled=scaled_cutmix)


def draw_cutmix(words: Words, size: int, alpha: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a box of area 1 - lambda, lambda from Beta(alpha, alpha), at a uniform center, clipped.

    Parameters
    ----------
    words : ndarray of uint64, shape (N, 2)
    size : int
        Side of the images in pixels.
    alpha : float

    Returns
    -------
    parameters : ndarray of int16, shape (N, 4)
        Box filled with the partner: top, bottom, left, right; bottom and right are exclusive.
    lam : ndarray of float32, shape (N,)
        Exact fraction of the area outside the clipped box.
    """
    lam_before_clipping = beta_lambdas(high(words[:, 0]), 32, alpha)
    half = (size * np.sqrt(1.0 - lam_before_clipping)).astype(np.int64) // 2
    edges = box_edges(words[:, 1], half, size)
    top, bottom, left, right = edges
    lam = 1.0 - (bottom - top) * (right - left) / (size * size)
    return np.stack(edges, axis=1).astype(np.int16), lam.astype(np.float32)


def box_edges(words: Words, half: np.ndarray, size: int) -> list[np.ndarray]:
    """Put a square at a uniform center and clip it: top, bottom, left, right, each (N,)."""
    edges = []
    for word in (high(words), low(words)):
        center = below(word, size)
        edges += [np.maximum(center - half, 0), np.minimum(center + half, size)]
    return edges


def cutmix(first: Tensor, second: Tensor, parameters: np.ndarray | Tensor) -> Tensor:
    """Fill a box of each view with the pixels of its partner.

    Parameters
    ----------
    first, second : Tensor, shape (B, C, H, W)
    parameters : ndarray or Tensor of int16, shape (B, 4)
        Top, bottom, left, right, as drawn by `draw_cutmix`.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        Of the dtype of ``first``.
    """
    channels, height, width = first.shape[1:]
    top, bottom, left, right = to_device(parameters, first.device)[:, :, None].unbind(1)
    row = torch.arange(height, device=first.device)
    column = torch.arange(width, device=first.device).repeat_interleave(channels)
    box = ((row >= top) & (row < bottom)).byte()[:, :, None] * ((column >= left) & (column < right)).byte()[:, None]
    # Arithmetic on whole rows: torch.where on bytes is not vectorized.
    outer, inner = (images.permute(0, 2, 3, 1).flatten(2) for images in (first, second))
    mixed = outer * (1 - box) + inner * box
    return mixed.unflatten(2, (width, channels)).permute(0, 3, 1, 2)
