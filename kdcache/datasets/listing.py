"""Listing folders of image files, in an order that does not depend on the file system."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from kdcache.cards import Card
from kdcache.datasets.decoding import suffixes
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
    "is_hidden",
    "picture_split",
    "pictures_below",
    "pictures_by_class",
]

SYSTEM_NAMES = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__")
)
"""Folders that systems and network drives add, some of them with thumbnails of the pictures."""

HIDDEN, NO_SUFFIX, DEAD_LINK = "hidden", "without a suffix", "links that lead nowhere"
NO_CLASS, OUTSIDE = "folders of other classes", "outside the class folders"  # followed by their names
"""Kinds of what is not taken as a picture, besides the suffixes."""

MAX_NAMES_LISTED = 5
"""Names of classes or files that a message lists."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: its name begins with a dot, or a system made it."""
    return name.startswith(".") or name in SYSTEM_NAMES


def class_folders(part: Path) -> list[str]:
    """List the subfolders of a folder in alphabetical order, without hidden ones.

    Raises
    ------
    UsageError
        If the folder cannot be listed, or a link in it leads nowhere, which may be a class.
    """
    found = []
    for entry in _entries(part):
        if is_hidden(entry.name):
            continue
        if _is_folder(entry):
            found.append(entry.name)
        elif "." not in entry.name and _is_dead_link(entry):
            raise UsageError(problem(f"{entry.path} is a link that leads nowhere", remedy="Restore or remove it."))
    return sorted(found)


def pictures_by_class(part: Path, classes: Sequence[str], card: Card, workers: int) -> Split:
    """List the image files of some classes, at any depth of their folders, by class and then by path.

    Raises
    ------
    UsageError
        If a folder cannot be listed, or a class has no image.
    """
    counts: list[int] = []
    others: Counter[str] = Counter()

    def names() -> Iterator[bytes]:
        for name in classes:
            found = _pictures_below(part, name, others)
            counts.append(len(found))
            yield from map(os.fsencode, found)

    files = Files.of(part, names(), others)
    _count_outside(part, frozenset(classes), others)
    if 0 in counts:
        empty = abbreviated((name for name, count in zip(classes, counts, strict=True) if not count), MAX_NAMES_LISTED)
        beside = f", beside {files.describe_others()}" if others else ""
        raise UsageError(problem(f"classes of {part} without an image", got=f"{empty}{beside}"))
    return picture_split(files, np.repeat(np.arange(len(classes)), counts), card, workers)


def pictures_below(folder: Path) -> Files:
    """List the image files in a folder, at any depth, by path."""
    others: Counter[str] = Counter()
    found = _pictures_below(folder, "", others)
    return Files.of(folder, map(os.fsencode, found), others)


def picture_split(source: Source, labels: np.ndarray, card: Card, workers: int) -> Split:
    """Make a split of encoded images, which are resized to the size of a card."""
    pictures = Pictures(source, card.rendering, workers)
    return Split(None, torch.from_numpy(labels.astype(np.int64)), pictures)


def find_folder(root: Path, card: Card, *contents: str) -> Path:
    """Find the folder of a dataset: one of those that its card names below the data root, or the data root itself.

    Parameters
    ----------
    root : Path
    card : Card
    *contents : str
        A file or folder that it contains, or where a distributor puts that below it.

    Returns
    -------
    Path
        The folder in which the content lies.

    Raises
    ------
    UsageError
        If there is none.
    """
    places = [*(root / name for name in card.folders), root]
    for place in places:
        for content in contents:
            if (place / content).exists():
                return (place / content).parent
    expected = f"{contents[0]} in {' or '.join(map(str, places))}"
    there = next((place for place in places[:-1] if place.is_dir()), None)
    again = f"Complete {there}, or delete it and run" if there else "Run"
    remedy = f"{again} 'kdcache data fetch {card.name}', or give another --data-root."
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
            for line in path.read_text("utf-8-sig", errors="replace").splitlines():
                wnid, _, rest = line.replace("\t", " ", 1).partition(" ")
                words[wnid] = rest.split(",")[0].strip()
            break
    return distinct_names(folders, [words.get(name) or name for name in folders])


def distinct_names(folders: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Append the folder to each name that several classes share."""
    twice = {name for name in names if names.count(name) > 1}
    pairs = zip(folders, names, strict=True)
    return tuple(f"{name} ({folder})" if name in twice else name for folder, name in pairs)


def _pictures_below(root: Path, name: str, others: Counter[str]) -> list[str]:
    """List the pictures below a folder in alphabetical order, and count everything else by kind."""
    found, folders, taken = [], [name], suffixes()
    for folder in folders:  # it grows meanwhile
        for entry in _entries(root / folder):
            if is_hidden(entry.name):
                others[HIDDEN] += 1
            elif _is_folder(entry):
                if entry.is_symlink():
                    _refuse_cycle(entry.path)
                folders.append(os.path.join(folder, entry.name))
            elif (kind := _kind(entry.name)) in taken:
                found.append(os.path.join(folder, entry.name))
            else:
                others[DEAD_LINK if _is_dead_link(entry) else kind] += 1
    return sorted(found)


def _count_outside(root: Path, classes: frozenset[str], others: Counter[str]) -> None:
    """Count what lies beside the folders of the classes, and name it unless it is hidden."""
    beside: dict[str, list[str]] = {NO_CLASS: [], OUTSIDE: []}
    for entry in _entries(root):
        if entry.name in classes:
            continue
        if is_hidden(entry.name):
            others[HIDDEN] += 1
        else:
            beside[NO_CLASS if _is_folder(entry) else OUTSIDE].append(entry.name)
    for kind, names in beside.items():
        if names:
            others[f"{kind} ({abbreviated(names, MAX_NAMES_LISTED)})"] = len(names)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UsageError(problem(f"could not list folder {folder}", got=error.strerror)) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it says why not
        return False


def _kind(name: str) -> str:
    _, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot else NO_SUFFIX


def _is_dead_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _refuse_cycle(link: str) -> None:
    if os.path.realpath(link) in map(os.path.realpath, Path(link).parents):
        raise UsageError(problem(f"{link} links to a folder that contains it", remedy="Remove the link."))
