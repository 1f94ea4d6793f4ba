"""Checks of the machine that need torch: its devices, their precision, and a small training."""

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from kdcache.compute import Compute, best_precision, supports_bfloat16
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.doctor import HINT, OK, PROBLEM, Check, Finding, nearest_folder
from kdcache.machine import cores
from kdcache.run.find import find_stores
from kdcache.run.folder import FinishedRun
from kdcache.stores import verify_store

__all__ = ["TrainFunctions", "training_checks"]

CLASSES, IMAGES_PER_CLASS = ("dark", "bright"), 64
"""The synthetic dataset of the self-test: two steps of the default batch size."""

MAX_LOGIT_DIFFERENCE = 0.25
"""Difference from the teacher's logits above which a stored logit is wrong; rounding explains less."""


class TrainFunctions(NamedTuple):
    """The recipes that the self-test runs. They are passed in, because they import this package."""

    train_teacher: Callable[[TeacherConfig], FinishedRun]
    train_student: Callable[[StudentConfig], FinishedRun]


def training_checks(recipes: TrainFunctions, runs: Path, device: str, precision: str) -> dict[str, Check]:
    """Collect the checks that need torch, by name.

    Parameters
    ----------
    recipes : TrainFunctions
    runs : Path
        Folder of the run folders; it need not exist.
    device, precision : str
        As for a training.
    """
    return {
        "devices": list_devices,
        "precision": lambda: check_precision(device, precision),
        "self-test": lambda: self_test(recipes, runs, device, precision),
    }


def list_devices() -> Finding:
    """List the devices of torch."""
    found = [f"cpu ({platform.processor() or platform.machine()}, {cores()} cores)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 10**9:.1f} GB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return Finding("devices", OK, ", ".join(found))


def check_precision(device: str, precision: str) -> Finding:
    """Report the precision of networks, and why it is chosen."""
    chosen = Compute.choose(device, precision)
    kind = chosen.device.type
    if precision == "auto":
        return Finding("precision", OK, f"{chosen.precision} on {kind}, because {best_precision(kind)[1]}")
    supported, reason = supports_bfloat16(kind)
    if precision == "bfloat16" and not supported:
        return Finding("precision", HINT, f"bfloat16 on {kind}, as requested. This is slow, because {reason}")
    if precision == "float16" and kind == "cpu":
        return Finding("precision", HINT, "float16 on cpu, as requested. This is slow on most processors")
    return Finding("precision", OK, f"{chosen.precision} on {kind}, as requested")


def self_test(recipes: TrainFunctions, runs: Path, device: str, precision: str) -> Finding:
    """Train a teacher for two steps on synthetic images, a student with cutmix-pick, and the same student again.

    The second student must find all logits in the store and end with the same bits, and the store must hold the
    teacher's logits.
    """
    began = time.perf_counter()
    compute = Compute.choose(device, precision)
    with tempfile.TemporaryDirectory(prefix=".kdcache-doctor-", dir=_writable(nearest_folder(runs))) as name:
        root = Path(name)
        _make_images(root / "images")
        common: dict[str, Any] = {"dataset": f"folder:{root / 'images'}", "image_size": 32, "crop": "padded"}
        common |= {"epochs": 1, "batch_size": 64, "model": "resnet8", "device": device, "precision": precision}
        teacher = recipes.train_teacher(TeacherConfig.load(**common, out=root / "teacher"))
        views: dict[str, Any] = {
            "teacher": teacher.path,
            "aug": "cutmix-pick",
            "cache": "replay",
            "cache_limit": "100 MB",
        }
        first, second = (
            recipes.train_student(StudentConfig.load(**common, **views, out=root / name))
            for name in ("first", "second")
        )
        forwards = [run.summary["teacher_forwards"] for run in (first, second)]
        equal = first.network_file.read_bytes() == second.network_file.read_bytes()
        checks = [
            check for store in find_stores(teacher.path).stores for check in verify_store(teacher, store, device=device)
        ]
    expected = 3 * IMAGES_PER_CLASS * len(CLASSES)  # x and two x' of each image
    problems = {
        f"{forwards[0]} teacher forwards instead of {expected}": forwards[0] != expected,
        f"{forwards[1]} teacher forwards in spite of the store": forwards[1] != 0,
        "damaged chunks in the store": any(check.damaged or check.rows < check.total_rows for check in checks),
        "stored logits are not the teacher's": any(check.max_error > MAX_LOGIT_DIFFERENCE for check in checks),
        "the same run twice gave other bits": not equal and compute.device.type == "cpu",
    }
    steps = f"2 steps of cutmix-pick in {compute.precision} on {compute.device.type}"
    if found := [text for text, is_so in problems.items() if is_so]:
        return Finding("self-test", PROBLEM, f"{steps}: {', '.join(found)}")
    bits = "the same bits" if equal else "other bits, which is normal on this device,"
    seconds = time.perf_counter() - began
    text = f"{steps}, {expected} logits stored and read again, {bits} when repeated, {seconds:.0f} s"
    return Finding("self-test", OK if equal else HINT, text)


def _writable(folder: Path) -> Path | None:
    """Return the folder if it is writable, else ``None``, which means the system's temporary folder."""
    try:
        with tempfile.TemporaryDirectory(dir=folder):
            return folder
    except OSError:
        return None


def _make_images(root: Path) -> None:
    noise = np.random.Generator(np.random.Philox(0))
    for part, count in (("train", IMAGES_PER_CLASS), ("val", 4)):
        for shade, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 128, (32, 32, 3)) + 100 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.bmp")
