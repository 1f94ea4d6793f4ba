"""Looking at a dataset: what there is, and whether it is whole."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache import datasets
from kdcache.choices import HDF5_PREFIX
from kdcache.datasets import Dataset, Split
from kdcache.datasets.manifest import Manifest
from kdcache.datasets.packed import stated_fingerprints
from kdcache.datasets.pictures import decode
from kdcache.errors import UsageError

__all__ = ["Report", "check", "known"]

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What came of checking a dataset.

    Attributes
    ----------
    data : Dataset
    problems : list of str
        A line for each: pictures that do not decode or changed unnoticed, counts and fingerprints that are others.
    """

    data: Dataset
    problems: list[str]


def check(name: str, tell: Tell = lambda done, total: None, workers: int | None = None, **where: object) -> Report:
    """Hash and decode everything again, whatever the manifest says, and compare it with what is known of the dataset.

    Parameters
    ----------
    name : str
    tell : callable
        Hears how many of how many pictures of a part were looked at.
    workers : int, optional
    **where
        See `kdcache.datasets.read`.
    """
    data = datasets.read(name, workers=workers, **where)  # type: ignore[arg-type]
    splits = {"train": data.train, "test": data.test}
    problems = [line for part, split in splits.items() for line in _look_at(part, split, tell)]
    for (part, split), count in zip(splits.items(), data.card.counts or (), strict=False):
        if len(split) != count:
            problems.append(f"{part}: allowed {count} images as in the whole {data.card.name}, given {len(split)}")
    if name.startswith(HDF5_PREFIX) and where.get("image_size") is None:
        stated = stated_fingerprints(Path(name.removeprefix(HDF5_PREFIX)).expanduser())
        for part, split in splits.items():
            if stated[part] not in (None, split.fingerprint):
                problems.append(f"fingerprint of {part}: allowed {stated[part]}, given {split.fingerprint}")
    return Report(data, problems)


def known(data: Dataset, tell: Tell = lambda done, total: None, decodes: bool = False) -> list[str]:
    """Hash every picture that was not hashed yet, or try it too; name those that are known not to decode.

    Parameters
    ----------
    data : Dataset
    tell : callable
        Hears how many of how many pictures of a part were looked at.
    decodes : bool
        Whether to try them.

    Returns
    -------
    list of str
        A line for each that cannot be read.
    """
    lines: list[str] = []
    for split in (data.train, data.test):
        if split.pictures is not None:
            manifest = Manifest.of(split.pictures.source)
            manifest.know(split.pictures.workers, decodes=decodes, tell=tell)
            lines += _named(split, manifest.bad)
    return lines


def _look_at(part: str, split: Split, tell: Tell) -> list[str]:
    if split.pictures is None:
        return []  # reading it has checked it
    manifest = Manifest.of(split.pictures.source)
    before, known = manifest.digests.copy(), manifest.hashed.copy()
    manifest.know(split.pictures.workers, decodes=True, again=True, tell=tell)
    changed = np.flatnonzero(known & (manifest.digests != before).any(1))
    source = split.pictures.source
    return _named(split, manifest.bad) + [
        f"{source.name(picture)} has other bytes than before, of the same size and time" for picture in changed.tolist()
    ]


def _named(split: Split, pictures: np.ndarray) -> list[str]:
    """Say of each picture why it cannot be read."""
    assert split.pictures is not None
    source, lines = split.pictures.source, []
    for picture in pictures.tolist():
        try:
            decode(source.read(picture), source.name(picture))
        except UsageError as error:
            lines.append(str(error))
    return lines
