"""Datasets of Hugging Face: from the Hub by name, or Parquet files on disk; their pictures are decoded on demand."""

import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.cards import card_of
from kdcache.choices import FOLDER_PREFIX, HF_PREFIX
from kdcache.datasets.folder import TEST_FOLDERS, TRAIN_FOLDERS, choose_test
from kdcache.datasets.split import Dataset, Split
from kdcache.errors import KdcacheError, UsageError, first_line, problem, require_package
from kdcache.files import write_folder_atomically

__all__ = ["HubName", "fetch", "load"]

FORM = re.compile(r"(?P<path>[^:@#]+)(:(?P<config>[^:@#]+))?(@(?P<revision>[^@#]+))?(#(?P<labels>.+))?")

SECONDS_TO_ANSWER = 20
"""Time that the Hub may take to answer."""

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class HubName:
    """The parts of ``hf:PATH:CONFIG@REVISION#LABELS``.

    Attributes
    ----------
    path : str
        A repository of the Hub, or a folder on disk.
    config, revision : str or None
    labels : str or None
        The column of the labels.
    """

    path: str
    config: str | None = None
    revision: str | None = None
    labels: str | None = None

    @classmethod
    def parse(cls, name: str) -> "HubName":
        """Read a name; a folder that is there may have any characters in its path but a number sign."""
        rest, _, labels = name.removeprefix(HF_PREFIX).partition("#")
        if os.path.isdir(rest):
            return cls(rest, labels=labels or None)
        if (found := FORM.fullmatch(name.removeprefix(HF_PREFIX))) is None:
            expected = "hf:NAME, with :CONFIG, @REVISION and #COLUMN of the labels where needed"
            raise UsageError(problem("dataset", expected=expected, got=name))
        return cls(found["path"], found["config"], found["revision"], found["labels"])

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on disk."""
        return os.path.isdir(self.path) or self.path.startswith(("/", "./", "../", "~"))

    def folder(self, root: Path) -> Path:
        """Folder of the downloaded dataset."""
        if self.is_local:
            return Path(self.path)
        config, revision = (
            f"{sign}{part}" if part else "" for sign, part in (("+", self.config), ("@", self.revision))
        )
        return root / "hf" / re.sub(r"[^\w.+@-]", "-", f"{self.path.replace('/', '--')}{config}{revision}")


def load(name: str, root: Path, image_size: int | None, workers: int, crop: str | None = None) -> Dataset:
    """Read a dataset that was downloaded, or that lies in a folder. Nothing is downloaded.

    Parameters
    ----------
    name : str
    root : Path
        Folder of the downloaded datasets.
    image_size, crop : optional
        See `kdcache.datasets.load`.
    workers : int
        Processes that decode images.

    Raises
    ------
    UsageError
        If it is not there, or its splits or columns do not fit.
    """
    parts, splits = HubName.parse(name), open_splits(name, root)
    train_name, test_name = _find(splits, TRAIN_FOLDERS), _find(splits, TEST_FOLDERS)
    if train_name is None:
        present = ", ".join(map(str, splits))
        raise UsageError(problem(f"splits of {name}", expected="train, and validation or test", got=present))
    if unread := [str(split) for split in splits if split not in (train_name, test_name)]:
        log.info("%s: the test set is %s; not read: %s", name, test_name or "a part of train", ", ".join(unread))
    used = {split: splits[split] for split in (train_name, test_name) if split is not None}
    columns = _columns(name, splits[train_name].features, parts.labels)
    class_names = _class_names(name, [*used.values()], columns[1])
    card = card_of(f"{FOLDER_PREFIX}{name}", image_size, crop)
    source = parts.path if parts.is_local else f"https://huggingface.co/datasets/{parts.path}"
    card = replace(card, name=name, classes=len(class_names), source=source, license="that of the dataset")
    read = [_split(f"{name}, split {split}", rows, columns, card, workers) for split, rows in used.items()]
    if len(read) == 1:
        whole = read[0]
        is_test = choose_test(whole.labels.numpy(), class_names, (str(row).encode() for row in range(len(whole))), name)
        read = [whole.part(np.flatnonzero(chosen)) for chosen in (~is_test, is_test)]
        log.info("%s has no test set: %d images of train, the same ones in every run, are it", name, len(read[1]))
    return Dataset(card, class_names, train=read[0], test=read[1])


def fetch(name: str, root: Path) -> Path:
    """Download a dataset, unless it is there already.

    Raises
    ------
    UsageError
        If the Hub has no such dataset, or it has several configurations and the name has none.
    KdcacheError
        If the Hub cannot be reached, or the disk is full.
    """
    parts = HubName.parse(name)
    folder = parts.folder(root)
    if folder.is_dir():
        return folder
    library = _library(name)
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:  # load_dataset would try for half a minute
            huggingface_hub.HfApi().dataset_info(parts.path, revision=parts.revision, timeout=SECONDS_TO_ANSWER)
        found = library.load_dataset(parts.path, parts.config, revision=parts.revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, library.exceptions.DatasetNotFoundError) as error:
        expected = "a dataset of the Hub that you may read"
        raise UsageError(problem(f"dataset {name}", expected=expected, got=first_line(error))) from error
    except ValueError as error:  # such as a configuration that is not named
        raise UsageError(problem(f"dataset {name}", got=first_line(error))) from error
    except Exception as error:  # each layer below has its own for a server that is not reached
        remedy = (
            "Where the dataset is in the cache of Hugging Face, set HF_HUB_OFFLINE=1. A folder is read with hf:FOLDER."
        )
        raise KdcacheError(problem(f"could not download {name}", got=first_line(error), remedy=remedy)) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder_atomically(folder, lambda temporary: found.save_to_disk(str(temporary)))
    return folder


def _library(name: str) -> Any:
    """Import the library, which draws its bars on terminals alone."""
    require_package(f"dataset {name}", "datasets", "hf")
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def open_splits(name: str, root: Path) -> dict[Any, Any]:
    """Open the splits of a dataset, which stay on disk."""
    parts = HubName.parse(name)
    folder, library = parts.folder(root), _library(name)
    if not folder.is_dir():
        remedy = f"Run 'kdcache data fetch {name}', or add --download."
        if parts.is_local:
            remedy = "If it was moved, name its place with --dataset."
        raise UsageError(problem(f"{name} is not in {folder}", remedy=remedy))
    try:
        if (folder / "dataset_dict.json").is_file():
            return dict(library.load_from_disk(str(folder)))
        return dict(library.load_dataset(str(folder.absolute()), parts.config))
    except Exception as error:  # the readers of each format have their own
        expected = "Parquet files or others that load_dataset reads"
        again = None if parts.is_local else f"Delete {folder} and run 'kdcache data fetch {name}'."
        message = problem(f"could not read {name}", expected=expected, got=first_line(error), remedy=again)
        raise UsageError(message) from error


def _find(splits: Iterable[str], names: Sequence[str]) -> str | None:
    """Find the first of some names, as among the folders of ``folder:PATH``."""
    return next((split for name in names for split in splits if str(split).lower() == name), None)


def _columns(name: str, features: Any, labels: str | None) -> tuple[str, str]:
    """Find the column of the images, and that of the labels: the one that is named, or the only one of its kind."""
    from kdcache.datasets.adapters import LABELS, kind_of

    kinds = {column: kind_of(feature) for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    named = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if labels is not None:
        named = [column for column, kind in kinds.items() if column == labels and kind in LABELS]
    elif not named:
        named = [column for column, kind in kinds.items() if kind in LABELS]
    if len(images) != 1 or len(named) != 1:
        got = ", ".join(f"{column}: {kind}" for column, kind in kinds.items())
        remedy = (
            f"Name the column of the labels, as in {name.partition('#')[0]}#{named[0]}." if len(named) > 1 else None
        )
        expected = "one Image, and one ClassLabel or integer"
        raise UsageError(problem(f"columns of {name}", expected=expected, got=got, remedy=remedy))
    return images[0], named[0]


def _class_names(name: str, splits: Sequence[Any], column: str) -> tuple[str, ...]:
    """Take the names of the classes from the features, or else the numbers that occur."""
    features = [rows.features.get(column) for rows in splits]
    names = [tuple(getattr(feature, "names", None) or ()) for feature in features]
    if names[0] != names[-1]:
        raise UsageError(problem(f"classes of {name}", expected="the same in both splits", got="others"))
    if names[0]:
        return names[0]
    highest = max(max(rows[column], default=0) for rows in splits)
    return tuple(map(str, range(int(highest) + 1)))


def _split(where: str, rows: Any, columns: tuple[str, str], card: Any, workers: int) -> Split:
    from kdcache.datasets.adapters import EncodedColumn
    from kdcache.datasets.arrays import check_labels
    from kdcache.datasets.listing import picture_split

    labels = np.asarray(rows[columns[1]][:])
    check_labels(where, card, labels, len(rows))
    return picture_split(EncodedColumn.of(rows, columns[0], where), labels, card, workers)
