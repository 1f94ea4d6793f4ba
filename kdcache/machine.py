"""The cores and the memory that this process may use, within the limits of its container, and who else uses them."""

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = [
    "busy_cores",
    "cores",
    "default_threads",
    "free_memory",
    "keep_freed_memory",
    "other_trainings",
    "threads_advice",
]

TRAININGS = ("teacher-train", "student-train", "cache fill", "demo")
"""Commands that compute for long."""

LOAD_SECONDS = 0.2
"""Time over which the load is measured; the load average of the system still counts what ended a minute ago."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3): free bytes at the top of the heap, and number of mmapped blocks."""


def _schedulable() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores() -> int:
    """Count the cores that this process may use: those it may be scheduled on, up to the quota of its container."""
    allowed = len(_schedulable())
    quota = _control_group("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, round(int(quota[0]) / int(quota[1]))))
    return allowed


def default_threads() -> tuple[int, str]:
    """Number of threads that torch starts by itself, and what determines it.

    On x86, torch asks MKL, which has a variable of its own and counts a core once, however many threads it runs at a
    time.
    """
    uses_mkl = platform.machine() in ("x86_64", "AMD64")
    for variable in ("MKL_NUM_THREADS", "OMP_NUM_THREADS") if uses_mkl else ("OMP_NUM_THREADS",):
        first = os.environ.get(variable, "").partition(",")[0].strip()  # of a list for nested loops
        if first.isdigit() and int(first):
            return int(first), f"{variable}={os.environ[variable]}"
    threads = _physical_cores() if uses_mkl else len(_schedulable())
    return threads, "OMP_NUM_THREADS is not set"


def _physical_cores() -> int:
    siblings = set()
    for core in _schedulable():
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(core))
    return len(siblings)


def threads_advice(threads: int) -> str | None:
    """Say what to do about the cores, if a training with so many threads does not have them for itself."""
    available, others = cores(), other_trainings()
    if others:
        share = max(1, min(available, _physical_cores()) // (len(others) + 1))
        slow = "" if threads <= share else ", or each is several times slower than alone"
        is_one = len(others) == 1
        running = "another training of kdcache runs" if is_one else f"{len(others)} other trainings of kdcache run"
        processes = f"process {others[0]}" if is_one else f"processes {', '.join(map(str, others))}"
        each = f"start each with --threads {share}, or OMP_NUM_THREADS={share}{slow}"
        return f"{running} on this machine ({available} cores): {each}; {processes}"
    if threads > available:
        return f"{threads} threads share {available} cores, which is slow: start with --threads {available}"
    if threads == 1:  # which no number of threads improves
        return None
    busy = busy_cores()
    free = max(1, round(available - busy))
    if threads <= free:
        return None
    return f"other programs use {busy:.1f} of {available} cores: start with --threads {free}, or wait for them"


def other_trainings() -> list[int]:
    """Processes of the trainings of kdcache on this machine, started by a command, besides that of this process.

    Workers belong to the process that started them.
    """
    parents = dict(_training_processes())
    return sorted(
        process
        for process, parent in parents.items()
        if process != os.getpid() and parent not in parents and process != os.getppid()
    )


def _training_processes() -> Iterator[tuple[int, int]]:
    """List the processes of trainings, each with its parent."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            # The name of the program, in parentheses, may have spaces.
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if _is_training(words):
                yield int(folder.name), int(parent)


def _is_training(words: list[str]) -> bool:
    """Tell whether a command line is ``[python [OPTION...] [-m]] kdcache TRAINING ...``."""
    places = [place for place, word in enumerate(words[:6]) if word.rpartition("/")[2] == "kdcache"]
    if not places or not all(word.startswith("-") for word in words[1 : places[0]]):
        return False
    arguments = [word for word in words[places[0] + 1 :] if not word.startswith("-")]
    return " ".join(arguments).startswith(TRAININGS)


def busy_cores(seconds: float = LOAD_SECONDS) -> float:
    """Measure how many of this process's cores are busy while it waits."""
    if not Path("/proc/stat").is_file():
        return os.getloadavg()[0]
    before = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - before) / (seconds * os.sysconf("SC_CLK_TCK"))


def _busy_ticks() -> int:
    own, busy = _schedulable(), 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in own:
            user, nice, system, _, _, *interrupts = map(int, ticks[:8])  # idle, and waiting for the disk
            busy += user + nice + system + sum(interrupts)
    return busy


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
