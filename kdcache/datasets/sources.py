"""Where pictures, which are encoded images of any size, are stored: in a file each, or together in one file."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from kdcache.errors import UsageError, problem

__all__ = ["Blob", "Files", "Source", "concatenate"]


class Source(Protocol):
    """Where pictures are stored. It takes a few dozen bytes of memory per picture."""

    def __len__(self) -> int: ...

    @property
    def place(self) -> str:
        """A name that is unique on this machine."""

    def read(self, picture: int) -> bytes:
        """Read the encoded bytes of a picture."""

    def name(self, picture: int) -> str:
        """Name of a picture for messages."""

    def listing(self) -> bytes:
        """Hash of the list of pictures."""

    def stamps(self) -> np.ndarray:
        """Size and modification time of each file, int64 (files, 2); one file per picture, or one for all."""

    def sizes(self) -> np.ndarray:
        """Number of bytes of each picture, int64 (N,)."""


@dataclass(frozen=True, eq=False)
class Files:
    """Pictures in a file each.

    Parameters
    ----------
    root : Path
    names : bytes
        The concatenated paths below it; a list of strings would take several times the memory.
    ends : ndarray of int64, shape (N,)
        Offset at which each path ends.
    """

    root: Path
    names: bytes
    ends: np.ndarray

    @classmethod
    def of(cls, root: Path, names: Iterable[bytes]) -> "Files":
        """Create the source of the files with these paths below `root`."""
        return cls(root, *concatenate(names))

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def place(self) -> str:
        """See `Source`."""
        return str(self.root.absolute())

    def path(self, picture: int) -> Path:
        """Path of a picture."""
        start = self.ends[picture - 1] if picture else 0
        return self.root / os.fsdecode(self.names[start : self.ends[picture]])

    def read(self, picture: int) -> bytes:
        """See `Source`."""
        try:
            return self.path(picture).read_bytes()
        except OSError as error:
            raise UsageError(problem(f"could not read {self.path(picture)}", got=error.strerror)) from error

    def name(self, picture: int) -> str:
        """See `Source`."""
        return str(self.path(picture))

    def listing(self) -> bytes:
        """See `Source`."""
        return sha256(self.ends.tobytes() + self.names).digest()

    def stamps(self) -> np.ndarray:
        """See `Source`."""
        found = np.empty((len(self), 2), np.int64)
        for picture in range(len(self)):
            try:
                state = self.path(picture).stat()
            except OSError as error:
                raise UsageError(problem(f"could not read {self.path(picture)}", got=error.strerror)) from error
            found[picture] = state.st_size, state.st_mtime_ns
        return found

    def sizes(self) -> np.ndarray:
        """See `Source`."""
        return self.stamps()[:, 0]


@dataclass(frozen=True, eq=False)
class Blob:
    """Pictures that are concatenated in one file.

    Parameters
    ----------
    path : Path
    part : str
        Their name in the file.
    offsets : ndarray of int64, shape (N + 1,)
        Offset in the file at which each picture begins, and the last one ends.
    """

    path: Path
    part: str
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def place(self) -> str:
        """See `Source`."""
        return f"{self.path.absolute()}#{self.part}"

    def read(self, picture: int) -> bytes:
        """See `Source`. The file is not memory-mapped, because its pages would count as memory of this process."""
        start, stop = self.offsets[picture : picture + 2].tolist()
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), stop - start, start)

    def name(self, picture: int) -> str:
        """See `Source`."""
        return f"picture {picture} of {self.path}/{self.part}"

    def listing(self) -> bytes:
        """See `Source`."""
        return sha256(self.offsets.tobytes()).digest()

    def stamps(self) -> np.ndarray:
        """See `Source`."""
        state = self.path.stat()
        return np.array([[state.st_size, state.st_mtime_ns]], np.int64)

    def sizes(self) -> np.ndarray:
        """See `Source`."""
        return np.diff(self.offsets)


def concatenate(parts: Iterable[bytes]) -> tuple[bytes, np.ndarray]:
    """Concatenate byte strings; also return the offsets at which each ends, int64."""
    whole, ends = bytearray(), []
    for part in parts:
        whole += part
        ends.append(len(whole))
    return bytes(whole), np.array(ends, np.int64)
