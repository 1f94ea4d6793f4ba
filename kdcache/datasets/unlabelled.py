"""Images without labels, which a student is trained on beside those of its dataset."""

import logging
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from kdcache.cards import Card
from kdcache.choices import FOLDER_PREFIX, HDF5_PREFIX, MAX_PIXELS
from kdcache.datasets.listing import picture_split, pictures_below
from kdcache.datasets.manifest import picture_digests
from kdcache.datasets.sources import Joined
from kdcache.datasets.split import UNLABELLED, Dataset, Split
from kdcache.datasets.workers import default_workers
from kdcache.errors import UsageError, problem

__all__ = ["append_unlabelled", "read_unlabelled"]

log = logging.getLogger("kdcache")


def read_unlabelled(name: str, card: Card, max_pixels: int = MAX_PIXELS, workers: int | None = None) -> Split:
    """List images without labels, which are resized as those of a dataset; none of them is decoded.

    Parameters
    ----------
    name : str
        ``folder:PATH`` for all image files below a folder, or ``hdf5:FILE`` for the training images of a packed file.
    card : Card
        Of the dataset.
    max_pixels, workers : int, optional
        See `kdcache.datasets.load`.

    Raises
    ------
    UsageError
        If there are no images, or arrays of another size.
    """
    workers = default_workers() if workers is None else workers
    if not Path(name.removeprefix(FOLDER_PREFIX).removeprefix(HDF5_PREFIX)).exists():
        remedy = "If they were moved, put them back, or name their place with --unlabelled where a command has it."
        raise UsageError(problem(f"--unlabelled {name}", got="No such file or directory", remedy=remedy))
    if name.startswith(HDF5_PREFIX):
        from kdcache.datasets import packed

        found = packed.load_file(name, card.image_size, workers).train
        labels = torch.full_like(found.labels, UNLABELLED)
        if found.pictures is None:
            if found.image_size != card.image_size:
                expected = f"{card.image_size}, as in {card.name}"
                raise UsageError(problem(f"image size of --unlabelled {name}", expected=expected, got=found.image_size))
            return replace(found, labels=labels)
        source = found.pictures.source
    else:
        source = pictures_below(Path(name.removeprefix(FOLDER_PREFIX)))
        if not len(source):
            others = source.describe_others()
            raise UsageError(problem(f"images in {source.place}", expected="at least one", got=others or "none"))
        labels = torch.full((len(source),), UNLABELLED)
    return picture_split(source, labels.numpy(), card, workers).limited(max_pixels)


def append_unlabelled(data: Dataset, unlabelled: Split, max_bytes: int) -> Dataset:
    """Append images without labels to the training images of a dataset.

    All images are hashed, and those that occur in two sets are counted in the log.

    Parameters
    ----------
    data : Dataset
    unlabelled : Split
        As `read_unlabelled` returns it.
    max_bytes : int
        Size up to which decoded images are held in memory. Arrays always are.

    Raises
    ------
    UsageError
        If the dataset has image files, and the images without labels are arrays.
    """
    train = data.train
    data.hash()
    if train.pictures is None:  # arrays: what counts are the pixels
        unlabelled = replace(unlabelled.hold(), pictures=None)
    elif unlabelled.pictures is None:
        expected = f"image files, as in {data.card.name}"
        raise UsageError(problem("--unlabelled", expected=expected, got="arrays of one size"))
    unlabelled.hash()
    _report_duplicates(data, unlabelled)
    joined = replace(train, images=None, labels=torch.cat([train.labels, unlabelled.labels]))
    if train.pictures is not None and unlabelled.pictures is not None:
        source = Joined((train.pictures.source, unlabelled.pictures.source))
        chosen = np.concatenate([train.pictures.indices, len(train.pictures.source) + unlabelled.pictures.indices])
        joined = replace(joined, pictures=replace(train.pictures, source=source, chosen=chosen))
    fits = 3 * len(joined) * data.image_size**2 <= max_bytes
    if train.images is not None and (fits or train.pictures is None):
        images = unlabelled.hold().images
        assert images is not None
        joined = replace(joined, images=torch.cat([train.images, images]))
    log.info("training images: %d with labels, %d without", len(train), len(unlabelled))
    return replace(data, train=joined)


def _report_duplicates(data: Dataset, unlabelled: Split) -> None:
    own = _contents(unlabelled)
    for what, split in (("test", data.test), ("validation", data.val), ("labelled training", data.train)):
        if split is not None and (count := int(np.isin(own, _contents(split)).sum())):
            is_trained_on = split is data.train
            level = logging.INFO if is_trained_on else logging.WARNING
            effect = "" if is_trained_on else ": the accuracy on them is not that on unseen images"
            log.log(level, "%d of the %d unlabelled images are %s images too%s", count, len(own), what, effect)


def _contents(split: Split) -> np.ndarray:
    """First eight bytes of the hash of each image, uint64 (N,): of its file, or else of its pixels."""
    if split.pictures is not None:
        return picture_digests(split.pictures)[:, :8].copy().view(np.uint64)[:, 0]
    assert split.images is not None
    return np.frombuffer(b"".join(sha256(image.numpy().tobytes()).digest()[:8] for image in split.images), np.uint64)
