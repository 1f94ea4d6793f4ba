"""A dataset of the user's own: a folder of picture files for each class."""

from dataclasses import replace
from pathlib import Path

from kdcache.choices import FOLDER_PREFIX
from kdcache.datasets import Dataset
from kdcache.datasets.cards import Card
from kdcache.datasets.listing import class_folders, comma_list, pictures_by_class
from kdcache.errors import UsageError, problem

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
    path = Path(card.name.removeprefix(FOLDER_PREFIX)).expanduser()
    if not path.is_dir():
        raise UsageError(problem(f"dataset folder {path}", expected="an existing folder", got="none"))
    return read_parts(path, card, workers)


def read_parts(path: Path, card: Card, workers: int) -> Dataset:
    """List the pictures of ``train`` and ``val`` (or ``test``), whose classes have the names of their folders."""
    train = path / "train"
    test = next((path / name for name in TESTS if (path / name).is_dir()), None)
    if not train.is_dir() or test is None:
        present = comma_list(entry.name for entry in path.iterdir() if entry.is_dir())
        raise UsageError(
            problem(f"folders of {path}", expected=f"train and {' or '.join(TESTS)}", got=present or "none")
        )
    classes, test_classes = class_folders(train), class_folders(test)
    if odd := set(classes) ^ set(test_classes):
        allowed = f"the same in train and {test.name}"
        raise UsageError(problem(f"classes of {path}", expected=allowed, got=f"only in one: {comma_list(odd)}"))
    if len(classes) < 2:
        raise UsageError(problem(f"classes of {train}", expected="2 folders or more", got=len(classes)))
    listings = [pictures_by_class(part, classes, card, workers) for part in (train, test)]
    return Dataset(replace(card, classes=len(classes)), tuple(classes), train=listings[0], test=listings[1])
