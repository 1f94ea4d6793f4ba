"""The teacher forwards of an unfinished run, in a file that is overwritten every few steps."""

import logging
import os
import zlib
from pathlib import Path

from kdcache import checked_files
from kdcache.errors import UsageError
from kdcache.files import write_text

__all__ = ["ForwardCount", "read_count"]

log = logging.getLogger("kdcache")


class ForwardCount:
    """Writes the number to a new file, so that no other name of an old file is written through.

    Parameters
    ----------
    path : Path
    count : int or None
        The first number, of all that were made before; ``None`` if it is unknown.

    Attributes
    ----------
    lost : int or None
        Forwards that no checkpoint knows of, which are made again.
    """

    def __init__(self, path: Path, count: int | None) -> None:
        self._path, self.lost = path, count
        write_text(path, _line(count))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def resume(self, known: int) -> None:
        """Count as lost all but those that the checkpoint of a resumed run knows of."""
        if self.lost is None:
            what = f"{self._path} is missing or damaged"
            log.warning("%s: the teacher forwards since the checkpoint are unknown, and not in the summary", what)
        else:
            self.lost = max(0, self.lost - known)

    def write(self, known: int) -> None:
        """Write the number of those that the run has made, beside the lost ones.

        The line has as many digits, and is written in one call: a kill leaves the old or the new number.
        """
        count = None if self.lost is None else self.lost + known
        os.pwrite(self._descriptor, _line(count).encode(), 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_count(path: Path) -> int | None:
    """Read the number; ``None`` if it is unknown, or the file is missing or damaged."""
    try:
        line = checked_files.read_bytes(path).decode()
        count = int(line.split()[0])
        return count if line == _line(count) else None
    except (UsageError, ValueError, IndexError):
        return None


def _line(count: int | None) -> str:
    number = "unknown".rjust(20) if count is None else f"{count:020}"
    return f"{number} {zlib.crc32(number.encode()):08x}\n"
