"""Pictures as they lie on the disk, encoded and of any size, and how they become images."""

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcache.datasets.workers import default_workers, in_worker
from kdcache.errors import UsageError, first_line, problem

__all__ = ["Blob", "Box", "Files", "Pictures", "Source", "clean_view", "decode", "joined", "read_image"]

Box = tuple[int, int, int, int]
"""A part of a picture in pixels: left, top, right, bottom, the latter two exclusive."""

THREADS = 8
"""Threads that decode at once outside of workers: Pillow decodes and resizes without Python's lock."""

# Pillow knows many more, of which some start other programs. A picture's name does not say what is in it.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")

MOST_PIXELS = 2**26
"""Pixels of a picture, beyond which it is not decoded: a small file may claim to be huge."""

BLOCK = 256
"""Pictures that are given to the threads at once."""


class Source(Protocol):
    """Encoded pictures, wherever they lie; a few dozen bytes of memory each."""

    def __len__(self) -> int: ...

    @property
    def place(self) -> str:
        """Names the source among all on this machine."""

    def read(self, picture: int) -> bytes:
        """Read a picture as it is encoded."""

    def name(self, picture: int) -> str:
        """Name a picture to the user."""

    def listing(self) -> bytes:
        """Hash of what pictures there are."""

    def stamps(self) -> np.ndarray:
        """Size and time of change of each file, int64 (files, 2): one for each picture, or one for all."""

    def sizes(self) -> np.ndarray:
        """Bytes of each picture, int64 (N,)."""


@dataclass(frozen=True, eq=False)
class Files:
    """Picture files, one for each picture.

    Parameters
    ----------
    root : Path
    names : bytes
        Their paths below it, one behind the other: a list of as many strings would take several times the memory.
    ends : ndarray of int64, shape (N,)
        Where each name ends.
    """

    root: Path
    names: bytes
    ends: np.ndarray

    @classmethod
    def of(cls, root: Path, names: Iterable[bytes]) -> "Files":
        """Take the files with these paths below `root`."""
        return cls(root, *joined(names))

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def place(self) -> str:
        """Names the source."""
        return str(self.root.absolute())

    def path(self, picture: int) -> Path:
        """Where a picture lies."""
        start = self.ends[picture - 1] if picture else 0
        return self.root / os.fsdecode(self.names[start : self.ends[picture]])

    def read(self, picture: int) -> bytes:
        """See `Source`."""
        try:
            return self.path(picture).read_bytes()
        except OSError as error:
            raise UsageError(problem(f"cannot read {self.path(picture)}", got=error.strerror)) from error

    def name(self, picture: int) -> str:
        """See `Source`."""
        return str(self.path(picture))

    def listing(self) -> bytes:
        """See `Source`."""
        return sha256(self.ends.tobytes() + self.names).digest()

    def stamps(self) -> np.ndarray:
        """See `Source`."""
        found = np.empty((len(self), 2), np.int64)
        for picture in range(len(self)):
            try:
                state = self.path(picture).stat()
            except OSError as error:
                raise UsageError(problem(f"cannot read {self.path(picture)}", got=error.strerror)) from error
            found[picture] = state.st_size, state.st_mtime_ns
        return found

    def sizes(self) -> np.ndarray:
        """See `Source`."""
        return self.stamps()[:, 0]


@dataclass(frozen=True, eq=False)
class Blob:
    """Pictures that lie one behind the other in one file.

    Parameters
    ----------
    path : Path
    part : str
        What the file calls them.
    offsets : ndarray of int64, shape (N + 1,)
        Byte of the file at which each picture begins, and the last one ends.
    """

    path: Path
    part: str
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def place(self) -> str:
        """Names the source."""
        return f"{self.path.absolute()}#{self.part}"

    def read(self, picture: int) -> bytes:
        """See `Source`. The file is not mapped: its pages would count as memory of ours."""
        start, stop = self.offsets[picture : picture + 2].tolist()
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), stop - start, start)

    def name(self, picture: int) -> str:
        """See `Source`."""
        return f"picture {picture} of {self.path}/{self.part}"

    def listing(self) -> bytes:
        """See `Source`."""
        return sha256(self.offsets.tobytes()).digest()

    def stamps(self) -> np.ndarray:
        """See `Source`."""
        state = self.path.stat()
        return np.array([[state.st_size, state.st_mtime_ns]], np.int64)

    def sizes(self) -> np.ndarray:
        """See `Source`."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that are decoded when they are asked for.

    Parameters
    ----------
    source : Source
    size : int
        Side of the images that they become, in pixels.
    shorter_side : int
        To which a picture is brought for its clean view, before the central square is cut out.
    workers : int
        Processes that decode ahead where many are asked for in a row.
    chosen : ndarray of int64, shape (N,), optional
        Those of the source that are meant, in this order; all by default.
    """

    source: Source
    size: int
    shorter_side: int
    workers: int = 0
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.source) if self.chosen is None else len(self.chosen)

    def part(self, rows: np.ndarray) -> "Pictures":
        """Take some of the pictures."""
        return replace(self, chosen=rows if self.chosen is None else self.chosen[rows])

    def number(self, row: int) -> int:
        """StoreLocation of a picture in the source."""
        if not 0 <= row < len(self):
            raise IndexError(f"picture {row} of {len(self)}")
        return row if self.chosen is None else int(self.chosen[row])

    def clean(self, samples: Tensor) -> Tensor:
        """Decode clean views: (B, 3, S, S) uint8."""
        views = self._decoded(samples, lambda place, rgb: clean_view(rgb, self.size, self.shorter_side))
        return views.contiguous()  # as images that are held in memory are

    def resized_crops(self, samples: Tensor, draws: np.ndarray, box: Callable[[int, int, int], Box]) -> Tensor:
        """Decode pictures, cut a part out of each, and resize it.

        Parameters
        ----------
        samples : Tensor of int64, shape (B,)
        draws : ndarray of uint64, shape (B,)
            What was drawn for each.
        box : callable
            Finds the part from what was drawn, and the width and height of the picture.

        Returns
        -------
        Tensor of uint8, shape (B, 3, S, S)
        """

        def piece(place: int, rgb: Image.Image) -> Image.Image:
            cut = rgb.crop(box(int(draws[place]), *rgb.size))
            return cut.resize((self.size, self.size), Image.Resampling.BILINEAR)

        return self._decoded(samples, piece)

    def dimensions(self, sample: int) -> tuple[int, int]:
        """Width and height of a picture, in pixels."""
        picture = self.number(sample)
        return decode(self.source.read(picture), self.source.name(picture)).size

    def _decoded(self, samples: Tensor, view: Callable[[int, Image.Image], Image.Image]) -> Tensor:
        """Decode pictures into channels-last order, in threads unless this is one worker of several."""
        pictures = [self.number(sample) for sample in samples.tolist()]
        images = np.empty((len(pictures), self.size, self.size, 3), np.uint8)

        def one(place: int) -> None:
            picture = pictures[place]
            images[place] = np.asarray(view(place, decode(self.source.read(picture), self.source.name(picture))))

        if in_worker() or len(pictures) == 1:
            for place in range(len(pictures)):
                one(place)
        else:
            with ThreadPoolExecutor(min(THREADS, default_workers())) as pool:
                for start in range(0, len(pictures), BLOCK):
                    list(pool.map(one, range(start, min(start + BLOCK, len(pictures)))))
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def joined(parts: Iterable[bytes]) -> tuple[bytes, np.ndarray]:
    """Put byte strings one behind the other: all of them, and where each ends, int64."""
    whole, ends = bytearray(), []
    for part in parts:
        whole += part
        ends.append(len(whole))
    return bytes(whole), np.array(ends, np.int64)


def decode(data: bytes, name: str) -> Image.Image:
    """Decode a picture to red, green and blue of 8 bits: grey is repeated, CMYK converted, transparency dropped.

    Raises
    ------
    UsageError
        If it is none, damaged, or of more bits than Pillow can bring to 8.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS}")
            mode, rgb = image.mode, image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds at damaged files
        reason = first_line(error).replace(" <_io.BytesIO object>", "") if data else "an empty file"
        raise UsageError(problem(f"cannot read {name}", expected="an image file", got=reason)) from error
    if mode.startswith(("I", "F")):  # Pillow would clip these to white
        raise UsageError(problem(f"pixels of {name}", expected="8 bits a channel", got=f"Pillow mode {mode}"))
    return rgb


def clean_view(rgb: Image.Image, size: int, shorter_side: int) -> Image.Image:
    """Bring the shorter side to a length (bilinear, antialiased), and cut out the central square.

    To the pixel what torchvision's Resize and CenterCrop make of it; but torchvision takes a second to import.
    """
    shorter = min(rgb.size)
    width, height = (shorter_side if side == shorter else int(shorter_side * side / shorter) for side in rgb.size)
    brought = rgb if rgb.size == (width, height) else rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return brought.crop((left, top, left + size, top + size))


def read_image(path: str | Path, size: int, shorter_side: int | None = None) -> Tensor:
    """Read a picture as networks see it when they are evaluated, (3, size, size) uint8, see `clean_view`."""
    path = Path(path)
    rgb = decode(Files.of(path.parent, [os.fsencode(path.name)]).read(0), str(path))
    image = np.array(clean_view(rgb, size, shorter_side or size))
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
