"""What this process may use of the machine: cores and memory, in a container those of the container."""

import os
from pathlib import Path

__all__ = ["cores", "free_memory"]


def cores() -> int:
    """Count the cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _control_group("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, round(int(quota[0]) / int(quota[1]))))
    return allowed


def free_memory() -> int:
    """Bytes that this process may still take, as far as the system tells."""
    facts = Path("/proc/meminfo")
    if facts.is_file():
        lines = dict(line.split(":", 1) for line in facts.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _control_group("memory.max"), _control_group("memory.current")
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def _control_group(name: str) -> str:
    """Read what a container may take; nothing outside of one."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""
