"""Pictures, which are encoded images of any size, and how they become images of one size on demand."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcache.cards import Rendering
from kdcache.choices import MAX_PIXELS
from kdcache.datasets.decoding import RESAMPLING, clean_view, decode
from kdcache.datasets.sources import Files, Source
from kdcache.datasets.workers import default_workers, in_worker
from kdcache.errors import KdcacheError, UsageError, problem, with_remedy

__all__ = ["Box", "Crops", "Pictures", "read_image"]

Box = tuple[int, int, int, int]
"""A box of pixels: left, top, right, bottom, the latter two exclusive."""


class Crops(NamedTuple):
    """A part of each of B pictures.

    Attributes
    ----------
    draws : ndarray of uint64, shape (B,)
        A random number for each.
    box : callable
        Computes the box of a crop from the random number and the width and height of the picture.
    """

    draws: np.ndarray
    box: Callable[[int, int, int], Box]


THREADS = 8
"""Threads that decode in the main process. Pillow releases the GIL while it decodes and resizes."""

PICTURES_PER_BLOCK = 256
"""Pictures that are submitted to the threads at once."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that are decoded on demand.

    Parameters
    ----------
    source : Source
    rendering : Rendering
        How they become images.
    workers : int
        Processes that decode ahead.
    max_pixels : int
        Pixels above which a picture is not decoded, and an eighth of the bytes above which its file is not read.
    chosen : ndarray of int64, shape (N,), optional
        Indices of the pictures in the source, in this order; all by default.
    all_needed : bool
        Whether one that cannot be decoded ends a training, which could have left it out.
    """

    source: Source
    rendering: Rendering
    workers: int = 0
    max_pixels: int = MAX_PIXELS
    chosen: np.ndarray | None = None
    all_needed: bool = False

    def __len__(self) -> int:
        return len(self.source) if self.chosen is None else len(self.chosen)

    @property
    def indices(self) -> np.ndarray:
        """Indices of the pictures in the source, int64 (N,)."""
        return np.arange(len(self.source)) if self.chosen is None else self.chosen

    @property
    def max_bytes(self) -> int:
        """Bytes above which a picture is not read."""
        return 8 * self.max_pixels

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
        (views,) = self.render(samples, [self.rendering])
        return views.contiguous()  # like images in memory

    def render(self, samples: Tensor, renderings: Sequence[Rendering], crops: Crops | None = None) -> list[Tensor]:
        """Decode each picture once, and render it or a crop of it in one or more ways.

        Parameters
        ----------
        samples : Tensor of int64, shape (B,)
        renderings : sequence of Rendering
        crops : Crops, optional
            The part of each picture that is resized; by default the images are clean views.

        Returns
        -------
        list of Tensor
            For each rendering the images: uint8 (B, 3, S, S), in channels-last memory format.
        """
        pictures = [self.index_in_source(sample) for sample in samples.tolist()]
        sides = [rendering.image_size for rendering in renderings]
        images = [np.empty((len(pictures), side, side, 3), np.uint8) for side in sides]
        largest = max(rendering.shorter_side for rendering in renderings)

        def render_one(place: int) -> None:
            picture = pictures[place]
            try:
                rgb = decode(self.read(picture), self.source.name(picture), self.max_pixels, largest)
            except UsageError as error:
                raise self.refused(error) from error
            if crops is not None:
                rgb = rgb.crop(crops.box(int(crops.draws[place]), *rgb.size))
            for found, (size, shorter_side, interpolation) in zip(images, map(astuple, renderings), strict=True):
                if crops is None:
                    found[place] = np.asarray(clean_view(rgb, size, shorter_side, interpolation))
                else:
                    found[place] = np.asarray(rgb.resize((size, size), RESAMPLING[interpolation]))

        if in_worker() or len(pictures) == 1:
            for place in range(len(pictures)):
                render_one(place)
        else:
            with ThreadPoolExecutor(min(THREADS, default_workers())) as pool:
                for start in range(0, len(pictures), PICTURES_PER_BLOCK):
                    list(pool.map(render_one, range(start, min(start + PICTURES_PER_BLOCK, len(pictures)))))
        return [torch.from_numpy(found).permute(0, 3, 1, 2) for found in images]

    def refused(self, error: UsageError) -> UsageError:
        """Add to the error of a picture how to train without it."""
        remedy = "Delete it, or leave out all that cannot be decoded with --on-bad-image skip."
        return UsageError(with_remedy(str(error), remedy)) if self.all_needed else error

    def dimensions(self, sample: int) -> tuple[int, int]:
        """Width and height of a picture, in pixels."""
        return self.decode(self.index_in_source(sample)).size

    def read(self, picture: int) -> bytes:
        """Read the encoded bytes of a picture of the source.

        Raises
        ------
        UsageError
            If it cannot be read.
        KdcacheError
            If they are not those that were hashed, or cannot be read any more.
        """
        digests = self.source.digests
        known = b"" if digests is None else digests[picture].tobytes()
        try:
            data = self.source.read(picture, self.max_bytes)
        except UsageError as error:
            raise KdcacheError(str(error)) if any(known) else error from None
        if any(known) and known != sha256(data).digest():
            what = f"{self.source.name(picture)} is not the picture that was hashed"
            raise KdcacheError(problem(what, remedy="Hash the dataset again with 'kdcache data check'."))
        return data

    def decode(self, picture: int) -> Image.Image:
        """Decode a picture of the source, see `kdcache.datasets.decoding.decode`."""
        return self.decode_bytes(self.read(picture), self.source.name(picture))

    def decode_bytes(self, data: bytes, name: str) -> Image.Image:
        """Decode a picture within the limits of these."""
        return decode(data, name, self.max_pixels, self.rendering.shorter_side)


def read_image(path: str | Path, size: int, shorter_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read the clean view of an image file: (3, size, size) uint8, see `clean_view`."""
    path = Path(path)
    files = Files.of(path.parent, [os.fsencode(path.name)])
    pictures = Pictures(files, Rendering(size, shorter_side or size), max_pixels=max_pixels)
    return pictures.clean(torch.zeros(1, dtype=torch.long))[0]
