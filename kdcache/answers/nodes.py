"""The groups and arrays of a store, opened so that their metadata cannot make zarr do anything but read numbers.

Zarr version 2 has filters that run code, and in both versions codecs can be plugged in. Which of them zarr refuses
depends on its release. So the metadata are checked as JSON before zarr sees them.
"""

from __future__ import annotations  # so that sizes can be computed without torch

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from kdcache.checked_files import parse_json

if TYPE_CHECKING:
    from kdcache.answers.location import StoreLocation

__all__ = ["DAMAGE", "array_metadata", "open_array", "read_attributes"]

DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError)
"""Raised here, by zarr, and by its codecs for damaged data. An OSError is not damage."""

CODECS = ("bytes", "blosc", "crc32c")
"""The codecs of kdcache's stores."""

DTYPES = ("bool", "uint8", "int16", "int32", "uint32", "float16", "float32")

MAX_CHUNK_BYTES = 2**28
"""Metadata that state larger chunks are taken for damaged."""


def read_attributes(location: StoreLocation, path: str = "") -> dict[str, Any]:
    """Read the attributes of a group.

    Raises
    ------
    FileNotFoundError
        If there is no group.
    ValueError
        If its metadata are damaged; see `DAMAGE` for other errors.
    """
    found = _read_metadata(location, path, "group")
    attributes = found.get("attributes", {})
    if not isinstance(attributes, dict):
        raise ValueError("attributes that are not an object")
    return attributes


def open_array(location: StoreLocation, path: str) -> zarr.Array:
    """Open an array for reading and writing; errors as for `read_attributes`."""
    _require_plain(_read_metadata(location, path, "array"))
    return zarr.open_array(location.store, path=path, mode="r+", zarr_format=3)


def array_metadata(array: zarr.Array) -> dict[str, Any]:
    """Describe how an array is stored: shape, chunks, dtype, codecs."""
    return {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}


def _read_metadata(location: StoreLocation, path: str, kind: str) -> dict[str, Any]:
    key = f"{path}/zarr.json".lstrip("/")
    content = sync(location.store.get(key, default_buffer_prototype()))
    if content is None:
        raise FileNotFoundError(f"there is no {key}")
    found = parse_json(content.to_bytes())
    if not isinstance(found, dict) or found.get("zarr_format") != 3 or found.get("node_type") != kind:
        raise ValueError(f"no {kind} of zarr version 3")
    return found


def _require_plain(found: dict[str, Any]) -> None:
    """Raise a ``ValueError`` for metadata of an array that none of kdcache's has."""
    names = [codec["name"] if isinstance(codec, dict) else codec for codec in found["codecs"]]
    if not set(names) <= set(CODECS) or found.get("storage_transformers"):
        raise ValueError(f"the codecs {names}")
    if found["data_type"] not in DTYPES:
        raise ValueError(f"the data type {found['data_type']}")
    chunk = found["chunk_grid"]["configuration"]["chunk_shape"]
    if math.prod(map(int, chunk)) * np.dtype(found["data_type"]).itemsize > MAX_CHUNK_BYTES:
        raise ValueError(f"chunks of shape {chunk}")
