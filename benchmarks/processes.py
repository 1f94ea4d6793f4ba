"""What a process of its own takes, from its start to its end: time and memory. A part of `speed.py`."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from common import ratios, spread
from reference_step import CORES, Reference
from watched_step import BATCH, CLASSES, Ours, noise

from kdcache.machine import keep_freed_memory

__all__ = ["start"]


class Cost(NamedTuple):
    """What a process took: seconds by the clock and of the processor, and what it printed."""

    seconds: float
    processor: float
    printed: str


def process(*command: str) -> Cost:
    """Run a process to its end."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        printed = running.stdout.read()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {running.returncode}")
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, printed)


def start(chosen: argparse.Namespace) -> list[str]:
    """Measure what happens before the second step, and the memory of processes that take some steps."""
    python, here = sys.executable, [sys.executable, __file__, "--threads", str(torch.get_num_threads())]
    commands = {
        "`kdcache --help`": [python, "-m", "kdcache", "--help"],
        "`import kdcache`": [python, "-c", "import kdcache"],
        "an empty Python": [python, "-c", ""],
        "`import torch`": [python, "-c", "import torch"],
        "until the first step, online": [*here, "online", chosen.pairs[0]],
        "until the reference's first step": [*here, "reference", chosen.pairs[0]],
    }
    taken: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(chosen.repeats):
        for name, command in commands.items():
            taken[name].append(process(*command))
    lines = [
        "",
        "## Starting",
        "",
        f"Whole processes; the steps are of {chosen.pairs[0].replace(':', ' to ')}.",
        "",
        "| | processor, s | clock, s |",
        "| --- | --- | --- |",
    ]
    for name, costs in taken.items():
        processor, clock = ([getattr(cost, field) for cost in costs] for field in ("processor", "seconds"))
        lines.append(f"| {name} | {spread(processor, 2)} | {spread(clock, 2)} |")
    lines += [
        "",
        "## Memory",
        "",
        f"Largest resident size of a process that takes {chosen.steps} steps, in MiB. The reference's workers come on "
        "top, with their share of what they have in common (PSS).",
        "",
        "| teacher and student | teacher online | teacher-free | reference | its workers | online by reference alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for pair in chosen.pairs:
        with tempfile.TemporaryDirectory() as name:
            rest = [pair, "--steps", str(chosen.steps), "--store", f"{name}/answers.zarr"]
            process(*here, "fill", *rest)
            kinds = {
                kind: [json.loads(process(*here, kind, *rest).printed) for _ in range(chosen.repeats)]
                for kind in ("online", "free", "reference")
            }
        mib = {kind: [one["peak"] for one in found] for kind, found in kinds.items()}
        workers = [one["workers"] for one in kinds["reference"]]
        lines.append(
            f"| {pair.replace(':', ' to ')} | {spread(mib['online'], 0)} | {spread(mib['free'], 0)} "
            f"| {spread(mib['reference'], 0)} | {spread(workers, 0)} "
            f"| {spread(ratios(mib['online'], mib['reference']), 2)} |"
        )
    return lines


def memory(process: str, file: str, field: str) -> float:
    """Read a figure of a process's memory, in MiB."""
    lines = (Path("/proc") / process / file).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


def tell_memory() -> None:
    """Print the largest resident size of this process so far, and what its workers share out among them."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    workers = sum(memory(child, "smaps_rollup", "Pss:") for child in children)
    print(json.dumps({"peak": memory("self", "status", "VmHWM:"), "workers": workers}))


def main() -> None:
    """Take steps in this process, or fill the store for that, and print the memory that it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("online", "free", "reference", "fill"))
    parser.add_argument("pair")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as name:
        if chosen.what == "reference":
            split = noise(max(chosen.steps, 4 * CORES)).train
            reference = Reference(*chosen.pair.split(":"), split, BATCH, CLASSES)
            for _ in range(chosen.steps):
                reference.step(*next(reference.batches))
        else:
            keep_freed_memory()  # as the command line does
            ours = Ours(chosen.pair, chosen.steps, chosen.store or Path(name) / "answers.zarr")
            if chosen.what == "fill":
                ours.fill()
            else:
                ours.run(ours.free if chosen.what == "free" else ours.online)
        tell_memory()


if __name__ == "__main__":
    main()
