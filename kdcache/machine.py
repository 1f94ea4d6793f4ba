"""The cores and the memory that this process may use, within the limits of its container."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["cores", "free_memory", "keep_freed_memory", "schedulable_cores"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3): free bytes at the top of the heap, and number of mmapped blocks."""


def schedulable_cores() -> int:
    """Count the cores on which this process may be scheduled. torch starts as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """Count the cores that this process may use: those it may be scheduled on, up to the quota of its container."""
    allowed = schedulable_cores()
    quota = _control_group("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, round(int(quota[0]) / int(quota[1]))))
    return allowed


def free_memory() -> int:
    """Bytes of memory that this process may still allocate, as far as the system reports them."""
    facts = Path("/proc/meminfo")
    if facts.is_file():
        lines = dict(line.split(":", 1) for line in facts.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _control_group("memory.max"), _control_group("memory.current")
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for reuse, instead of returning it to the system.

    The feature maps of a step are as large as those of the step before. Memory that was returned comes back page by
    page, zeroed: on a CPU, ResNet-18 then takes 1.10 times as long, and ResNet20 1.04 times
    (``docs/results/freed_memory.md``). The process never shrinks. Other C libraries ignore this.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _control_group(name: str) -> str:
    """Read a limit of the container; empty outside of a container."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""
