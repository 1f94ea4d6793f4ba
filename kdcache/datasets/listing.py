"""Listing folders of image files, in an order that does not depend on the file system."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from kdcache.cards import Card
from kdcache.datasets.pictures import Pictures
from kdcache.datasets.sources import Files, Source
from kdcache.datasets.split import Split
from kdcache.errors import UsageError, abbreviated, problem

__all__ = [
    "MAX_NAMES_LISTED",
    "class_folders",
    "class_names",
    "distinct_names",
    "find_folder",
    "picture_split",
    "pictures_by_class",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in any case."""

MAX_NAMES_LISTED = 5
"""Names of classes or files that a message lists."""


def class_folders(part: Path) -> list[str]:
    """List the subfolders of a folder in alphabetical order."""
    with os.scandir(part) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def pictures_by_class(part: Path, classes: Sequence[str], card: Card, workers: int) -> Split:
    """List the image files of some classes, at any depth of their folders, by class and then by path.

    Raises
    ------
    UsageError
        If a class has no image.
    """
    counts: list[int] = []

    def names() -> Iterator[bytes]:
        for name in classes:
            found = [os.fsencode(path) for path in _pictures_below(part, name)]
            counts.append(len(found))
            yield from found

    files = Files.of(part, names())
    if 0 in counts:
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        what = f"classes of {part} without an image ({' '.join(SUFFIXES)})"
        raise UsageError(problem(what, got=abbreviated(empty, MAX_NAMES_LISTED)))
    return picture_split(files, np.repeat(np.arange(len(classes)), counts), card, workers)


def picture_split(source: Source, labels: np.ndarray, card: Card, workers: int) -> Split:
    """Make a split of encoded images, which are resized to the size of a card."""
    size = card.image_size
    pictures = Pictures(source, size, card.shorter_side or size, workers)
    return Split(None, torch.from_numpy(labels.astype(np.int64)), pictures)


def find_folder(root: Path, card: Card, content: str) -> Path:
    """Find the folder of a dataset: one of those that its card names below the data root, or the data root itself.

    Parameters
    ----------
    root : Path
    card : Card
    content : str
        A file or folder that it contains.

    Raises
    ------
    UsageError
        If there is none.
    """
    places = [*(root / name for name in card.folders), root]
    for place in places:
        if (place / content).exists():
            return place
    expected = f"{content} in {' or '.join(map(str, places))}"
    remedy = f"Run 'kdcache data fetch {card.name}', or give another --data-root."
    raise UsageError(problem(f"{card.name} is not in {root}", expected=expected, remedy=remedy))


def class_names(wordlists: Sequence[Path], folders: Sequence[str]) -> tuple[str, ...]:
    """Name classes whose folders are WordNet IDs.

    Parameters
    ----------
    wordlists : sequence of Path
        Files of lines ``ID synonym, synonym, ...``. The first one that exists is used, and the first synonym.
    folders : sequence of str

    Returns
    -------
    tuple of str
        Distinct names, see `distinct_names`. A class that is not listed is named after its folder.
    """
    words: dict[str, str] = {}
    for path in wordlists:
        if path.is_file():
            for line in path.read_text("utf-8", errors="replace").splitlines():
                wnid, _, rest = line.replace("\t", " ", 1).partition(" ")
                words[wnid] = rest.split(",")[0].strip()
            break
    return distinct_names(folders, [words.get(name) or name for name in folders])


def distinct_names(folders: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Append the folder to each name that several classes share."""
    twice = {name for name in names if names.count(name) > 1}
    pairs = zip(folders, names, strict=True)
    return tuple(f"{name} ({folder})" if name in twice else name for folder, name in pairs)


def _pictures_below(part: Path, name: str) -> list[str]:
    found = []
    for folder, _, files in os.walk(part / name, followlinks=True):
        if os.path.islink(folder) and os.path.realpath(folder) in map(os.path.realpath, Path(folder).parents):
            raise UsageError(problem(f"{folder} links to a folder that contains it", remedy="Remove the link."))
        below = os.path.relpath(folder, part)
        found += [os.path.join(below, file) for file in files if file.lower().endswith(SUFFIXES)]
    return sorted(found)
