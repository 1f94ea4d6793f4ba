"""Images from other libraries: tensors, arrays, lists of files, and datasets of torchvision and Hugging Face."""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kdcache.cards import Rendering
from kdcache.datasets.pictures import Pictures
from kdcache.datasets.sources import Files, Source
from kdcache.datasets.split import UNLABELLED, Dataset, Split
from kdcache.datasets.workers import default_workers
from kdcache.errors import UsageError, first_line, problem

__all__ = ["LABELS", "EncodedColumn", "as_split", "kind_of"]

FORMS = (
    "(images, labels), with uint8 images (N, 3, H, W) or (N, H, W, 3) or the paths of N files, and N integers or None; "
    "or a dataset of torchvision, Hugging Face or kdcache"
)

LABELS = ("ClassLabel", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
"""Kinds of columns that have labels."""


def as_split(data: Any, image_size: int | None = None) -> Split:
    """Take the images and labels of any of several forms.

    Parameters
    ----------
    data : Dataset, Split, tuple or a map-style dataset
        A dataset of kdcache stands for its training images. A tuple has images and labels: images are a uint8 tensor
        or array (N, 3, H, W), (N, H, W, 3) or (N, H, W), or the paths of N files; labels are N integers from 0, or
        ``None`` for images without labels. A dataset of Hugging Face has one column of images, and one of class labels
        or integers, or no other. Any other dataset with ``len()`` has items (image, label), an image being a PIL image
        or uint8 array, and makes no views of its own.
    image_size : int, optional
        Height and width to which image files are resized, in pixels.

    Raises
    ------
    UsageError
        If it has another form.
    """
    if isinstance(data, Dataset):
        return as_split(data.train, image_size)
    if isinstance(data, Split):
        return _of_size(data, image_size)
    if isinstance(data, tuple | list) and len(data) == 2:
        images, labels = data
        if hasattr(images, "tolist") and str(getattr(images, "dtype", None)) in ("object", "str"):  # of a data frame
            images = images.tolist()
        if _are_paths(images):
            return _of_files(images, labels, image_size)
        if isinstance(images, Sequence) and not isinstance(images, str):
            return _of_size(_of_images(images, labels), image_size)
        return _of_size(_of_arrays(images, labels), image_size)
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return _of_columns(data, image_size)
    if isinstance(data, Mapping):  # load_dataset of Hugging Face returns all splits
        remedy = f"Choose one of {', '.join(map(str, data))}."
        raise UsageError(problem("images", expected="one split", got=f"{len(data)} of them", remedy=remedy))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        _refuse_transforms(data)
        if _reads_plain_files(data):
            paths, labels = zip(*data.samples, strict=True)
            return _of_files(paths, labels, image_size)
        return _of_size(_of_items(data), image_size)
    raise UsageError(problem("images", expected=FORMS, got=type(data).__name__))


def _of_size(split: Split, image_size: int | None) -> Split:
    """Return a split in an image size, if its images are encoded; arrays have the size that they have."""
    if image_size in (None, split.image_size):
        return split
    if split.pictures is None:
        raise UsageError(problem("image size of arrays", expected=split.image_size, got=image_size))
    return split.rendered(Rendering(image_size, image_size, split.pictures.rendering.interpolation))


def _of_arrays(images: Any, labels: Any) -> Split:
    if isinstance(images, np.ndarray):
        images = np.ascontiguousarray(images)  # torch takes no negative strides
    pixels = torch.as_tensor(images) if isinstance(images, torch.Tensor | np.ndarray) else None
    if pixels is None or pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4):
        got = type(images).__name__ if pixels is None else f"{pixels.dtype} {tuple(pixels.shape)}"
        remedy = "Views are made of pixels from 0 to 255: give images that are not normalized."
        raise UsageError(problem("images", expected=FORMS, got=got, remedy=remedy))
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.shape[1] not in (1, 3) or pixels.shape[2] != pixels.shape[3] or not len(pixels):
        expected = "at least one square image with 1 or 3 channels"
        raise UsageError(problem("images", expected=expected, got=tuple(pixels.shape)))
    return Split(pixels.cpu().expand(-1, 3, -1, -1).contiguous(), _labels(labels, len(pixels)))


def _of_files(paths: Sequence[str | Path], labels: Any, image_size: int | None) -> Split:
    if image_size is None:
        raise UsageError(problem("image size of image files", expected="image_size, in pixels", got="none"))
    absolute = [Path(os.path.abspath(os.path.expanduser(path))) for path in paths]
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    files = Files.of(root, (os.fsencode(path.relative_to(root)) for path in absolute))
    return _of_source(files, _labels(labels, len(absolute)), image_size)


def _of_source(source: Source, labels: torch.Tensor, image_size: int) -> Split:
    return Split(None, labels, Pictures(source, Rendering(image_size, image_size), default_workers()))


def _rgb(image: Any) -> Any:
    """Convert a PIL image to RGB, if it has 8 bits per channel; Pillow would clip others to white."""
    if not isinstance(image, Image.Image):
        return image
    if image.mode.startswith(("I", "F")):
        raise UsageError(problem("images", expected="8 bits per channel", got=f"Pillow mode {image.mode}"))
    return image.convert("RGB")


def _of_items(data: Any) -> Split:
    items = [data[index] for index in range(len(data))]
    for item in items:
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise UsageError(problem("items of the dataset", expected="(image, label)", got=type(item).__name__))
    return _of_images([item[0] for item in items], [item[1] for item in items])


def _of_images(images: Sequence[Any], labels: Any) -> Split:
    """Take PIL images, arrays or tensors of one size."""
    arrays = [np.asarray(_rgb(image)) for image in images]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        remedy = "Give (paths, labels) for image files, which may have any size."
        got = f"{len(shapes)} sizes" if shapes else "no images"
        raise UsageError(problem("images", expected="one size", got=got, remedy=remedy))
    return _of_arrays(np.stack(arrays), labels)


def _reads_plain_files(data: Any) -> bool:
    """Whether a dataset is an ImageFolder of torchvision, or like one, that decodes its files as they are."""
    if not hasattr(data, "samples") or "torchvision.datasets" not in sys.modules:
        return False
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader

    if not isinstance(data, DatasetFolder) or data.target_transform is not None:
        return False
    return type(data).__getitem__ is DatasetFolder.__getitem__ and data.loader is default_loader


def _refuse_transforms(data: Any) -> None:
    """Refuse a dataset that changes its images itself, or one that it is a part of."""
    for name in ("transform", "transforms"):
        if getattr(data, name, None) is not None:
            remedy = "kdcache makes the views: leave it out."
            raise UsageError(
                problem(
                    "dataset", expected="one without a transform", got=f"{name}={getattr(data, name)}", remedy=remedy
                )
            )
    parts = getattr(data, "datasets", None)
    for inner in (getattr(data, "dataset", None), *(parts if isinstance(parts, list | tuple) else ())):
        if inner is not None:
            _refuse_transforms(inner)


def _of_columns(data: Any, image_size: int | None) -> Split:
    """Take the images and labels of a dataset of Hugging Face; images are decoded when they are needed."""
    if getattr(data, "format", {}).get("type") == "custom":  # set_transform and with_transform
        expected, remedy = "one without a transform", "kdcache makes the views: call dataset.reset_format()."
        raise UsageError(problem("dataset", expected=expected, got="one with a transform", remedy=remedy))
    kinds = {name: kind_of(feature) for name, feature in data.features.items()}
    images, labels = ([name for name, kind in kinds.items() if kind in wanted] for wanted in (("Image",), LABELS))
    if len(images) != 1 or len(labels) > 1 or (not labels and len(kinds) > 1):
        got = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        expected = "one Image, and one ClassLabel or integer; or one Image alone, for images without labels"
        remedy = "Choose them with dataset.select_columns."
        raise UsageError(problem("columns of the dataset", expected=expected, got=got, remedy=remedy))
    if not hasattr(data, "__len__"):
        raise UsageError(problem("dataset", expected="one with a length", got="a stream"))
    if image_size is None:
        raise UsageError(problem("image size of encoded images", expected="image_size, in pixels", got="none"))
    found = data.with_format(None)[labels[0]][:] if labels else None
    return _of_source(EncodedColumn.of(data, images[0]), _labels(found, len(data)), image_size)


def kind_of(feature: Any) -> str:
    """Name a feature of Hugging Face: its class, or the type of a plain value."""
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


@dataclass(eq=False)
class EncodedColumn(Source):
    """Pictures in a column of a dataset of Hugging Face.

    Parameters
    ----------
    rows : datasets.Dataset
        Its rows have the encoded bytes of a picture, or its path.
    column : str
    title : str
        What messages call the dataset.
    """

    rows: Any
    column: str
    title: str = ""
    others: Counter[str] = field(default_factory=Counter, init=False)

    @classmethod
    def of(cls, data: Any, column: str, title: str = "") -> "EncodedColumn":
        """Take a column of images without decoding them."""
        encoded = type(data.features[column])(decode=False)
        return cls(data.with_format(None).cast_column(column, encoded), column, title)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def place(self) -> str:
        """See `Source`."""
        return f"column {self.column} of the dataset with the fingerprint {self.rows._fingerprint}"

    def read(self, picture: int, max_bytes: int) -> bytes:
        """See `Source`."""
        row = self.rows[picture][self.column]
        if row["bytes"] is None:
            return Files.of(Path(), [os.fsencode(row["path"])]).read(0, max_bytes)
        data = bytes(row["bytes"])
        if len(data) > max_bytes:
            raise UsageError(
                problem(f"size of {self.name(picture)}", expected=f"at most {max_bytes} bytes", got=len(data))
            )
        return data

    def name(self, picture: int) -> str:
        """See `Source`."""
        return f"picture {picture} of {self.title or self.place}"

    def listing(self) -> bytes:
        """See `Source`."""
        return sha256(f"{self.place} {len(self)}".encode()).digest()

    def stamps(self) -> np.ndarray:
        """See `Source`. A dataset with other pictures has another fingerprint, and therefore another place."""
        return np.zeros((1, 4), np.int64)

    def sizes(self) -> np.ndarray:
        """See `Source`."""
        return np.array([len(self.read(picture, 2**62)) for picture in range(len(self))])


def _labels(labels: Any, count: int) -> torch.Tensor:
    if labels is None:
        return torch.full((count,), UNLABELLED)
    try:
        found = np.asarray(labels)
    except Exception as error:  # which depends on what is in them
        raise UsageError(problem("labels", expected=f"{count} integers", got=first_line(error))) from error
    if found.dtype.kind not in "iu" or found.shape != (count,) or found.min() < 0:
        got = f"{found.dtype} {found.shape}" if found.dtype.kind not in "iu" or found.shape != (count,) else found.min()
        raise UsageError(problem("labels", expected=f"{count} integers from 0, or None", got=got))
    return torch.from_numpy(found.astype(np.int64))


def _are_paths(images: Any) -> bool:
    is_list = isinstance(images, Sequence) and not isinstance(images, str)
    return bool(is_list and len(images) and all(isinstance(path, str | Path) for path in images))
