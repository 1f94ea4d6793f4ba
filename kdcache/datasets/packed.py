"""Packed datasets: HDF5 files of ``kdcache data pack`` and ``data/make_fashion_mini.py``."""

import importlib.resources
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import TypeAdapter

from kdcache.cards import Card, card_of, cropped, resized
from kdcache.choices import FOLDER_PREFIX, HDF5_PREFIX, IMAGE_SIZES, MAX_CLASSES
from kdcache.datasets.arrays import check_labels, make_split
from kdcache.datasets.listing import picture_split
from kdcache.datasets.sources import Blob
from kdcache.datasets.split import Dataset, Split
from kdcache.errors import UsageError, first_line, problem

__all__ = ["FORMAT", "VERSION", "card_to_json", "load", "load_file", "read", "stated_fingerprints"]

FORMAT, VERSION = "kdcache-packed", 1

MAX_COMPRESSION = 1032
"""Largest compression ratio of gzip, which limits the size of an array that a file can contain."""

# What h5py raises for damaged files.
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError)

_CARD = TypeAdapter(Card)

FACTS = ("image_size", "padding", "mean", "std", "source", "license", "counts", "shorter_side")
"""Fields of the card that a packed file states."""


def load(card: Card, root: Path, workers: int) -> Dataset:
    """Read the packed dataset that ships with kdcache; `root` is not used."""
    with importlib.resources.as_file(importlib.resources.files("kdcache.data") / f"{card.name}.h5") as path:
        return read(path, card)


def load_file(name: str, image_size: int | None, workers: int, crop: str | None = None) -> Dataset:
    """Read ``hdf5:FILE``, with the card that the file states, or else the card of ``folder:PATH``."""
    return read(Path(name.removeprefix(HDF5_PREFIX)), None, name, image_size, workers, crop)


def read(
    path: Path,
    card: Card | None = None,
    name: str = "",
    image_size: int | None = None,
    workers: int = 0,
    crop: str | None = None,
) -> Dataset:
    """Read a packed file.

    Parameters
    ----------
    path : Path
        An HDF5 file with the attributes ``format`` and ``version``, an array or an attribute ``class_names``, and
        groups ``train`` and ``test``, each with ``labels``, (N,) integers, and either ``images``, (N, H, W, 1 or 3)
        uint8, or ``blob``, uint8, the bytes of all image files, with ``offsets``, (N + 1,) integers, at which each
        begins.
    card : Card, optional
        The expected content; by default, the attribute ``card`` of the file.
    name : str
        Name of the dataset, if there is no card.
    image_size : int, optional
        Size to which image files are resized.
    workers : int
        Processes that decode images.
    crop : str, optional
        Random crop of image files, see `kdcache.cards.cropped`.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or has other content.
    """
    if not path.is_file():  # h5py would wait for a FIFO
        remedy = "If it was moved, name its place with --dataset."
        raise UsageError(
            problem(f"could not read {path}", expected="a complete HDF5 file", got="no such file", remedy=remedy)
        )
    try:
        with h5py.File(path) as file:
            found = file.attrs.get("format"), file.attrs.get("version")
            if found != (FORMAT, VERSION):
                got = "no file of kdcache" if found == (None, None) else " ".join(map(str, found))
                remedy = "Pack the dataset again with kdcache data pack."
                raise UsageError(problem(f"format of {path}", expected=f"{FORMAT} {VERSION}", got=got, remedy=remedy))
            names = _class_names(file)
            card = card or _stated_card(file, name, len(names), image_size, crop)
            if len(names) != card.classes:
                raise UsageError(problem(f"class_names of {path}", expected=f"{card.classes} names", got=len(names)))
            train, test = (_split(file, part, card, workers) for part in ("train", "test"))
            return Dataset(card, names, train, test)
    except _DAMAGE as error:
        expected, got = "a complete HDF5 file", first_line(error)
        raise UsageError(problem(f"could not read {path}", expected=expected, got=got)) from error


def card_to_json(card: Card) -> str:
    """Write the facts of a card that a packed file states."""
    return json.dumps({"name": card.name, **{name: asdict(card)[name] for name in FACTS}})


def stated_fingerprints(path: Path) -> dict[str, str | None]:
    """Read the fingerprints of the splits that a packed file states."""
    with h5py.File(path) as file:
        return {part: file[part].attrs.get("fingerprint") for part in ("train", "test")}


def _class_names(file: h5py.File) -> tuple[str, ...]:
    array = file.get("class_names")
    if not isinstance(array, h5py.Dataset):
        return tuple(map(str, np.atleast_1d(file.attrs.get("class_names", ()))))
    _check_place(array, file)
    if array.size > MAX_CLASSES:
        raise ValueError(f"{array.name} of shape {array.shape}")
    return tuple(map(str, np.atleast_1d(array.asstr()[()])))


def _stated_card(file: h5py.File, name: str, classes: int, image_size: int | None, crop: str | None) -> Card:
    holds_pictures = "train/blob" in file
    if "card" in file.attrs:
        try:
            facts: dict[str, Any] = json.loads(file.attrs["card"])
            stated = _CARD.validate_python({**facts, "name": name, "classes": classes})
            _check_sizes(stated)
        except (ValueError, TypeError, AttributeError) as error:
            expected = f"valid values of {', '.join(FACTS)}"
            raise UsageError(problem(f"card of {file.filename}", expected=expected, got=first_line(error))) from error
        return cropped(resized(stated, image_size, encoded=holds_pictures), crop, encoded=holds_pictures)
    size = image_size
    if not holds_pictures and isinstance(file.get("train/images"), h5py.Dataset) and file["train/images"].ndim == 4:
        size = int(max(file["train/images"].shape[1:3]))
    card = card_of(f"{FOLDER_PREFIX}{file.filename}", size, crop if holds_pictures else "padded")
    card = replace(card, name=name, classes=classes)
    return card if holds_pictures else cropped(card, crop)


def _check_sizes(card: Card) -> None:
    """Raise `ValueError` for sizes that would take any amount of memory, and for a std that cannot be divided by."""
    smallest, largest = IMAGE_SIZES
    size, shorter_side, padding = card.image_size, card.shorter_side or card.image_size, card.padding or 1
    if not smallest <= size <= shorter_side <= 2 * largest or not 0 < padding <= size:
        raise ValueError(f"image_size {size}, shorter_side {shorter_side}, padding {padding}")
    if min(card.std) <= 0:
        raise ValueError(f"std {card.std}")


def _split(file: h5py.File, part: str, card: Card, workers: int) -> Split:
    labels = _array(file, f"{part}/labels")[()]
    if f"{part}/blob" not in file:
        return make_split(f"{file.filename}/{part}", card, _array(file, f"{part}/images")[()], labels)
    blob, offsets = _array(file, f"{part}/blob"), _array(file, f"{part}/offsets")[()].astype(np.int64)
    start, rising = blob.id.get_offset(), offsets.ndim == 1 and len(offsets) > 1 and not (np.diff(offsets) < 0).any()
    if start is None or blob.ndim != 1 or not rising or (offsets[0], offsets[-1]) != (0, len(blob)):
        expected = "contiguous bytes, and rising offsets from 0 to their number"
        raise UsageError(problem(f"{part}/blob of {file.filename}", expected=expected, got=f"{blob.shape} bytes"))
    check_labels(f"{file.filename}/{part}", card, labels, len(offsets) - 1)
    return picture_split(Blob(Path(file.filename), part, start + offsets), labels, card, workers)


def _array(file: h5py.File, key: str) -> h5py.Dataset:
    array = file.get(key)
    if not isinstance(array, h5py.Dataset):
        raise UsageError(problem(f"{file.filename} has no array {key}"))
    _check(array, file)
    return array


def _check(array: h5py.Dataset, file: h5py.File) -> None:
    """Raise `ValueError` for an array that is not in this file, not numeric, or larger than the file can contain."""
    _check_place(array, file)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{array.name} of type {array.dtype}")
    if array.nbytes > MAX_COMPRESSION * Path(file.filename).stat().st_size:
        raise ValueError(f"{array.name} of shape {array.shape} does not fit into the file")


def _check_place(array: h5py.Dataset, file: h5py.File) -> None:
    if array.external or array.is_virtual or array.file.filename != file.filename:
        raise ValueError(f"{array.name} is stored in another file")
