"""Is this machine fit for the work? Looks at what a run depends on, and plays one in small."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import kdcache
from kdcache import datasets
from kdcache.compute import Compute, bfloat16
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import first_line, printable
from kdcache.files import write_atomically
from kdcache.machine import cores, free_memory
from kdcache.run.folder import RUNS, FinishedRun
from kdcache.setup import verify_run

__all__ = ["FAULT", "HINT", "WELL", "Finding", "Recipes", "examine"]

WELL, HINT, FAULT = "ok", "hint", "problem"

PACKAGES = ("torch", "torchvision", "numpy", "zarr", "h5py", "safetensors", "pydantic")
LITTLE_MEMORY, LITTLE_ROOM = 2 * 10**9, 10**9
"""Bytes under which a hint is given: images are held in memory, and a store is filled."""

WRITTEN, SMALL_FILES = 64 * 2**20, 20
"""Bytes that are written to time the disk, and files of a few bytes that are each waited for, as commits are."""

CLASSES, IMAGES = ("dark", "bright"), 64
"""Made images of the self-test: so many of each class, which are two steps of the usual batch."""


class Finding(NamedTuple):
    """What was found out: about what, how it is (`WELL`, `HINT` or `FAULT`), and a line that says it."""

    about: str
    state: str
    text: str


class Recipes(NamedTuple):
    """The recipes that the self-test plays; they stand above this module."""

    train_teacher: Callable[[TeacherConfig], FinishedRun]
    train_student: Callable[[StudentConfig], FinishedRun]


def examine(
    recipes: Recipes,
    runs: Path = RUNS,
    data_root: Path = Path("datasets"),
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Finding]:
    """Look at everything, one thing after the other; what goes wrong is a finding too.

    Parameters
    ----------
    recipes : Recipes
    runs : Path
        Folder that holds, or will hold, the run folders.
    data_root : Path
        Folder that holds downloaded datasets.
    device, precision : str
        As a training takes them.

    Yields
    ------
    Finding
    """
    checks: dict[str, Callable[[], Finding]] = {
        "versions": versions,
        "devices": devices,
        "precision": lambda: arithmetic(device, precision),
        "threads": threads,
        "memory": memory,
        "disk": lambda: disk(runs),
        "datasets": lambda: found_datasets(data_root),
        "self-test": lambda: self_test(recipes, runs, device, precision),
    }
    for about, check in checks.items():
        try:
            yield check()
        except Exception as error:  # whatever is wrong with a machine
            yield Finding(about, FAULT, printable(f"{type(error).__name__}: {first_line(error)}"))


def versions() -> Finding:
    """Name the versions of kdcache, Python and the packages that results depend on."""
    found, missing = [f"kdcache {kdcache.__version__}", f"python {platform.python_version()}"], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return Finding("versions", FAULT, f"not installed: {', '.join(missing)} (of {', '.join(found)})")
    return Finding("versions", WELL, ", ".join(found))


def devices() -> Finding:
    """Name what there is to compute on."""
    found = [f"cpu ({platform.processor() or platform.machine()}, {cores()} cores)"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({facts.name}, {_size(facts.total_memory)})")
    if torch.backends.mps.is_available():
        found.append("mps")
    return Finding("devices", WELL, ", ".join(found))


def arithmetic(device: str, precision: str) -> Finding:
    """Say how precisely networks will compute, and why."""
    chosen = Compute.choose(device, precision)
    kind = chosen.device.type
    has, why = bfloat16(kind)
    if precision != "auto":
        slow = precision == "bfloat16" and not has
        reason = f"as asked for{f', though {why}: this is slow' if slow else ''}"
        return Finding("precision", HINT if slow else WELL, f"{chosen.precision} on {kind}, {reason}")
    return Finding("precision", WELL, f"{chosen.precision} on {kind}, because {why}")


def threads() -> Finding:
    """Compare torch's threads with the cores, and with what else runs."""
    mine, there = torch.get_num_threads(), cores()
    told = os.environ.get("OMP_NUM_THREADS")
    text = f"{mine} for {there} cores ({f'OMP_NUM_THREADS={told}' if told else 'OMP_NUM_THREADS is not set'})"
    busy = os.getloadavg()[0]
    if mine > there:
        return Finding("threads", HINT, f"{text}: more than cores, set OMP_NUM_THREADS={there}")
    if mine > 1 and busy > there / 2:
        share = max(1, there // 2)
        return Finding(
            "threads", HINT, f"{text}, of which others use {busy:.1f}: OMP_NUM_THREADS={share} for each of two"
        )
    if mine > 1 and told is None:
        return Finding(
            "threads", WELL, f"{text}; two runs at once would share them: OMP_NUM_THREADS={there // 2} for each"
        )
    return Finding("threads", WELL, text)


def memory() -> Finding:
    """Tell how much memory is free."""
    free = free_memory()
    little = free < LITTLE_MEMORY
    return Finding(
        "memory", HINT if little else WELL, f"{_size(free)} free{', images are held in it' if little else ''}"
    )


def disk(runs: Path) -> Finding:
    """Tell how much room there is for runs, and how fast it is written and read."""
    there = _there(runs)
    status = os.statvfs(there)
    room = status.f_bavail * status.f_frsize
    text = f"{_size(room)} free for {runs}"
    if room < 2 * WRITTEN:
        return Finding("disk", FAULT, f"{text}, too little for a run")
    content = np.random.Generator(np.random.Philox(0)).bytes(WRITTEN)
    with tempfile.TemporaryDirectory(prefix=".kdcache-doctor-", dir=there) as name:
        path = Path(name) / "content"
        began = time.perf_counter()
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        written = time.perf_counter() - began
        began = time.perf_counter()
        for number in range(SMALL_FILES):
            write_atomically(Path(name) / f"{number}", lambda temporary: temporary.write_bytes(b"commit"))
        each = (time.perf_counter() - began) / SMALL_FILES
        if hasattr(os, "posix_fadvise"):  # so that it is read from the disk, not from memory
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        if path.read_bytes() != content:
            return Finding("disk", FAULT, f"{there} gives back other bytes than were written")
        read = time.perf_counter() - began
    speed = (
        f"written at {_size(WRITTEN / written)}/s, read at {_size(WRITTEN / read)}/s, {1000 * each:.1f} ms a small file"
    )
    return Finding("disk", HINT if room < LITTLE_ROOM else WELL, f"{text}, {speed}")


def found_datasets(root: Path) -> Finding:
    """Name the datasets that can be read without a download."""
    return Finding("datasets", WELL, printable(f"{', '.join(datasets.found(root))} (looked in {root})"))


def self_test(recipes: Recipes, runs: Path, device: str, precision: str) -> Finding:
    """Train on made images: two steps of a teacher, two of a student with cutmix-pick, and the same student again.

    The second student has to find all answers in the store, and to end with the same bits; and the store has to hold
    what the teacher says.
    """
    began = time.perf_counter()
    compute = Compute.choose(device, precision)
    with tempfile.TemporaryDirectory(prefix=".kdcache-doctor-", dir=_writable(_there(runs))) as name:
        root = Path(name)
        _make_images(root / "images")
        common: dict[str, Any] = {
            "dataset": f"folder:{root / 'images'}",
            "image_size": 32,
            "epochs": 1,
            "batch_size": 64,
        }
        common |= {"device": device, "precision": precision, "model": "resnet8"}
        teacher = recipes.train_teacher(TeacherConfig.load(**common, out=root / "teacher"))
        views: dict[str, Any] = {
            "teacher": teacher.path,
            "aug": "cutmix-pick",
            "cache": "replay",
            "cache_limit": "100 MB",
        }
        first, again = (
            recipes.train_student(StudentConfig.load(**common, **views, out=root / name)) for name in ("first", "again")
        )
        asked = [run.summary["teacher_forwards"] for run in (first, again)]
        equal = first.network_file.read_bytes() == again.network_file.read_bytes()
        checks = list(verify_run(teacher, device=device))
    questions = 3 * IMAGES * len(CLASSES)  # x and two candidates of each
    problems = {
        f"{asked[0]} questions instead of {questions}": asked[0] != questions,
        f"{asked[1]} questions asked twice": asked[1] != 0,
        "damaged chunks in the store": any(check.damaged or check.rows < check.total_rows for check in checks),
        "answers in the store that the teacher does not give": any(check.max_error > 0.25 for check in checks),
        "the same run twice has other bits": not equal and compute.device.type == "cpu",
    }
    steps = f"2 steps of cutmix-pick in {compute.precision} on {compute.device.type}"
    if wrong := [what for what, is_so in problems.items() if is_so]:
        return Finding("self-test", FAULT, f"{steps}: {', '.join(wrong)}")
    bits = "the same bits" if equal else "not the same bits, as may be on this device"
    seconds = time.perf_counter() - began
    text = f"{steps}, {questions} answers stored and read again, {bits} when repeated, {seconds:.0f} s"
    return Finding("self-test", WELL if equal else HINT, text)


def _there(folder: Path) -> Path:
    """Find the folder, or the nearest one around it that is there already."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _writable(folder: Path) -> Path | None:
    """Take the system's place for temporary files where a folder, which has its own finding, is read-only."""
    try:
        with tempfile.TemporaryDirectory(dir=folder):
            return folder
    except OSError:
        return None


def _make_images(root: Path) -> None:
    noise = np.random.Generator(np.random.Philox(0))
    for part, count in (("train", IMAGES), ("val", 4)):
        for shade, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 128, (32, 32, 3)) + 100 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.bmp")


def _size(amount: float) -> str:
    return f"{amount / 10**9:.1f} GB" if amount >= 10**9 else f"{amount / 10**6:.0f} MB"
