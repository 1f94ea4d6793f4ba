"""What reading a dataset returns: images with labels, in memory or decoded on demand."""

from __future__ import annotations  # annotations do not import torch

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from kdcache.cards import Card, Rendering
from kdcache.errors import UsageError, problem

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from kdcache.datasets.pictures import Crops, Pictures

__all__ = ["DECODING", "UNLABELLED", "Dataset", "Split"]

UNLABELLED = -1
"""Label of a sample without one."""

DECODING = "upright"
"""Names how pictures are decoded, in their fingerprint: turned as EXIF says."""


@dataclass(frozen=True, eq=False)
class Split:
    """The images and labels of a training, validation or test set.

    Parameters
    ----------
    images : Tensor or None
        (N, 3, H, W) uint8 RGB on the CPU; ``None`` if `pictures` are decoded on demand.
    labels : Tensor
        (N,) int64 classes, counted from 0; `UNLABELLED` for a sample without a label.
    pictures : Pictures, optional
        The encoded images, if there are any. They determine the fingerprint even if `images` holds them decoded.
    """

    images: Tensor | None
    labels: Tensor
    pictures: Pictures | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        if self.images is not None:
            return self.images.shape[-1]
        assert self.pictures is not None
        return self.pictures.rendering.image_size

    @property
    def workers(self) -> int:
        """Number of processes that decode images ahead; 0 if the images are in memory."""
        return self.pictures.workers if self.images is None and self.pictures else 0

    def take(self, samples: Tensor) -> Tensor:
        """Return the clean views of some samples.

        Parameters
        ----------
        samples : Tensor
            (B,) int64 indices on the CPU, in any order, with or without repetition.

        Returns
        -------
        Tensor
            (B, 3, H, W) uint8.

        Raises
        ------
        IndexError
            If a sample does not exist.
        UsageError
            If an image cannot be decoded.
        """
        if self.images is not None:
            return self.images.index_select(0, samples)
        assert self.pictures is not None
        return self.pictures.clean(samples)

    def render(
        self, samples: Tensor, renderings: Sequence[Rendering | None], crops: Crops | None = None
    ) -> list[Tensor]:
        """Return the images of some samples in one or more renderings, decoding each picture once.

        Parameters
        ----------
        samples : Tensor
            As for `take`.
        renderings : sequence of Rendering or None
            ``None`` is that of this split.
        crops : Crops, optional
            The part of each picture that is resized; by default the images are clean views.

        Raises
        ------
        UsageError
            If they can only be made of encoded images, and there are none.
        """
        if crops is None and [*renderings] == [None]:
            return [self.take(samples)]
        if self.pictures is None:
            what = "random resized crops" if crops else "images of another size"
            raise UsageError(problem(what, expected="image files", got="arrays of one size"))
        own = self.pictures.rendering
        return self.pictures.render(samples, [rendering or own for rendering in renderings], crops)

    def rendered(self, rendering: Rendering) -> Split:
        """Return the same pictures, to be rendered in another way."""
        assert self.pictures is not None
        return replace(self, images=None, pictures=replace(self.pictures, rendering=rendering))

    def part(self, rows: np.ndarray) -> Split:
        """Select some of the samples, in this order."""
        images = None if self.images is None else self.images[rows]
        return Split(images, self.labels[rows], self.pictures.part(rows) if self.pictures else None)

    def limited(self, max_pixels: int) -> Split:
        """Set the limit on the pixels of a picture."""
        return replace(self, pictures=replace(self.pictures, max_pixels=max_pixels)) if self.pictures else self

    def needed(self) -> Split:
        """Need all pictures, see `Pictures`."""
        return replace(self, pictures=replace(self.pictures, all_needed=True)) if self.pictures else self

    def hold(self) -> Split:
        """Decode all images into memory. They are hashed before, so that these are the images of the fingerprint."""
        import torch

        if self.images is not None:
            return self
        self.hash()
        return replace(self, images=self.take(torch.arange(len(self))))

    def hash(self) -> None:
        """Hash the pictures that were not hashed before. A picture that changes from then on is not decoded."""
        if self.pictures is not None:
            from kdcache.datasets.manifest import picture_digests

            picture_digests(self.pictures)

    def image_digests(self, rows: slice = slice(None)) -> np.ndarray:
        """SHA-256 of each image, uint8 (N, 32): of the encoded bytes of a picture, otherwise of the pixels.

        Parameters
        ----------
        rows : slice
            Samples to hash, by default all.
        """
        import numpy as np

        if self.pictures is not None:
            from kdcache.datasets.manifest import picture_digests

            return picture_digests(self.pictures)[rows]
        assert self.images is not None
        digests = [hashlib.sha256(image.tobytes()).digest() for image in self.images[rows].numpy()]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal.

        For `pictures`, of their encoded bytes, how they are decoded and rendered, and the labels; each is hashed only
        once, see `kdcache.datasets.manifest`. Otherwise of the shape, the images and the labels.
        """
        if self.pictures is not None:
            return self._fingerprint_of(self.pictures)
        assert self.images is not None
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def _fingerprint_of(self, pictures: Pictures) -> str:
        size, shorter_side, interpolation = astuple(pictures.rendering)
        how = (DECODING, len(self), size, shorter_side, *([] if interpolation == "bilinear" else [interpolation]))
        digest = hashlib.sha256(repr(how).encode())
        digest.update(self.image_digests().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset that was read.

    Parameters
    ----------
    card : Card
        Its facts, with the number of classes.
    class_names : tuple of str
        The name of each class, by label.
    train, test : Split
        Unlabelled training images come after the others.
    val : Split, optional
        Held out from the training images for validation.
    skipped : int
        Number of images that were left out because they cannot be decoded.
    """

    card: Card
    class_names: tuple[str, ...]
    train: Split
    test: Split
    val: Split | None = None
    skipped: int = 0

    def hash(self) -> None:
        """Hash the pictures, see `Split.hash`."""
        for split in (self.train, self.val, self.test):
            if split is not None:
                split.hash()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_unlabelled(self) -> int:
        """Number of training images without a label."""
        return int((self.train.labels == UNLABELLED).sum())

    def class_name(self, label: int) -> str:
        """Name of the class with a label, or ``unlabelled``."""
        return "unlabelled" if label == UNLABELLED else self.class_names[label]

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.card.image_size

    def rendered(self, rendering: Rendering) -> Dataset:
        """Return the same pictures as a network sees them.

        If x is a padded crop of the clean view, all networks see the same images: these.
        """
        has_one = self.card.padding is not None or self.train.pictures is None
        if has_one or rendering == self.card.rendering:
            return self
        train, test = self.train.rendered(rendering), self.test.rendered(rendering)
        val = None if self.val is None else self.val.rendered(rendering)
        return replace(self, card=self.card.rendered(rendering), train=train, test=test, val=val)
