"""A dataset of the user's own: a folder of image files for each class."""

from dataclasses import replace
from pathlib import Path

from kdcache.cards import Card
from kdcache.choices import FOLDER_PREFIX
from kdcache.datasets.class_names import check_class_names
from kdcache.datasets.listing import MAX_NAMES_LISTED, class_folders, pictures_by_class
from kdcache.datasets.split import Dataset
from kdcache.errors import UsageError, abbreviated, problem

__all__ = ["load", "read_parts"]

TEST_FOLDERS = ("val", "test")


def load(card: Card, root: Path, workers: int) -> Dataset:
    """List the images of a folder; `root` is not used.

    Parameters
    ----------
    card : Card
        Its name is ``folder:PATH``. PATH contains ``train`` and ``val`` (or ``test``), each with the same folders, one
        for each class. The classes are numbered in alphabetical order.

    Raises
    ------
    UsageError
        If a folder is missing or empty, the classes differ, or there are fewer than two.
    """
    path = Path(card.name.removeprefix(FOLDER_PREFIX)).expanduser()
    if not path.is_dir():
        raise UsageError(problem(f"dataset folder {path} does not exist"))
    return read_parts(path, card, workers)


def read_parts(path: Path, card: Card, workers: int) -> Dataset:
    """List the images of ``train`` and ``val`` (or ``test``). Classes are named after their folders."""
    train = path / "train"
    test = next((path / name for name in TEST_FOLDERS if (path / name).is_dir()), None)
    if not train.is_dir() or test is None:
        present = abbreviated((entry.name for entry in path.iterdir() if entry.is_dir()), MAX_NAMES_LISTED)
        raise UsageError(
            problem(f"folders of {path}", expected=f"train and {' or '.join(TEST_FOLDERS)}", got=present or "none")
        )
    classes, test_classes = class_folders(train), class_folders(test)
    check_class_names([*classes, *test_classes], path)
    if odd := set(classes) ^ set(test_classes):
        expected, only = f"the same in train and {test.name}", abbreviated(odd, MAX_NAMES_LISTED)
        raise UsageError(problem(f"class folders of {path}", expected=expected, got=f"only in one of them: {only}"))
    if len(classes) < 2:
        raise UsageError(problem(f"class folders of {train}", expected="at least 2", got=len(classes)))
    listings = [pictures_by_class(part, classes, card, workers) for part in (train, test)]
    return Dataset(replace(card, classes=len(classes)), tuple(classes), train=listings[0], test=listings[1])
