"""Writing a dataset into one file, whole or not at all, and going on where a run before was killed."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from kdcache.datasets import Dataset, Split
from kdcache.datasets.manifest import Manifest
from kdcache.datasets.packed import FORMAT, VERSION, card_facts
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.files import rename_durably, write_atomically

__all__ = ["draft_of", "pack"]

SYNC_BYTES = 64 * 2**20
"""Bytes after which what was written is put on the disk and counted as done."""

Tell = Callable[[int, int], None]


class _Payload(NamedTuple):
    """The bytes of a split's images, one behind the other.

    Attributes
    ----------
    array : str
        Name of the array that holds them.
    shape : tuple of int
        Of that array.
    ends : ndarray of int64, shape (N,)
        Byte at which each image ends.
    read : callable
        The bytes of an image.
    """

    array: str
    shape: tuple[int, ...]
    ends: np.ndarray
    read: Callable[[int], bytes]


def draft_of(path: Path) -> Path:
    """Name the file in which a pack is prepared."""
    return path.with_name(f".{path.name}.packing")


def pack(data: Dataset, path: Path, tell: Tell = lambda done, total: None) -> None:
    """Write a dataset into a file that ``hdf5:FILE`` reads: the same images, labels, names and fingerprints.

    The draft beside it has its full size from the start, and says how far it has come. A later call for the same
    content goes on there.

    Parameters
    ----------
    data : Dataset
        As `kdcache.datasets.read` gives it. All pictures have been tried and decode.
    path : Path
        The file to make or to replace.
    tell : callable
        Hears how many of how many bytes are written.

    Raises
    ------
    UsageError
        If the folder of the file does not exist.
    KdcacheError
        If a picture changes meanwhile.
    """
    if not path.parent.is_dir():
        raise UsageError(problem(f"cannot write {path}", expected="a folder that exists", got=path.parent))
    draft, splits = draft_of(path), {"train": data.train, "test": data.test}
    payloads = {part: _payload(split) for part, split in splits.items()}
    content = [card_facts(data.card), *data.class_names, *(split.fingerprint for split in splits.values())]
    mark = hashlib.sha256("\n".join(content).encode()).hexdigest()
    if _mark_of(draft) != mark:
        write_atomically(draft, lambda temporary: _lay_out(temporary, data, payloads, mark))
    with h5py.File(draft) as file:
        places = {part: file[part][payload.array].id.get_offset() for part, payload in payloads.items()}
        counters = file["written"].id.get_offset()
        written = file["written"][()].tolist()
    total, before = sum(int(payload.ends[-1]) for payload in payloads.values()), 0
    with draft.open("r+b", buffering=0) as target:
        for number, (part, payload) in enumerate(payloads.items()):
            for done in _copy(target.fileno(), places[part], payload, written[number]):
                os.pwrite(target.fileno(), done.to_bytes(8, "little"), counters + 8 * number)
                tell(before + int(payload.ends[done - 1]), total)
            before += int(payload.ends[-1])
    rename_durably(draft, path)


def _copy(descriptor: int, place: int, payload: _Payload, done: int) -> Iterator[int]:
    """Write the images from one on, and say of how many the bytes are safely on the disk."""
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
    manifest, source = Manifest.of(pictures.source), pictures.source
    manifest.know(pictures.workers)
    sizes = source.sizes() if pictures.chosen is None else source.sizes()[pictures.chosen]

    def read(image: int) -> bytes:
        picture = pictures.number(image)
        data = source.read(picture)
        if hashlib.sha256(data).digest() != manifest.digests[picture].tobytes():
            raise KdcacheError(problem(f"{source.name(picture)} changed while it was packed"))
        return data

    ends = np.cumsum(sizes)
    return _Payload("blob", (int(ends[-1]),), ends, read)


def _lay_out(path: Path, data: Dataset, payloads: dict[str, _Payload], mark: str) -> None:
    """Make the file with everything but the images, for which there is room."""
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION, card=card_facts(data.card), mark=mark)
        file["class_names"] = list(data.class_names)  # of which an attribute would hold a few thousand at most
        file.create_dataset("written", data=np.zeros(len(payloads), "<i8"))
        for part, split in (("train", data.train), ("test", data.test)):
            group, payload = file.create_group(part), payloads[part]
            group.attrs["fingerprint"] = split.fingerprint
            group["labels"] = split.labels.numpy()
            if payload.array == "blob":
                group["offsets"] = np.concatenate([[0], payload.ends])
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_layout(h5py.h5d.CONTIGUOUS)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            plan.set_obj_track_times(False)  # the same content is the same bytes
            space = h5py.h5s.create_simple(payload.shape)
            h5py.h5d.create(group.id, payload.array.encode(), h5py.h5t.STD_U8LE, space, plan)


def _mark_of(draft: Path) -> str | None:
    try:
        with h5py.File(draft) as file:
            mark: str | None = file.attrs.get("mark")
            return mark
    except OSError:
        return None
