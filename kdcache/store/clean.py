"""The store of clean-view logits: one row for each training sample, written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from kdcache.errors import KdcacheError, fault
from kdcache.files import write_whole_folder
from kdcache.store.fingerprint import compare

__all__ = ["DTYPE", "fingerprint_of", "read_clean", "write_clean"]

DTYPE = np.dtype(np.float16)
"""Precision of stored answers; answers that were just asked are rounded to it too before anyone uses them."""

CHUNK_BYTES = 2 * 2**20

SCHEMA = "kdcache-clean-1"


def write_clean(path: Path, logits: np.ndarray, fingerprint: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """Write the clean logits of a training set.

    Parameters
    ----------
    path : Path
        The zarr store to make; what it held before is replaced.
    logits : ndarray of float16, shape (N, C)
        Row i answers the clean view of sample i.
    fingerprint : mapping
        What the answers are a function of.
    made_with : mapping
        Recorded, not compared: versions, threads, rows of a forward.
    """
    rows = min(len(logits), max(1, CHUNK_BYTES // (logits.shape[1] * DTYPE.itemsize)))

    def write(folder: Path) -> None:
        attributes = {"schema": SCHEMA, "fingerprint": dict(fingerprint), "made_with": dict(made_with)}
        array = zarr.create_group(folder, attributes=attributes).create_array(
            "logits",
            shape=logits.shape,
            chunks=(rows, logits.shape[1]),
            dtype=DTYPE,
            # Logits do not compress. The checksum makes a damaged chunk an error instead of a wrong answer.
            compressors=(Crc32cCodec(),),
            fill_value=np.nan,
        )
        array[:] = logits

    write_whole_folder(path, write)


def fingerprint_of(path: Path) -> dict[str, Any]:
    """Read what the answers in a store are a function of.

    Raises
    ------
    KdcacheError
        Where there is no store of clean logits that can be read.
    """
    return dict(_open(path).attrs["fingerprint"])  # type: ignore[arg-type]


def read_clean(path: Path, fingerprint: Mapping[str, Any]) -> np.ndarray:
    """Read the clean logits.

    Returns
    -------
    ndarray of float16, shape (N, C)

    Raises
    ------
    UsageError
        Where the store was made by something else than ``fingerprint`` says.
    KdcacheError
        Where it is damaged.
    """
    compare(path, fingerprint_of(path), fingerprint)
    try:
        array = _open(path)["logits"]
        assert isinstance(array, zarr.Array)
        logits = np.asarray(array[:])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise _damaged(path, error) from None
    if not np.isfinite(logits).all():  # a missing chunk reads as NaN, without an error
        raise _damaged(path, "rows are missing")
    return logits


def _open(path: Path) -> zarr.Group:
    try:
        group = zarr.open_group(path, mode="r")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise _damaged(path, error) from None
    if group.attrs.get("schema") != SCHEMA or not isinstance(group.attrs.get("fingerprint"), dict):
        raise KdcacheError(fault(f"{path}: schema", allowed=SCHEMA, given=group.attrs.get("schema")))
    return group


def _damaged(path: Path, reason: object) -> KdcacheError:
    return KdcacheError(fault(f"{path} is damaged ({reason}): delete it, and it is filled again"))
