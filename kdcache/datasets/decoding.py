"""Decoding: from the bytes of a picture to 8-bit RGB, and to its clean view."""

import ctypes
import io
import logging
import warnings
from contextlib import suppress
from functools import cache
from math import isqrt
from typing import TypeVar

import numpy as np
import PIL
from PIL import Image

from kdcache.choices import INTERPOLATIONS
from kdcache.errors import UsageError, first_line, problem

__all__ = ["RESAMPLING", "TooManyPixels", "clean_view", "decode", "decoder", "formats", "suffixes", "too_many_pixels"]

# Rendered by another program (EPS, WMF), only recognized (BUFR, GRIB, HDF5, MPEG), or with so loose a signature that
# other files would be taken for them.
NOT_DECODED = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IMT", "IPTC", "SPIDER"))

HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""How HEIC files name themselves, also those that are called .jpg."""

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is turned."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""

RESAMPLING = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
"""Pillow's resampling filters by name."""

Count = TypeVar("Count", int, np.ndarray)

# A picture is decoded, or its error says why not: what Pillow and its libtiff print beside that is for programmers.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with suppress(AttributeError, OSError):  # where libtiff is a library of its own
    libtiff = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
    libtiff.TIFFSetErrorHandler(None)
    libtiff.TIFFSetWarningHandler(None)


class TooManyPixels(UsageError):
    """A picture is larger than allowed, as it is stored or after resizing.

    Parameters
    ----------
    message : str
    size : tuple of int
        Width and height as stored, in pixels; of an image that Pillow refuses to open, the least that they may be.
    """

    def __init__(self, message: str, size: tuple[int, int]) -> None:
        super().__init__(message)
        self.size = size


@cache
def formats() -> tuple[str, ...]:
    """List the formats that are decoded, in Pillow's names. The content decides which one a picture has."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NOT_DECODED)


@cache
def decoder() -> str:
    """Name what determines which images can be decoded."""
    return f"Pillow {PIL.__version__}: {' '.join(formats())}"


@cache
def suffixes() -> frozenset[str]:
    """List the suffixes of the formats that are decoded, in lower case."""
    known = {*formats(), "MPO"}  # a JPEG file with several pictures
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def too_many_pixels(longer: Count, shorter: Count, max_pixels: int, shorter_side: int) -> Count:
    """Whether pictures have more pixels than allowed, as stored or after their shorter side was resized.

    Parameters
    ----------
    longer, shorter : int or ndarray of int64
        The sides of a picture, in pixels.
    """
    return (longer * shorter > max_pixels) | (shorter_side**2 * longer > max_pixels * shorter)


def decode(data: bytes, name: str, max_pixels: int, shorter_side: int) -> Image.Image:
    """Decode a picture to 8-bit RGB, turned as its EXIF orientation says.

    Gray is repeated, CMYK converted, transparency dropped. Of several pictures in one file, the first is decoded.

    Parameters
    ----------
    data : bytes
    name : str
        Name of the picture for messages.
    max_pixels : int
        A picture with more pixels is not decoded: a small file may claim to be huge.
    shorter_side : int
        Length to which the shorter side is resized for the clean view; `max_pixels` holds after that too.

    Raises
    ------
    UsageError
        If it is not a picture, damaged, too large, or has more than 8 bits per channel.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    what = f"could not decode {name}"
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            if too_many_pixels(max(image.size), min(image.size), max_pixels, shorter_side):
                got = f"{image.width} x {image.height} pixels"
                raise TooManyPixels(_size_problem(what, max_pixels, shorter_side, got), image.size)
            mode, rgb = image.mode, image.convert("RGB")
            turn = _turn(image)  # Pillow has turned a TIFF file itself, and then says that it is upright
    except UsageError:
        raise
    except Image.DecompressionBombError as error:
        exceeded = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        got, side = f"more than {exceeded} pixels", isqrt(exceeded) + 1
        raise TooManyPixels(_size_problem(what, max_pixels, shorter_side, got), (side, side)) from error
    except Exception as error:  # Pillow raises many types for damaged files
        reason = first_line(error) if data else "an empty file"
        is_heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and "HEIF" not in formats()
        remedy = "This is HEIC, which needs: pip install 'kdcache[heic]'." if is_heic else None
        raise UsageError(problem(what, expected="an image file", got=reason, remedy=remedy)) from error
    if mode.startswith(("I", "F")):  # Pillow would clip them to white
        raise UsageError(problem(what, expected="8 bits per channel", got=f"Pillow mode {mode}"))
    return rgb if turn is None else rgb.transpose(turn)


def _size_problem(what: str, max_pixels: int, shorter_side: int, got: str) -> str:
    expected = f"at most {max_pixels} pixels, also when its shorter side is resized to {shorter_side}"
    return problem(what, expected=expected, got=got, remedy="--max-pixels changes the limit.")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Find out what makes a decoded picture upright. Damaged EXIF data count as none, as in other viewers."""
    with suppress(Exception):  # whatever Pillow's parser stumbles over
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    return None


def clean_view(rgb: Image.Image, size: int, shorter_side: int, interpolation: str = "bilinear") -> Image.Image:
    """Resize the shorter side (antialiased), and crop the center.

    The pixels equal those of torchvision's Resize and CenterCrop, without importing torchvision, which takes a second.
    """
    shorter = min(rgb.size)
    width, height = (shorter_side if side == shorter else int(shorter_side * side / shorter) for side in rgb.size)
    resized = rgb if rgb.size == (width, height) else rgb.resize((width, height), RESAMPLING[interpolation])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))
