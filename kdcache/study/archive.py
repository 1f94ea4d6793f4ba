"""Archives of a study's run folders, such as those in ``docs/results``."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kdcache.errors import UsageError, first_line, problem

__all__ = ["extracted"]

READ_BYTES = 2**20
"""Bytes that are read at once."""


@contextmanager
def extracted(archive: Path) -> Iterator[Path]:
    """Extract an archive to a temporary folder.

    Parameters
    ----------
    archive : Path
        A tar file, compressed or not, with the run folders as ``PROTOCOL/RUN/...``.

    Yields
    ------
    Path
        The temporary folder, which is removed at the end.

    Raises
    ------
    UsageError
        If the file is missing or is not an archive, or a member would be written outside the folder.
    """
    with TemporaryDirectory(prefix="kdcache-") as folder:
        try:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
                while file.fileobj is not None and file.fileobj.read(READ_BYTES):
                    pass  # to the end, where the checksum of a compressed file is
        except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
            raise UsageError(
                problem(f"could not read {archive}", expected="a tar file of run folders", got=first_line(error))
            ) from None
        yield Path(folder)
