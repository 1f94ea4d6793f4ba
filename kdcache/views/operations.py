"""The operations of AutoAugment and its kin, on batches of images, in integers only.

A view is therefore the same on every device, with any number of threads and any version of torch. Magnitudes come from
`kdcache.views.policies` as integers. Up to rounding, results are those of torchvision with nearest-neighbor
interpolation and black outside of the image.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kdcache.compute import to_device

__all__ = ["BLEND_UNIT", "FIXED_POINT_BITS", "OPERATIONS", "VALUES", "apply_operations"]

GEOMETRIC = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate")

OPERATIONS = (
    *("identity", *GEOMETRIC, "brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "auto-contrast", "equalize", "invert"),
)
"""An operation's number in a row of the view table is its index here."""

VALUES = 6
"""Integers that describe the magnitude of an operation; most need only the first."""

FIXED_POINT_BITS = 16
"""Fractional bits of the coefficients of geometric operations."""

BLEND_UNIT = 1000
"""A factor of 1 when two images are blended; all magnitudes of the policies are multiples of a thousandth."""


BYTES_AT_ONCE = 2**17
"""Bytes of images that a CPU works on at once: intermediate results take several times as much of its cache."""


def apply_operations(images: Tensor, operations: np.ndarray, values: np.ndarray) -> Tensor:
    """Apply an operation to each image.

    Images are grouped by operation on the host, so that nothing waits for the device.

    Parameters
    ----------
    images : Tensor of uint8, shape (B, 3, H, W)
    operations : ndarray of integers, shape (B,)
        Indices of `OPERATIONS`.
    values : ndarray of integers, shape (B, VALUES)
        Magnitude of each, see `kdcache.views.policies.Magnitudes.values`.

    Returns
    -------
    Tensor of uint8, shape (B, 3, H, W)
        In the memory format of ``images``.
    """
    results = images.clone()
    at_once = max(1, BYTES_AT_ONCE // images[0].numel()) if images.device.type == "cpu" else len(images)
    numbers = [[OPERATIONS.index(name) for name in names] for names in _FUNCTIONS]
    groups = [np.flatnonzero(np.isin(operations, group)) for group in numbers]
    order = np.concatenate(groups)
    rows, chosen = to_device(order, images.device), to_device(values[order].astype(np.int32), images.device)
    sizes = [*map(len, groups)]
    for function, *group in zip(_FUNCTIONS.values(), rows.split(sizes), chosen.split(sizes), strict=True):
        for index, value in zip(*(part.split(at_once) for part in group), strict=True):
            if len(index):
                results.index_copy_(0, index, function(images.index_select(0, index), value[..., None, None, None]))
    return results


def _transform(images: Tensor, values: Tensor) -> Tensor:
    """Take each pixel from elsewhere in the image, black outside of it.

    With (x, y) the centers of pixels, the source is ``(a x + b y + c, d x + e y + f)``; ``values`` are a to f.
    """
    height, width = images.shape[2:]
    # In half pixels, so that centers are whole numbers.
    x, y = (2 * torch.arange(side, device=images.device, dtype=torch.int32) + 1 for side in (width, height))
    a, b, c, d, e, f = values[..., 0].unbind(1)
    column, row = (
        (to_x * x + to_y * y[:, None] + 2 * offset) >> (FIXED_POINT_BITS + 1)
        for to_x, to_y, offset in ((a, b, c), (d, e, f))
    )
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2)
    taken = pixels.gather(1, source.flatten(1).long()[:, :, None].expand_as(pixels))
    return (taken * inside.flatten(1)[:, :, None]).unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _blend(images: Tensor, others: Tensor, values: Tensor, unit: int = 1) -> Tensor:
    """Blend int32 images: ``factor * image + (1 - factor) * other``, clipped; ``others`` are in parts of ``unit``."""
    factor = values[:, 0]
    blended = images * (factor * unit) + others * (BLEND_UNIT - factor)
    return (blended.clamp(min=0) // (BLEND_UNIT * unit)).clamp(max=255).byte()


def _brightness(images: Tensor, values: Tensor) -> Tensor:
    return _blend(images.int(), torch.zeros_like(images[:, :1]).int(), values)


def _color(images: Tensor, values: Tensor) -> Tensor:
    return _blend(images.int(), _gray(images), values)


def _contrast(images: Tensor, values: Tensor) -> Tensor:
    unit = 256  # the mean has eight fractional bits
    gray = _gray(images)
    mean = gray.sum((1, 2, 3), keepdim=True) * unit // gray[0].numel()
    return _blend(images.int(), mean.int(), values, unit)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.int().split(1, dim=1)
    return (2989 * red + 5870 * green + 1140 * blue) // 10_000


def _sharpness(images: Tensor, values: Tensor) -> Tensor:
    whole = images.int()
    height, width = images.shape[2:]
    shifted = (whole[:, :, top : top + height - 2, left : left + width - 2] for top in range(3) for left in range(3))
    inner = whole[:, :, 1:-1, 1:-1]
    smooth = whole.clone()
    smooth[:, :, 1:-1, 1:-1] = (2 * (sum(shifted) + 4 * inner) + 13) // 26  # rounded mean, the center five times
    return _blend(whole, smooth, values)


def _posterize(images: Tensor, values: Tensor) -> Tensor:
    return images & values[:, 0].byte()


def _solarize(images: Tensor, values: Tensor) -> Tensor:
    """Invert the pixels from a threshold on."""
    return torch.where(images >= values[:, 0], images.bitwise_not(), images)


def _auto_contrast(images: Tensor, values: Tensor) -> Tensor:
    """Stretch each channel to the range from 0 to 255."""
    whole = images.int()
    darkest, brightest = whole.amin((2, 3), keepdim=True), whole.amax((2, 3), keepdim=True)
    stretched = (whole - darkest) * 255 // (brightest - darkest).clamp(min=1)
    return torch.where(brightest > darkest, stretched, whole).byte()


def _equalize(images: Tensor, values: Tensor) -> Tensor:
    """Make the histogram of each channel uniform, as Pillow does."""
    pixels = images.flatten(2).long()
    one = torch.ones((), dtype=torch.int64, device=images.device)
    counts = pixels.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, one.expand_as(pixels))
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    darker = counts.cumsum(2) - counts
    level = ((darker + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, level.gather(2, pixels), pixels).byte().view_as(images)


def _invert(images: Tensor, values: Tensor) -> Tensor:
    return images.bitwise_not()


_FUNCTIONS: dict[tuple[str, ...], Callable[[Tensor, Tensor], Tensor]] = {
    GEOMETRIC: _transform,
    ("brightness",): _brightness,
    ("color",): _color,
    ("contrast",): _contrast,
    ("sharpness",): _sharpness,
    ("posterize",): _posterize,
    ("solarize",): _solarize,
    ("auto-contrast",): _auto_contrast,
    ("equalize",): _equalize,
    ("invert",): _invert,
}
"""From some images and ``values`` of shape (B, VALUES, 1, 1, 1), the results."""
