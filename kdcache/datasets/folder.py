"""A dataset of the user's own: a folder of picture files for each class."""

from dataclasses import replace
from pathlib import Path

from kdcache.datasets import Dataset
from kdcache.datasets.cards import Card
from kdcache.datasets.listing import class_folders, listed, pictures_by_class
from kdcache.errors import UsageError, fault
from kdcache.words import FOLDER

__all__ = ["load", "read_parts"]

TESTS = ("val", "test")


def load(card: Card, root: Path, workers: int) -> Dataset:
    """List the pictures of a folder; `root` is not needed.

    Parameters
    ----------
    card : Card
        Its name is ``folder:PATH``. PATH holds ``train`` and ``val``, or else ``test``; each holds a folder for each
        class, named alike in both. The classes are numbered in the order of their names.

    Raises
    ------
    UsageError
        If a folder is missing or empty, or the classes differ or are fewer than two.
    """
    path = Path(card.name.removeprefix(FOLDER)).expanduser()
    if not path.is_dir():
        raise UsageError(fault(f"dataset folder {path}", allowed="an existing folder", given="none"))
    return read_parts(path, card, workers)


def read_parts(path: Path, card: Card, workers: int) -> Dataset:
    """List the pictures of ``train`` and ``val`` (or ``test``), whose classes have the names of their folders."""
    train = path / "train"
    test = next((path / name for name in TESTS if (path / name).is_dir()), None)
    if not train.is_dir() or test is None:
        present = listed(entry.name for entry in path.iterdir() if entry.is_dir())
        raise UsageError(
            fault(f"folders of {path}", allowed=f"train and {' or '.join(TESTS)}", given=present or "none")
        )
    classes, test_classes = class_folders(train), class_folders(test)
    if odd := set(classes) ^ set(test_classes):
        allowed = f"the same in train and {test.name}"
        raise UsageError(fault(f"classes of {path}", allowed=allowed, given=f"only in one: {listed(odd)}"))
    if len(classes) < 2:
        raise UsageError(fault(f"classes of {train}", allowed="2 folders or more", given=len(classes)))
    listings = [pictures_by_class(part, classes, card, workers) for part in (train, test)]
    return Dataset(replace(card, classes=len(classes)), tuple(classes), train=listings[0], test=listings[1])
