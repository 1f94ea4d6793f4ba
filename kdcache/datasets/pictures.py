"""Pictures, which are encoded images of any size, and how they become images of one size on demand."""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcache.datasets.sources import Files, Source
from kdcache.datasets.workers import default_workers, in_worker
from kdcache.errors import UsageError, first_line, problem

__all__ = ["Box", "Pictures", "clean_view", "decode", "read_image"]

Box = tuple[int, int, int, int]
"""A box of pixels: left, top, right, bottom, the latter two exclusive."""

THREADS = 8
"""Threads that decode in the main process. Pillow releases the GIL while it decodes and resizes."""

# Pillow reads many more, some by running other programs, and decides by the content, not by the name.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")

MAX_PIXELS = 2**26
"""Number of pixels above which a picture is not decoded: a small file may claim to be huge."""

PICTURES_PER_BLOCK = 256
"""Pictures that are submitted to the threads at once."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that are decoded on demand.

    Parameters
    ----------
    source : Source
    size : int
        Height and width of the decoded images, in pixels.
    shorter_side : int
        Length to which the shorter side is resized for the clean view, before the center crop.
    workers : int
        Processes that decode ahead.
    chosen : ndarray of int64, shape (N,), optional
        Indices of the pictures in the source, in this order; all by default.
    """

    source: Source
    size: int
    shorter_side: int
    workers: int = 0
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.source) if self.chosen is None else len(self.chosen)

    def part(self, rows: np.ndarray) -> "Pictures":
        """Select some of the pictures."""
        return replace(self, chosen=rows if self.chosen is None else self.chosen[rows])

    def index_in_source(self, row: int) -> int:
        """Index of a picture in the source."""
        if not 0 <= row < len(self):
            raise IndexError(f"picture {row} of {len(self)}")
        return row if self.chosen is None else int(self.chosen[row])

    def clean(self, samples: Tensor) -> Tensor:
        """Decode the clean views of some samples: (B, 3, S, S) uint8."""
        views = self._decoded(samples, lambda place, rgb: clean_view(rgb, self.size, self.shorter_side))
        return views.contiguous()  # like images in memory

    def resized_crops(self, samples: Tensor, draws: np.ndarray, box: Callable[[int, int, int], Box]) -> Tensor:
        """Decode pictures, crop each, and resize the crop.

        Parameters
        ----------
        samples : Tensor of int64, shape (B,)
        draws : ndarray of uint64, shape (B,)
            A random number for each sample.
        box : callable
            Computes the box of a crop from the random number and the width and height of the picture.

        Returns
        -------
        Tensor of uint8, shape (B, 3, S, S)
        """

        def resized_crop(place: int, rgb: Image.Image) -> Image.Image:
            crop = rgb.crop(box(int(draws[place]), *rgb.size))
            return crop.resize((self.size, self.size), Image.Resampling.BILINEAR)

        return self._decoded(samples, resized_crop)

    def dimensions(self, sample: int) -> tuple[int, int]:
        """Width and height of a picture, in pixels."""
        picture = self.index_in_source(sample)
        return decode(self.source.read(picture), self.source.name(picture)).size

    def _decoded(self, samples: Tensor, view: Callable[[int, Image.Image], Image.Image]) -> Tensor:
        """Decode pictures into channels-last order, in threads unless this is a worker."""
        pictures = [self.index_in_source(sample) for sample in samples.tolist()]
        images = np.empty((len(pictures), self.size, self.size, 3), np.uint8)

        def decode_one(place: int) -> None:
            picture = pictures[place]
            images[place] = np.asarray(view(place, decode(self.source.read(picture), self.source.name(picture))))

        if in_worker() or len(pictures) == 1:
            for place in range(len(pictures)):
                decode_one(place)
        else:
            with ThreadPoolExecutor(min(THREADS, default_workers())) as pool:
                for start in range(0, len(pictures), PICTURES_PER_BLOCK):
                    list(pool.map(decode_one, range(start, min(start + PICTURES_PER_BLOCK, len(pictures)))))
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def decode(data: bytes, name: str) -> Image.Image:
    """Decode a picture to 8-bit RGB: gray is repeated, CMYK converted, transparency dropped.

    Parameters
    ----------
    data : bytes
    name : str
        Name of the picture for messages.

    Raises
    ------
    UsageError
        If it is not a picture, damaged, or has more than 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            mode, rgb = image.mode, image.convert("RGB")
    except Exception as error:  # Pillow raises many types for damaged files
        reason = first_line(error).replace(" <_io.BytesIO object>", "") if data else "an empty file"
        raise UsageError(problem(f"could not decode {name}", expected="an image file", got=reason)) from error
    if mode.startswith(("I", "F")):  # Pillow would clip them to white
        raise UsageError(problem(f"could not decode {name}", expected="8 bits per channel", got=f"Pillow mode {mode}"))
    return rgb


def clean_view(rgb: Image.Image, size: int, shorter_side: int) -> Image.Image:
    """Resize the shorter side (bilinear, antialiased), and crop the center.

    The pixels equal those of torchvision's Resize and CenterCrop, without importing torchvision, which takes a second.
    """
    shorter = min(rgb.size)
    width, height = (shorter_side if side == shorter else int(shorter_side * side / shorter) for side in rgb.size)
    resized = rgb if rgb.size == (width, height) else rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def read_image(path: str | Path, size: int, shorter_side: int | None = None) -> Tensor:
    """Read the clean view of an image file: (3, size, size) uint8, see `clean_view`."""
    path = Path(path)
    rgb = decode(Files.of(path.parent, [os.fsencode(path.name)]).read(0), str(path))
    image = np.array(clean_view(rgb, size, shorter_side or size))
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
