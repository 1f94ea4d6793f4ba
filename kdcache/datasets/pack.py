"""Packing a dataset into one HDF5 file: atomic, and resumed where an earlier call was interrupted."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from kdcache.datasets.packed import FORMAT, VERSION, card_to_json
from kdcache.datasets.split import Dataset, Split
from kdcache.errors import UsageError, problem
from kdcache.files import rename_durably, require_writable_file, write_atomically

__all__ = ["check_target", "draft_path", "pack"]

SYNC_BYTES = 64 * 2**20
"""Bytes after which the draft is synced to the disk and its progress is recorded."""

ProgressCallback = Callable[[int, int], None]


class _Payload(NamedTuple):
    """The concatenated bytes of the images of a split.

    Attributes
    ----------
    array : str
        Name of their array in the file.
    shape : tuple of int
        Shape of the array.
    ends : ndarray of int64, shape (N,)
        Offset at which each image ends.
    read : callable
        Returns the bytes of an image.
    """

    array: str
    shape: tuple[int, ...]
    ends: np.ndarray
    read: Callable[[int], bytes]


def draft_path(path: Path) -> Path:
    """Path of the draft of a packed file."""
    return path.with_name(f".{path.name}.packing")


def check_target(path: Path) -> None:
    """Check before any work that a packed file can be written.

    Raises
    ------
    UsageError
        If its folder does not exist or cannot be written, or if there is something else, such as a folder or a device.
    """
    if not path.parent.is_dir():
        raise UsageError(problem(f"could not write {path}: folder {path.parent} does not exist"))
    require_writable_file(path, "FILE")


def pack(data: Dataset, path: Path, progress: ProgressCallback = lambda done, total: None) -> None:
    """Pack a dataset into a file for ``hdf5:FILE``, with the same images, labels, class names and fingerprints.

    The draft beside it has its full size from the start, and records how much is written. A later call for the same
    content resumes it.

    Parameters
    ----------
    data : Dataset
        As `kdcache.datasets.read` returns it, without bad images.
    path : Path
        File to create or replace.
    progress : callable
        Called with the number of bytes written, and their total.

    Raises
    ------
    UsageError
        See `check_target`.
    KdcacheError
        If an image file changes meanwhile.
    """
    check_target(path)
    draft, splits = draft_path(path), {"train": data.train, "test": data.test}
    payloads = {part: _payload(split) for part, split in splits.items()}
    content = [card_to_json(data.card), *data.class_names, *(split.fingerprint for split in splits.values())]
    identity = hashlib.sha256("\n".join(content).encode()).hexdigest()
    if _identity_of(draft) != identity:
        write_atomically(draft, lambda temporary: _create_draft(temporary, data, payloads, identity))
    with h5py.File(draft) as file:
        places = {part: file[part][payload.array].id.get_offset() for part, payload in payloads.items()}
        counters = file["written"].id.get_offset()
        written = file["written"][()].tolist()
    total, before = sum(int(payload.ends[-1]) for payload in payloads.values()), 0
    with draft.open("r+b", buffering=0) as target:
        for number, (part, payload) in enumerate(payloads.items()):
            for done in _copy(target.fileno(), places[part], payload, written[number]):
                os.pwrite(target.fileno(), done.to_bytes(8, "little"), counters + 8 * number)
                progress(before + int(payload.ends[done - 1]), total)
            before += int(payload.ends[-1])
    rename_durably(draft, path)


def _copy(descriptor: int, place: int, payload: _Payload, done: int) -> Iterator[int]:
    """Write the images from index `done` on, and yield how many are safely on the disk."""
    synced = int(payload.ends[done - 1]) if done else 0
    for image in range(done, len(payload.ends)):
        data, start = payload.read(image), int(payload.ends[image - 1]) if image else 0
        while data:
            count = os.pwrite(descriptor, data, place + start)
            data, start = data[count:], start + count
        if start - synced >= SYNC_BYTES or image + 1 == len(payload.ends):
            os.fsync(descriptor)
            synced = start
            yield image + 1


def _payload(split: Split) -> _Payload:
    if split.pictures is None:
        assert split.images is not None
        images = split.images.permute(0, 2, 3, 1)
        shape = tuple(images.shape)
        ends = np.arange(1, len(split) + 1) * int(np.prod(shape[1:]))
        return _Payload("images", shape, ends, lambda image: images[image].contiguous().numpy().tobytes())
    pictures = split.pictures
    split.hash()  # what is read from here on is what the fingerprint is of
    sizes = pictures.source.sizes()[pictures.indices]
    ends = np.cumsum(sizes)
    return _Payload("blob", (int(ends[-1]),), ends, lambda image: pictures.read(pictures.index_in_source(image)))


def _create_draft(path: Path, data: Dataset, payloads: dict[str, _Payload], identity: str) -> None:
    """Create the file with everything but the images, whose space is allocated."""
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION, card=card_to_json(data.card), mark=identity)
        file["class_names"] = list(data.class_names)  # an array, as an attribute holds a few thousand names at most
        file.create_dataset("written", data=np.zeros(len(payloads), "<i8"))
        for part, split in (("train", data.train), ("test", data.test)):
            group, payload = file.create_group(part), payloads[part]
            group.attrs["fingerprint"] = split.fingerprint
            group["labels"] = split.labels.numpy()
            if payload.array == "blob":
                group["offsets"] = np.concatenate([[0], payload.ends])
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_layout(h5py.h5d.CONTIGUOUS)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            properties.set_obj_track_times(False)  # equal contents are equal bytes
            space = h5py.h5s.create_simple(payload.shape)
            h5py.h5d.create(group.id, payload.array.encode(), h5py.h5t.STD_U8LE, space, properties)


def _identity_of(draft: Path) -> str | None:
    if not draft.is_file():  # h5py would wait for a FIFO
        return None
    try:
        with h5py.File(draft) as file:
            identity: str | None = file.attrs.get("mark")
            return identity
    except OSError:
        return None
