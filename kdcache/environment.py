"""What a result depends on besides its settings: versions, commit, command, device, precision, threads."""

import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import kdcache
from kdcache.compute import Compute
from kdcache.errors import printable

__all__ = ["describe_environment"]

PACKAGES = ("torch", "torchvision", "numpy", "zarr", "h5py", "safetensors")


def describe_environment(compute: Compute) -> dict[str, Any]:
    """Describe what a result depends on besides its settings, as plain data."""
    device = (
        torch.cuda.get_device_name() if compute.device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "kdcache": kdcache.__version__,
        "commit": _commit(),
        "command": [printable(word) for word in sys.argv],
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "device": f"{compute.device.type} ({device})",
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
        "started_at": time.time(),
    }


def _commit() -> str | None:
    """Commit of the source tree that the code runs from; ``None`` for an installed package."""
    source = Path(kdcache.__file__).parents[1]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
