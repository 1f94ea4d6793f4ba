"""ImageNet (ILSVRC 2012) in its usual layouts."""

import csv
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdcache.cards import Card
from kdcache.datasets.folder import read_parts
from kdcache.datasets.listing import (
    MAX_NAMES_LISTED,
    class_folders,
    class_names,
    distinct_names,
    find_folder,
    picture_split,
    pictures_by_class,
)
from kdcache.datasets.sources import Files
from kdcache.datasets.split import Dataset
from kdcache.errors import UsageError, abbreviated, first_line, problem
from kdcache.files import read_text

__all__ = ["load"]

TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKIT = (".", "data", "ILSVRC2012_devkit_t12/data", "../ILSVRC2012_devkit_t12/data")
KAGGLE = "ILSVRC/Data/CLS-LOC"
"""Folder of ``train`` and ``val`` in the competition's archive; its lists lie three folders above."""

SOLUTION = "LOC_val_solution.csv"
WORDLISTS = ("words.txt", "LOC_synset_mapping.txt")
FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)


def load(card: Card, root: Path, workers: int) -> Dataset:
    """List the images of ImageNet, or of a part of it.

    Parameters
    ----------
    card : Card
    root : Path
        The folder ``imagenet``, or one that contains it. It has ``train/<wnid>`` and either ``val/<wnid>``, or ``val``
        with all images. The latter needs the development kit beside it: its ground truth, and ``meta.mat``, which maps
        its numbers to classes; or Kaggle's ``LOC_val_solution.csv``. Kaggle's archive may be given at any level.
        Classes are numbered in alphabetical order of their folders, as in torchvision's weights, and named by the kit,
        a word list, or torchvision.
    workers : int

    Raises
    ------
    UsageError
        If something is missing or inconsistent.
    """
    levels = KAGGLE.split("/")
    path = find_folder(root, card, *("/".join([*levels[start:], "train"]) for start in (3, 2, 1, 0)))
    validation = path / "val"
    flat = _flat_pictures(validation) if validation.is_dir() and not class_folders(validation) else []
    data = _with_flat_validation(path, flat, card, workers) if flat else read_parts(path, card, workers)
    return replace(data, class_names=_names(path, data.class_names))


def _flat_pictures(validation: Path) -> list[tuple[int, str]]:
    return sorted((int(match[1]), name) for name in os.listdir(validation) if (match := FLAT.fullmatch(name)))


def _with_flat_validation(path: Path, flat: list[tuple[int, str]], card: Card, workers: int) -> Dataset:
    classes = class_folders(path / "train")
    numbered = {wnid: label for label, wnid in enumerate(classes)}
    of_classes = _classes_of(path, flat)
    if unknown := set(of_classes) - numbered.keys():
        got = abbreviated(unknown, MAX_NAMES_LISTED)
        raise UsageError(problem(f"classes of {path / 'val'}", expected=f"those of {path / 'train'}", got=got))
    labels = np.array([numbered[wnid] for wnid in of_classes])
    others = Counter({"of other names": len(os.listdir(path / "val")) - len(flat)})
    files = Files.of(path / "val", (os.fsencode(name) for _, name in flat), +others)
    test = picture_split(files, labels, card, workers)
    train = pictures_by_class(path / "train", classes, card, workers)
    return Dataset(replace(card, classes=len(classes)), tuple(classes), train, test)


def _classes_of(path: Path, flat: list[tuple[int, str]]) -> list[str]:
    """Find the class of each validation image in the lists beside them."""
    if kit := _kit(path):
        truth = [word.lstrip("0") for word in read_text(kit / TRUTH).split()]
        if flat[-1][0] > len(truth):
            expected = f"a line for each image, up to {flat[-1][1]}"
            raise UsageError(problem(str(kit / TRUTH), expected=expected, got=f"{len(truth)} lines"))
        wnids = {str(number): wnid for number, (wnid, _) in _synsets(kit).items()}
        return [wnids.get(truth[number - 1], f"number {truth[number - 1]}") for number, _ in flat]
    if solution := _beside(path, SOLUTION):
        wnids_by_image = _solution(solution)
        if absent := [name for _, name in flat if Path(name).stem not in wnids_by_image]:
            got = abbreviated(absent, MAX_NAMES_LISTED)
            raise UsageError(problem(str(solution), expected="a line for each image of val", got=f"none for {got}"))
        return [wnids_by_image[Path(name).stem] for _, name in flat]
    remedy = (
        f"Put {TRUTH} and {META} into {path / DEVKIT[2]}, or {SOLUTION} beside val, or sort the images into a folder "
        "for each class."
    )
    raise UsageError(problem(f"{path / 'val'} has no labels", remedy=remedy))


def _solution(path: Path) -> dict[str, str]:
    """Read the class of each image: the first of the predictions behind its name."""
    found: dict[str, str] = {}
    for row in csv.reader(read_text(path).splitlines()):
        if len(row) == 2 and row[1].strip():
            image, wnid = Path(row[0].strip()).stem, row[1].split()[0]
            if found.setdefault(image, wnid) != wnid:
                got = f"{found[image]} and {wnid}"
                raise UsageError(problem(f"{path}: {image}", expected="one class", got=got))
    return found


def _beside(path: Path, name: str) -> Path | None:
    """Find a list beside ``train``, or where Kaggle's archive has it."""
    above = [place.parents[2] for place in (path.absolute(), path.resolve()) if place.match(KAGGLE)]
    return next((place / name for place in (path, *above) if (place / name).is_file()), None)


def _kit(path: Path) -> Path | None:
    places = (path / place for place in DEVKIT)
    return next((place for place in places if (place / TRUTH).is_file() and (place / META).is_file()), None)


def _synsets(kit: Path) -> dict[int, tuple[str, str]]:
    """Read the classes of the development kit: WordNet ID and synonyms, by number."""
    from scipy.io import loadmat  # takes half a second to import

    try:
        rows = loadmat(kit / META, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in rows}
    except Exception as error:  # SciPy raises many types for damaged files
        expected, got = f"{META} of ImageNet's development kit", first_line(error)
        remedy = "Unpack ILSVRC2012_devkit_t12.tar.gz again."
        raise UsageError(problem(f"could not read {kit / META}", expected=expected, got=got, remedy=remedy)) from error


def _names(path: Path, folders: tuple[str, ...]) -> tuple[str, ...]:
    if wordlist := next((found for name in WORDLISTS if (found := _beside(path, name))), None):
        return class_names([wordlist], folders)
    if kit := _kit(path):
        try:
            words = {wnid: text.split(",")[0] for wnid, text in _synsets(kit).values()}
            return distinct_names(folders, [words.get(name, name) for name in folders])
        except UsageError:
            return folders  # training does not need the names
    if len(folders) == 1000 and (folders[0], folders[-1]) == ("n01440764", "n15075141"):
        from torchvision.models import ResNet18_Weights

        return distinct_names(folders, ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    return folders
