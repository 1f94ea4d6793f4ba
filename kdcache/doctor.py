"""Checks of what a run depends on, without torch; `kdcache.self_test` has those that need it."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from kdcache import __version__, datasets
from kdcache.errors import first_line, printable
from kdcache.files import expanded, write_atomically
from kdcache.machine import cores, default_threads, free_memory, threads_advice

__all__ = ["HINT", "OK", "PROBLEM", "Finding", "nearest_folder", "quick_checks", "run_checks"]

OK, HINT, PROBLEM = "ok", "hint", "problem"

PACKAGES = ("torch", "torchvision", "numpy", "zarr", "h5py", "safetensors", "pydantic")

LOW_MEMORY_BYTES = 2 * 10**9
"""Free memory below which the check gives a hint: images are held in memory."""

LOW_DISK_BYTES = 10**9
"""Free disk space below which the check gives a hint: a store may take as much."""

SPEED_TEST_BYTES = 64 * 2**20
"""Size of the file that measures the speed of the disk."""

SMALL_FILES = 20
"""Files of a few bytes that are written and synced one by one, as the commit records of a store are."""


class Finding(NamedTuple):
    """The result of a check.

    Attributes
    ----------
    check : str
        Name of the check.
    state : str
        `OK`, `HINT` or `PROBLEM`.
    text : str
        One line.
    """

    check: str
    state: str
    text: str


Check = Callable[[], Finding]


def quick_checks(runs: Path, data_root: Path) -> dict[str, Check]:
    """Collect the checks that need no torch, by name.

    Parameters
    ----------
    runs : Path
        Folder of the run folders; it need not exist.
    data_root : Path
        Folder of the downloaded datasets.
    """
    return {
        "versions": check_versions,
        "threads": check_threads,
        "memory": check_memory,
        "disk": lambda: check_disk(runs),
        "datasets": lambda: list_datasets(data_root),
    }


def run_checks(checks: Mapping[str, Check]) -> Iterator[Finding]:
    """Run checks one after the other. A check that raises is a `PROBLEM`."""
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # anything may be wrong with a machine
            yield Finding(name, PROBLEM, printable(f"{type(error).__name__}: {first_line(error)}"))


def check_versions() -> Finding:
    """List the versions of kdcache, Python, and the packages that results depend on."""
    found, missing = [f"kdcache {__version__}", f"python {platform.python_version()}"], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return Finding("versions", PROBLEM, f"not installed: {', '.join(missing)} (installed: {', '.join(found)})")
    return Finding("versions", OK, ", ".join(found))


def check_threads() -> Finding:
    """Compare the threads that torch will start with the cores, and with the load of other processes."""
    threads, reason = default_threads()
    available = cores()
    text = f"{threads} for {available} cores ({reason})"
    if advice := threads_advice(threads):
        return Finding("threads", HINT, f"{text}. {advice[0].upper()}{advice[1:]}")
    if threads > 1:
        return Finding("threads", OK, f"{text}. For two trainings at once, use --threads {threads // 2} for each")
    return Finding("threads", OK, text)


def check_memory() -> Finding:
    """Report the free memory."""
    free = free_memory()
    if free < LOW_MEMORY_BYTES:
        return Finding("memory", HINT, f"{_size(free)} free. This is little: images are held in memory")
    return Finding("memory", OK, f"{_size(free)} free")


def check_disk(runs: Path) -> Finding:
    """Report the free disk space for runs, and the speed of the disk."""
    folder = nearest_folder(runs)
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    text = f"{_size(free)} free for {runs}"
    if free < 2 * SPEED_TEST_BYTES:
        return Finding("disk", PROBLEM, f"{text}, which is too little for a run")
    content = os.urandom(SPEED_TEST_BYTES)  # a disk that compresses must not look fast
    with tempfile.TemporaryDirectory(prefix=".kdcache-doctor-", dir=folder) as name:
        path = Path(name) / "content"
        began = time.perf_counter()
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        write_seconds = time.perf_counter() - began
        began = time.perf_counter()
        for number in range(SMALL_FILES):
            write_atomically(Path(name) / f"{number}", lambda temporary: temporary.write_bytes(b"commit"))
        small_seconds = (time.perf_counter() - began) / SMALL_FILES
        if hasattr(os, "posix_fadvise"):  # read from the disk, not from the page cache
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        if path.read_bytes() != content:
            return Finding("disk", PROBLEM, f"{folder} returned other bytes than were written")
        read_seconds = time.perf_counter() - began
    speed = (
        f"{_size(SPEED_TEST_BYTES / write_seconds)}/s written, {_size(SPEED_TEST_BYTES / read_seconds)}/s read, "
        f"{1000 * small_seconds:.1f} ms per small file"
    )
    return Finding("disk", HINT if free < LOW_DISK_BYTES else OK, f"{text}, {speed}")


def list_datasets(root: Path) -> Finding:
    """List the datasets that can be read without a download."""
    return Finding("datasets", OK, printable(f"{', '.join(datasets.list_available(root))} (in {root})"))


def nearest_folder(folder: Path) -> Path:
    """Find the folder itself, or its nearest parent that exists."""
    folder = expanded(folder).absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _size(amount: float) -> str:
    return f"{amount / 10**9:.1f} GB" if amount >= 10**9 else f"{amount / 10**6:.0f} MB"
