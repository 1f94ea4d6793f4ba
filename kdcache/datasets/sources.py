"""Where pictures, which are encoded images of any size, are stored: in a file each, or together in one file."""

import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from kdcache.errors import UsageError, printable, problem

__all__ = ["Blob", "Files", "Joined", "Source", "concatenate", "describe_kinds"]

OTHER_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)

MAX_KINDS_LISTED = 8

HEIC_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
"""Suffixes of the pictures of phones, which are decoded only where ``pillow-heif`` is installed."""


class Source(ABC):
    """Where pictures are stored. It takes a few dozen bytes of memory per picture."""

    digests: np.ndarray | None = None
    """SHA-256 of the pictures, uint8 (N, 32), as far as they were hashed, else zeros; see `Manifest.update`."""

    others: Counter[str]
    """What lies beside the pictures and is not taken as one: how many of each kind."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def place(self) -> str:
        """A name that is unique on this machine."""

    @abstractmethod
    def read(self, picture: int, max_bytes: int) -> bytes:
        """Read the encoded bytes of a picture; more bytes than allowed raise `UsageError`."""

    @abstractmethod
    def name(self, picture: int) -> str:
        """Name of a picture for messages."""

    @abstractmethod
    def listing(self) -> bytes:
        """Hash of the list of pictures."""

    @abstractmethod
    def stamps(self) -> np.ndarray:
        """What changes when a file does, see `_stamp`: int64 (files, 4); one file per picture, or one for all."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """Number of bytes of each picture, int64 (N,)."""

    def describe_others(self) -> str:
        """Describe what is not taken as a picture, by kind: ``12 .txt, 3 hidden``; empty if there is nothing."""
        heic = " (HEIC needs: pip install 'kdcache[heic]')" if HEIC_SUFFIXES & self.others.keys() else ""
        return describe_kinds(self.others) + heic


@dataclass(eq=False)
class Files(Source):
    """Pictures in a file each.

    Parameters
    ----------
    root : Path
    names : bytes
        The concatenated paths below it; a list of strings would take several times the memory.
    ends : ndarray of int64, shape (N,)
        Offset at which each path ends.
    others : Counter
        See `Source`.
    """

    root: Path
    names: bytes
    ends: np.ndarray
    others: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, root: Path, names: Iterable[bytes], others: Counter[str] | None = None) -> "Files":
        """Create the source of the files with these paths below `root`."""
        return cls(root, *concatenate(names), Counter() if others is None else others)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def place(self) -> str:
        """See `Source`."""
        return str(self.root.absolute())

    def relative_path(self, picture: int) -> bytes:
        """Path of a picture below the root."""
        start = self.ends[picture - 1] if picture else 0
        return self.names[start : self.ends[picture]]

    def path(self, picture: int) -> Path:
        """Path of a picture."""
        return self.root / os.fsdecode(self.relative_path(picture))

    def kinds(self) -> Counter[str]:
        """Count the pictures by suffix."""
        names = map(self.relative_path, range(len(self)))
        return Counter(os.fsdecode(os.path.splitext(name)[1]).lower() for name in names)

    def read(self, picture: int, max_bytes: int) -> bytes:
        """See `Source`. A FIFO or a device is not waited for."""
        path = self.path(picture)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
                state = os.fstat(file.fileno())
                if not stat.S_ISREG(state.st_mode):
                    got = next((kind for test, kind in OTHER_KINDS if test(state.st_mode)), "a device")
                    raise UsageError(problem(f"could not read {path}", expected="a regular file", got=got))
                if state.st_size > max_bytes:
                    raise UsageError(_length_problem(str(path), state.st_size, max_bytes))
                return file.read() or b""
        except OSError as error:
            raise UsageError(problem(f"could not read {path}", got=error.strerror)) from error

    def name(self, picture: int) -> str:
        """See `Source`."""
        return str(self.path(picture))

    def listing(self) -> bytes:
        """See `Source`."""
        return sha256(self.ends.tobytes() + self.names).digest()

    def stamps(self) -> np.ndarray:
        """See `Source`. A file that is not there has zeros."""
        found, root = np.zeros((len(self), 4), np.int64), os.fsencode(self.root)
        for picture in range(len(self)):
            try:
                found[picture] = _stamp(os.stat(os.path.join(root, self.relative_path(picture))))
            except OSError:
                continue  # reading it says why
        return found

    def sizes(self) -> np.ndarray:
        """See `Source`."""
        return self.stamps()[:, 0]


@dataclass(eq=False)
class Blob(Source):
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
    others: Counter[str] = field(default_factory=Counter, init=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def place(self) -> str:
        """See `Source`."""
        return f"{self.path.absolute()}#{self.part}"

    def read(self, picture: int, max_bytes: int) -> bytes:
        """See `Source`. The file is not memory-mapped, because its pages would count as memory of this process."""
        start, stop = self.offsets[picture : picture + 2].tolist()
        if stop - start > max_bytes:
            raise UsageError(_length_problem(self.name(picture), stop - start, max_bytes))
        try:
            with self.path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), stop - start, start)
        except OSError as error:
            raise UsageError(problem(f"could not read {self.path}", got=error.strerror)) from error

    def name(self, picture: int) -> str:
        """See `Source`."""
        return f"picture {picture} of {self.path}/{self.part}"

    def listing(self) -> bytes:
        """See `Source`."""
        return sha256(self.offsets.tobytes()).digest()

    def stamps(self) -> np.ndarray:
        """See `Source`."""
        return np.array([_stamp(self.path.stat())], np.int64)

    def sizes(self) -> np.ndarray:
        """See `Source`."""
        return np.diff(self.offsets)


@dataclass(eq=False)
class Joined(Source):
    """The pictures of several sources, one source after the other. Their hashes are known.

    Parameters
    ----------
    parts : tuple of Source
    """

    parts: tuple[Source, ...]

    def __post_init__(self) -> None:
        self.digests = np.concatenate([part.digests for part in self.parts])
        self.others = sum((part.others for part in self.parts), Counter())
        self._begins = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    @property
    def place(self) -> str:
        """See `Source`."""
        return ", ".join(part.place for part in self.parts)

    def _find(self, picture: int) -> tuple[Source, int]:
        """Find the source of a picture, and its index there."""
        number = int(np.searchsorted(self._begins, picture, side="right")) - 1
        return self.parts[number], picture - int(self._begins[number])

    def read(self, picture: int, max_bytes: int) -> bytes:
        """See `Source`."""
        part, index = self._find(picture)
        return part.read(index, max_bytes)

    def name(self, picture: int) -> str:
        """See `Source`."""
        part, index = self._find(picture)
        return part.name(index)

    def listing(self) -> bytes:
        """See `Source`."""
        return sha256(b"".join(part.listing() for part in self.parts)).digest()

    def stamps(self) -> np.ndarray:
        """See `Source`."""
        return np.concatenate([np.broadcast_to(part.stamps(), (len(part), 4)) for part in self.parts])

    def sizes(self) -> np.ndarray:
        """See `Source`."""
        return np.concatenate([part.sizes() for part in self.parts])


def describe_kinds(counts: Counter[str]) -> str:
    """List kinds of files and their numbers, the most frequent first."""
    kinds = counts.most_common()
    text = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:MAX_KINDS_LISTED])
    if more := kinds[MAX_KINDS_LISTED:]:
        text += f", {sum(count for _, count in more):,} of {len(more)} other kinds"
    return printable(text)


def _stamp(state: os.stat_result) -> tuple[int, int, int, int]:
    """Size, times of modification and of change, and inode: programs that copy files set the first two alone."""
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def _length_problem(name: str, size: int, max_bytes: int) -> str:
    remedy = "--max-pixels changes the limit, which is 8 bytes per pixel."
    return problem(f"could not read {name}", expected=f"at most {max_bytes} bytes", got=size, remedy=remedy)


def concatenate(parts: Iterable[bytes]) -> tuple[bytes, np.ndarray]:
    """Concatenate byte strings; also return the offsets at which each ends, int64."""
    whole, ends = bytearray(), []
    for part in parts:
        whole += part
        ends.append(len(whole))
    return bytes(whole), np.array(ends, np.int64)
