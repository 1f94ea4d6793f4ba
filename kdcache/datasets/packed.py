"""kdcache's own packed datasets: one HDF5 file each, as ``data/make_fashion_mini.py`` writes them."""

import importlib.resources
from pathlib import Path

import h5py
import numpy as np

from kdcache.datasets import Dataset, Split
from kdcache.datasets.arrays import make_split
from kdcache.datasets.cards import Card
from kdcache.errors import UsageError, fault, first_line

__all__ = ["load", "read"]

FORMAT, VERSION = "kdcache-packed", 1

MOST_DEFLATED = 1032
"""Bytes that one byte can become when HDF5 unpacks it."""


# What h5py raises at files that are damaged in one place or another.
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError)


def load(card: Card, root: Path, download: bool) -> Dataset:
    """Read the packed dataset that ships with kdcache; `root` and `download` are not needed."""
    with importlib.resources.as_file(importlib.resources.files("kdcache.data") / f"{card.name}.h5") as path:
        return read(path, card)


def read(path: Path, card: Card) -> Dataset:
    """Read a packed file.

    Parameters
    ----------
    path : Path
        An HDF5 file with the attributes ``format``, ``version`` and ``class_names``, and groups ``train`` and
        ``test`` that each hold ``images``, (N, H, W, 1 or 3) uint8, and ``labels``, (N,) integers.
    card : Card
        What the file should hold.

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
                    fault(f"format of {path}", allowed=f"{FORMAT} {VERSION}", given=" ".join(map(str, found)))
                )
            names = tuple(map(str, np.atleast_1d(file.attrs.get("class_names", ()))))
            if len(names) != card.classes:
                raise UsageError(fault(f"class_names of {path}", allowed=f"{card.classes} names", given=len(names)))
            return Dataset(card, names, _split(file, "train", card), _split(file, "test", card))
    except _DAMAGE as error:
        reason = "no such file" if not path.exists() else first_line(error)
        raise UsageError(fault(f"cannot read {path}", allowed="a whole HDF5 file", given=reason)) from error


def _split(file: h5py.File, name: str, card: Card) -> Split:
    arrays = []
    for key in (f"{name}/images", f"{name}/labels"):
        array = file.get(key)
        if not isinstance(array, h5py.Dataset):
            raise UsageError(fault(f"{file.filename} has no array {key}"))
        _check(array, file)
        arrays.append(array[()])
    return make_split(f"{file.filename}/{name}", card, *arrays)


def _check(array: h5py.Dataset, file: h5py.File) -> None:
    """Refuse, as a ``ValueError``, an array that lies elsewhere, or says to be larger than the file can hold."""
    if array.external or array.is_virtual or array.file.filename != file.filename:
        raise ValueError(f"{array.name} lies in another file")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{array.name} holds {array.dtype}")
    if array.nbytes > MOST_DEFLATED * Path(file.filename).stat().st_size:
        raise ValueError(f"{array.name} of shape {array.shape} does not fit into the file")
