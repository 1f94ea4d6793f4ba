"""Datasets in one HDF5 file each, as ``kdcache data pack`` and ``data/make_fashion_mini.py`` write them."""

import importlib.resources
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import TypeAdapter

from kdcache.choices import FOLDER_PREFIX, HDF5_PREFIX, IMAGE_SIZES, MAX_CLASSES
from kdcache.datasets import Dataset, Split
from kdcache.datasets.arrays import check_labels, make_split
from kdcache.datasets.cards import Card, card_of, sized
from kdcache.datasets.listing import picture_split
from kdcache.datasets.pictures import Blob
from kdcache.errors import UsageError, first_line, problem

__all__ = ["FORMAT", "VERSION", "card_facts", "load", "load_file", "read", "stated_fingerprints"]

FORMAT, VERSION = "kdcache-packed", 1

MOST_DEFLATED = 1032
"""Bytes that one byte can become when HDF5 unpacks it."""


# What h5py raises at files that are damaged in one place or another.
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError)

_CARD = TypeAdapter(Card)

FACTS = ("image_size", "padding", "mean", "std", "source", "licence", "counts", "shorter_side")
"""What a file states of the card of its dataset."""


def load(card: Card, root: Path, workers: int) -> Dataset:
    """Read the packed dataset that ships with kdcache; `root` is not needed."""
    with importlib.resources.as_file(importlib.resources.files("kdcache.data") / f"{card.name}.h5") as path:
        return read(path, card)


def load_file(name: str, image_size: int | None, workers: int) -> Dataset:
    """Read ``hdf5:FILE``, whose card is the one that the file states; without one, that of a folder."""
    return read(Path(name.removeprefix(HDF5_PREFIX)).expanduser(), None, name, image_size, workers)


def read(
    path: Path, card: Card | None = None, name: str = "", image_size: int | None = None, workers: int = 0
) -> Dataset:
    """Read a packed file.

    Parameters
    ----------
    path : Path
        An HDF5 file with the attributes ``format`` and ``version``, an array or an attribute ``class_names``, and
        groups ``train`` and ``test`` that each hold ``labels``, (N,) integers, and either ``images``, (N, H, W, 1 or
        3) uint8, or ``blob``, the bytes of all encoded pictures, uint8, with ``offsets``, (N + 1,) integers: where
        each picture begins in it.
    card : Card, optional
        What the file should hold; by default what it states as its attribute ``card``.
    name : str
        Of the dataset, where there is no card.
    image_size : int, optional
        To which pictures are brought.
    workers : int
        Processes that decode.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or holds anything else.
    """
    try:
        with h5py.File(path) as file:
            found = file.attrs.get("format"), file.attrs.get("version")
            if found != (FORMAT, VERSION):
                raise UsageError(
                    problem(f"format of {path}", expected=f"{FORMAT} {VERSION}", got=" ".join(map(str, found)))
                )
            names = _class_names(file)
            card = card or _stated_card(file, name, len(names), image_size)
            if len(names) != card.classes:
                raise UsageError(problem(f"class_names of {path}", expected=f"{card.classes} names", got=len(names)))
            train, test = (_split(file, part, card, workers) for part in ("train", "test"))
            return Dataset(card, names, train, test)
    except _DAMAGE as error:
        reason = "no such file" if not path.exists() else first_line(error)
        raise UsageError(problem(f"cannot read {path}", expected="a whole HDF5 file", got=reason)) from error


def card_facts(card: Card) -> str:
    """Write what a file states of its dataset's card."""
    return json.dumps({"name": card.name, **{name: asdict(card)[name] for name in FACTS}})


def stated_fingerprints(path: Path) -> dict[str, str | None]:
    """Read the fingerprints that a packed file states of its parts."""
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


def _stated_card(file: h5py.File, name: str, classes: int, image_size: int | None) -> Card:
    holds_pictures = "train/blob" in file
    if "card" in file.attrs:
        try:
            facts: dict[str, Any] = json.loads(file.attrs["card"])
            stated = _CARD.validate_python({**facts, "name": name, "classes": classes})
            sides = (stated.image_size, stated.shorter_side or stated.image_size, stated.padding or 1, *IMAGE_SIZES)
            if not sides[3] <= sides[0] <= sides[1] <= 2 * sides[4] or not 0 < sides[2] <= sides[0]:
                raise ValueError(f"sizes {sides[:3]}")
            if min(stated.std) <= 0:
                raise ValueError(f"deviations {stated.std}")
        except (ValueError, TypeError, AttributeError) as error:
            allowed = f"sound values of {', '.join(FACTS)}"
            raise UsageError(problem(f"card of {file.filename}", expected=allowed, got=first_line(error))) from error
        return sized(stated, image_size, pictures=holds_pictures)
    size = image_size
    if not holds_pictures and isinstance(file.get("train/images"), h5py.Dataset) and file["train/images"].ndim == 4:
        size = int(max(file["train/images"].shape[1:3]))
    return replace(card_of(f"{FOLDER_PREFIX}{file.filename}", size), name=name, classes=classes)


def _split(file: h5py.File, part: str, card: Card, workers: int) -> Split:
    labels = _array(file, f"{part}/labels")[()]
    if f"{part}/blob" not in file:
        return make_split(f"{file.filename}/{part}", card, _array(file, f"{part}/images")[()], labels)
    blob, offsets = _array(file, f"{part}/blob"), _array(file, f"{part}/offsets")[()].astype(np.int64)
    start, rising = blob.id.get_offset(), offsets.ndim == 1 and len(offsets) > 1 and not (np.diff(offsets) < 0).any()
    if start is None or blob.ndim != 1 or not rising or (offsets[0], offsets[-1]) != (0, len(blob)):
        allowed = "contiguous bytes, and rising offsets from 0 to their number"
        raise UsageError(problem(f"{part}/blob of {file.filename}", expected=allowed, got=f"{blob.shape} bytes"))
    check_labels(f"{file.filename}/{part}", card, labels, len(offsets) - 1)
    return picture_split(Blob(Path(file.filename), part, start + offsets), labels, card, workers)


def _array(file: h5py.File, key: str) -> h5py.Dataset:
    array = file.get(key)
    if not isinstance(array, h5py.Dataset):
        raise UsageError(problem(f"{file.filename} has no array {key}"))
    _check(array, file)
    return array


def _check(array: h5py.Dataset, file: h5py.File) -> None:
    """Refuse, as a ``ValueError``, an array that lies elsewhere, or says to be larger than the file can hold."""
    _check_place(array, file)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{array.name} holds {array.dtype}")
    if array.nbytes > MOST_DEFLATED * Path(file.filename).stat().st_size:
        raise ValueError(f"{array.name} of shape {array.shape} does not fit into the file")


def _check_place(array: h5py.Dataset, file: h5py.File) -> None:
    if array.external or array.is_virtual or array.file.filename != file.filename:
        raise ValueError(f"{array.name} lies in another file")
