"""Folders of picture files: what there is, in an order that does not depend on the file system."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from kdcache.datasets import Split
from kdcache.datasets.cards import Card
from kdcache.datasets.pictures import Files, Pictures, Source
from kdcache.errors import UsageError, problem

__all__ = ["class_folders", "class_names", "comma_list", "picture_split", "pictures_by_class", "unpacked"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of files that are taken for pictures, in capitals or not."""

_SHOWN = 5


def class_folders(part: Path) -> list[str]:
    """Name the folders of a folder, in alphabetical order."""
    with os.scandir(part) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def pictures_by_class(part: Path, classes: Sequence[str], card: Card, workers: int) -> Split:
    """List the pictures in the folders of some classes, at any depth, by class and then by path.

    Raises
    ------
    UsageError
        If a class has none.
    """
    counts: list[int] = []

    def names() -> Iterator[bytes]:
        for name in classes:
            found = [os.fsencode(path) for path in _pictures_below(part, name)]
            counts.append(len(found))
            yield from found

    files = Files.of(part, names())
    if 0 in counts:
        empty = comma_list(name for name, count in zip(classes, counts, strict=True) if not count)
        raise UsageError(problem(f"no image for some classes of {part}", expected=" ".join(SUFFIXES), got=empty))
    return picture_split(files, np.repeat(np.arange(len(classes)), counts), card, workers)


def picture_split(source: Source, labels: np.ndarray, card: Card, workers: int) -> Split:
    """Make a split of pictures, which are brought to the size of a card."""
    size = card.image_size
    pictures = Pictures(source, size, card.shorter_side or size, workers)
    return Split(None, torch.from_numpy(labels.astype(np.int64)), pictures)


def unpacked(root: Path, card: Card, mark: str, verb: str) -> Path:
    """Find the folder that holds a dataset: one of those that its card names below the data root, or the root itself.

    Parameters
    ----------
    root : Path
    card : Card
    mark : str
        What the folder holds, by which it is known.
    verb : str
        What ``kdcache data fetch`` does about the dataset, for the message.

    Raises
    ------
    UsageError
        If there is none.
    """
    places = [*(root / name for name in card.folders), root]
    for place in places:
        if (place / mark).exists():
            return place
    allowed = f"{mark} in {' or '.join(map(str, places))} ('kdcache data fetch {card.name}' {verb} it)"
    raise UsageError(problem(f"{card.name} is not in {root}", expected=allowed))


def class_names(wordlists: Sequence[Path], folders: Sequence[str]) -> tuple[str, ...]:
    """Name classes whose folders are WordNet IDs, by the first list of ``ID words`` lines that is there.

    The first of several synonyms is taken, with the ID behind it where two classes would have one name. A class that
    is in no list has the name of its folder.
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
    """Put the folder behind each name that is not the only one of its kind."""
    twice = {name for name in names if names.count(name) > 1}
    pairs = zip(folders, names, strict=True)
    return tuple(f"{name} ({folder})" if name in twice else name for folder, name in pairs)


def comma_list(names: Iterable[str]) -> str:
    """Name the first few of some names."""
    names = sorted(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _pictures_below(part: Path, name: str) -> list[str]:
    found = []
    for folder, _, files in os.walk(part / name, followlinks=True):
        if os.path.islink(folder) and os.path.realpath(folder) in map(os.path.realpath, Path(folder).parents):
            circle = "a link to a folder that it lies in"
            raise UsageError(problem(f"pictures of {folder}", expected="links that lead elsewhere", got=circle))
        below = os.path.relpath(folder, part)
        found += [os.path.join(below, file) for file in files if file.lower().endswith(SUFFIXES)]
    return sorted(found)
