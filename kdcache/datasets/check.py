"""Checking a dataset: whether it is complete and all its images can be decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.cards import canonical
from kdcache.choices import HDF5_PREFIX, HF_PREFIX
from kdcache.datasets.hugging_face import open_splits
from kdcache.datasets.manifest import Manifest
from kdcache.datasets.packed import stated_fingerprints
from kdcache.datasets.pictures import Pictures
from kdcache.datasets.reading import read
from kdcache.datasets.split import Dataset
from kdcache.errors import KdcacheError, UsageError, problem

__all__ = ["DatasetCheck", "check", "hash_images", "require_readable"]

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class DatasetCheck:
    """The result of checking a dataset.

    Attributes
    ----------
    data : Dataset
    problems : list of str
        One line each: images that cannot be decoded or changed unnoticed, wrong counts and fingerprints.
    bad : int
        How many images cannot be decoded.
    """

    data: Dataset
    problems: list[str]
    bad: int


def require_readable(name: str, root: Path) -> None:
    """Check that a dataset that was downloaded can be read; its images are not decoded.

    Raises
    ------
    KdcacheError
    """
    try:
        if name.startswith(HF_PREFIX):  # which column has the labels may not have been said yet
            open_splits(name, root)
        else:
            read(name, root=root)
    except UsageError as error:
        raise KdcacheError(str(error)) from error


def check(
    name: str, progress: ProgressCallback = lambda done, total: None, workers: int | None = None, **place: object
) -> DatasetCheck:
    """Hash and decode every image again, and compare the dataset with what is known of it.

    Parameters
    ----------
    name : str
    progress : callable
        Called with the number of images of a split that are checked, and their total.
    workers : int, optional
    **place
        ``root``, ``image_size`` and ``max_pixels``, see `kdcache.datasets.read`.
    """
    data = read(name, workers=workers, **place)  # type: ignore[arg-type]
    splits = {"train": data.train, "test": data.test}
    pictures = [split.pictures for split in splits.values() if split.pictures is not None]
    bad, problems = 0, []
    for each in pictures:
        undecodable, changed = _check_pictures(each, progress)
        bad += len(undecodable)
        problems += undecodable + changed
    for (part, split), count in zip(splits.items(), data.card.counts or (), strict=False):
        if len(split) != count:
            expected = f"the {count} of the complete dataset"
            problems.append(problem(f"number of {part} images", expected=expected, got=len(split)))
    if name.startswith(HDF5_PREFIX) and place.get("image_size") is None:
        stated = stated_fingerprints(Path(canonical(name).removeprefix(HDF5_PREFIX)))
        for part, split in splits.items():
            if stated[part] not in (None, split.fingerprint):
                problems.append(problem(f"fingerprint of {part}", expected=stated[part], got=split.fingerprint))
    return DatasetCheck(data, problems, bad)


def hash_images(
    data: Dataset, progress: ProgressCallback = lambda done, total: None, decode_all: bool = False
) -> list[str]:
    """Hash every image file that was not hashed before, and list those that are known to be bad.

    Parameters
    ----------
    data : Dataset
    progress : callable
        Called with the number of images of a split that are done, and their total.
    decode_all : bool
        Whether to decode the images too, which finds all bad ones.

    Returns
    -------
    list of str
        A message for each image that cannot be decoded.
    """
    lines: list[str] = []
    for split in (data.train, data.test):
        if split.pictures is not None:
            manifest = Manifest.load(split.pictures)
            manifest.update(decode_all=decode_all, progress=progress)
            lines += _decoding_problems(split.pictures, manifest.bad)
    return lines


def _check_pictures(pictures: Pictures, progress: ProgressCallback) -> tuple[list[str], list[str]]:
    """Describe the pictures that cannot be decoded, and those that changed unnoticed."""
    manifest = Manifest.load(pictures)
    before = manifest.entries["digest"].copy()
    manifest.update(decode_all=True, again=True, progress=progress)
    changed = before.any(1) & (manifest.entries["digest"] != before).any(1)
    return _decoding_problems(pictures, manifest.bad), [
        problem(f"{pictures.source.name(picture)} changed, but neither its size nor its times did")
        for picture in np.flatnonzero(changed).tolist()
    ]


def _decoding_problems(pictures: Pictures, bad: np.ndarray) -> list[str]:
    lines = []
    for picture in bad.tolist():
        try:
            pictures.decode(picture)
        except KdcacheError as error:
            lines.append(str(error))
    return lines
