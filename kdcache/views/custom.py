"""Augmentations of the user's own code: what identifies their views in a store, and whether they are pure functions."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from kdcache.config.augs import parse_mix, with_code
from kdcache.errors import UsageError, problem
from kdcache.extensions import is_address, source_digest
from kdcache.views.apply import apply_mix
from kdcache.views.mixes import draw_rows, find_mix

__all__ = ["identified"]

MAX_ROUNDING = 0.01
"""Difference of float pixels, from 0 to 255, that is taken for rounding."""

ROWS, IMAGES, SEED = 1024, 16, 0xC0DE
"""Rows that are drawn, images that are augmented, and the seed of both."""

PIXELS = 2**22
"""At most so many pixels are made: with all rows up to 64 pixels, with fewer of them for larger images."""


def identified(mix: str, image_size: int) -> str:
    """Add the digest of its code to the name of a mix, so that views of other code are of another kind.

    The digest is that of the source of the modules of the augmentation and its two functions, and of what it makes of
    some images of this size: most changes of other modules show there. A mix of kdcache has no digest. Nothing is
    remembered, since code in a notebook may be defined again.

    Raises
    ------
    UsageError
        If it is not a pure function of x and the parameters, row by row: stored logits would be of other views.
    """
    name, _ = parse_mix(mix)
    if not is_address(name):
        return mix
    own = find_mix(name)
    digest = hashlib.sha256(source_digest(name, own.draw, own.apply).encode())
    words = np.random.Philox(SEED).random_raw(2 * ROWS).reshape(-1, 2)
    parameters, lam, alone = draw_rows(name, words, image_size)
    again = draw_rows(name, words, image_size)
    _require(name, all(map(np.array_equal, (parameters, lam), again)), "the same parameters for the same words")
    for column in (parameters, lam, alone):
        digest.update(f"{column.dtype} {column.shape}".encode() + column.tobytes())
    pixels = np.random.Philox(SEED).random_raw(IMAGES * 3 * image_size**2).astype(np.uint8)
    first = torch.from_numpy(pixels).reshape(IMAGES, 3, image_size, image_size)
    second, rows = first.flip(0), parameters[:IMAGES]
    before = first.clone()

    def made(part: slice) -> Tensor:
        return apply_mix(name, first[part], second[part], rows[part], image_size)

    views = made(slice(None))
    _require(name, first.equal(before) and second.equal(before.flip(0)), "x that stay as they are")
    _require(name, made(slice(None)).equal(views), "the same x' for the same x and parameters")
    halves = torch.cat([made(slice(IMAGES // 2)), made(slice(IMAGES // 2, None))])
    _require(name, _close(halves, views), "x' that do not depend on the other images of the batch")
    if own.probability < 1:
        same = apply_mix(name, first, first, rows, image_size)
        _require(name, _close(same, first), "x' that are x where x is its own partner")
    for start in range(0, max(IMAGES, min(ROWS, PIXELS // image_size**2)), IMAGES):
        rows = parameters[start : start + IMAGES]
        digest.update(made(slice(len(rows))).numpy().tobytes())
    return with_code(name, digest.hexdigest()[:16])


def _close(one: Tensor, two: Tensor) -> bool:
    return bool((one.float() - two.float()).abs().max() < MAX_ROUNDING)


def _require(name: str, holds: bool, expected: str) -> None:
    if not holds:
        remedy = "Draw at random in draw alone, and change no tensor in place."
        raise UsageError(problem(f"augmentation {name}", expected=expected, got="others", remedy=remedy))
