"""How fast a step is: against the authors' way of taking one, and against the bare work of its networks.

python benchmarks/speed.py --out docs/results/speed.md

What is compared is measured in one run and in turn; figures are medians with the least and the most. The step that ours
is measured against is in `reference_step.py`. `--quick` shows that all of it works, and no more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import footer, spread
from reference_step import CORES, Reference, loader, seconds_each
from watched_step import BATCH, CLASSES, NETWORKS, Ours, Watch, noise

from kdcache import models
from kdcache.compute import Compute
from kdcache.files import write_text
from kdcache.store.formats import DENSE, Columns
from kdcache.store.place import Place
from kdcache.store.table import Table, fill
from kdcache.views import Plan, ViewMaker

PAIRS = ("resnet56:resnet20", "wrn_40_2:wrn_16_2")


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="TEACHER:STUDENT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="Steps of a measurement.")
    parser.add_argument("--threads", type=int, help="By default torch's, which is one for each core.")
    parser.add_argument("--quick", action="store_true", help="A repeat of two steps.")
    parser.add_argument("--out", type=Path, help="Page to write.")
    parser.add_argument("--alone", choices=ALONE, help=argparse.SUPPRESS)  # what a process of its own does
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.repeats, chosen.steps = 1, 2
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.alone:
        ALONE[chosen.alone](chosen)
        return
    page = [
        "# How fast a step is",
        "",
        f"Batches of {BATCH} images of 32x32 pixels, {CLASSES} classes, {Compute.choose().precision}. Medians (least, "
        f"most) of {chosen.repeats} measurements of {chosen.steps} steps each, in turn; ratios are of neighbours.",
    ]
    for part in chosen.parts:
        print(f"measuring {part}", file=sys.stderr)
        page += PARTS[part](chosen)
    text = "\n".join([*page, footer()]) + "\n"
    if chosen.out:
        write_text(chosen.out, text)
    else:
        print(text, end="")


class Round(NamedTuple):
    """Seconds of a step, each measured after the other."""

    reference: float
    online: float
    free: float
    bare: float
    reference_bare: float
    loader: float


def steps(chosen: argparse.Namespace) -> list[str]:
    """Measure whole steps: ours, the reference's, and the bare work of either."""
    lines = [
        "",
        "## A step of CutMix-pick",
        "",
        "| teacher and student | reference, ms | teacher online, ms | times faster | teacher-free, ms | times faster |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    limits = [
        "",
        "The reference step is as fast as its parts: four forwards of the teacher, four of the student, the backward, "
        f"and a DataLoader with {CORES} workers, each measured alone.",
        "",
        "| | forwards and backward, ms | DataLoader, ms | step by their sum |",
        "| --- | --- | --- | --- |",
    ]
    free = [
        "",
        "## Where a teacher-free step goes",
        "",
        "Its limit is the bare work of the student: forward and backward of 2B images, a forward of 2B without gradient "
        "to score candidates, and the optimiser's step, with the same images and precision.",
        "",
        "| student | bare, ms | step by bare | outside forward and backward | with the teacher online |",
        "| --- | --- | --- | --- | --- |",
    ]
    table: dict[str, list[str]] = {}
    for pair in chosen.pairs:
        rounds, items, online = rounds_of(pair, chosen)
        of = {name: [getattr(one, name) for one in rounds] for name in Round._fields}
        ms = {name: spread([1e3 * value for value in found], 0) for name, found in of.items()}
        faster = {name: spread(ratios(of["reference"], of[name]), 2) for name in ("online", "free")}
        lines.append(
            f"| {pair.replace(':', ' to ')} | {ms['reference']} | {ms['online']} | {faster['online']} | {ms['free']} "
            f"| {faster['free']} |"
        )
        parts = [one.reference_bare + one.loader for one in rounds]
        limits.append(
            f"| {pair.replace(':', ' to ')} | {ms['reference_bare']} | {ms['loader']} "
            f"| {spread(ratios(of['reference'], parts), 2)} |"
        )
        free.append(
            f"| {pair.split(':')[1]} | {ms['bare']} | {spread(ratios(of['free'], of['bare']), 3)} "
            f"| {spread([outside(one, NETWORKS) for one in items], 1)} % "
            f"| {spread([outside(one, (*NETWORKS, 'store')) for one in online], 1)} % |"
        )
        for name in items[0]:
            table.setdefault(name, []).append(spread([1e3 * one[name] / chosen.steps for one in items], 2))
    students = " | ".join(pair.split(":")[1] for pair in chosen.pairs)
    itemised = [
        "",
        "Its parts, in milliseconds of a step (backward includes that of the losses; the outside of an online step is "
        "all but forwards, backward and what the oracle does):",
        "",
        f"| | {students} |",
        "| --- |" + " --- |" * len(chosen.pairs),
        *(f"| {name} | {' | '.join(found)} |" for name, found in table.items()),
    ]
    return lines + limits + free + itemised


def rounds_of(
    pair: str, chosen: argparse.Namespace
) -> tuple[list[Round], list[dict[str, float]], list[dict[str, float]]]:
    """Measure every way to take a step in turn, and the parts of ours, teacher-free and online."""
    teacher, student = pair.split(":")
    with tempfile.TemporaryDirectory() as name:
        ours = Ours(pair, chosen.steps, Path(name) / "answers.zarr")
        ours.fill()
        split = noise(max(chosen.steps, 4 * CORES)).train
        reference = Reference(teacher, student, split, BATCH, CLASSES)
        images = [next(reference.batches)[0] for _ in range(chosen.steps)]
        loading = loader(split, BATCH)
        rounds, free, online = [], [], []
        for number in range(chosen.repeats + 1):
            print(f"  {pair} {number}", file=sys.stderr)
            rounds.append(
                Round(
                    reference.run(chosen.steps),
                    ours.run(ours.online),
                    ours.run(ours.free),
                    ours.bare(),
                    reference.bare(images),
                    seconds_each(loading, 2 * chosen.steps),
                )
            )
            for found, oracle in ((free, ours.free), (online, ours.online)):
                watch = Watch()
                ours.run(oracle, watch)
                found.append(watch.seconds)
    return rounds[1:], free[1:], online[1:]  # the first ones warm up


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Divide measurement by measurement."""
    return [one / other for one, other in zip(above, below, strict=True)]


def outside(seconds: dict[str, float], networks: tuple[str, ...]) -> float:
    """Percent of the time that is spent elsewhere than in some places."""
    return 100 * (1 - sum(seconds[name] for name in networks) / sum(seconds.values()))


def views(chosen: argparse.Namespace) -> list[str]:
    """Measure the making of views: ours in one thread, and torchvision's in a worker for each core."""
    split = noise(chosen.steps * 10).train
    makers = {
        "x": ViewMaker(split, Plan(len(split), 32, 4, crop_flip=True, seed=0), BATCH, torch.device("cpu")),
        "x and two candidates": ViewMaker(
            split,
            Plan(len(split), 32, 4, crop_flip=True, seed=0, mixes=("cutmix", "cutmix")),
            BATCH,
            torch.device("cpu"),
        ),
    }
    normalise = models.build("resnet8", num_classes=CLASSES, seed=0).normalise
    loading, threads = loader(split, BATCH), torch.get_num_threads()
    theirs: list[float] = []
    ours: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(chosen.repeats + 1):
        theirs.append(BATCH / seconds_each(loading, chosen.steps * 10) / CORES)
        torch.set_num_threads(1)
        for name, maker in makers.items():
            started, made = time.perf_counter(), 0
            for batch in maker.epoch(number):
                made += len(normalise(batch.views))
            ours[name].append(made / (time.perf_counter() - started))
        torch.set_num_threads(threads)
    lines = [
        "",
        "## Making views",
        "",
        "Images a second and core: crop, flip and normalise, ours in one thread with the drawing of the epoch's table, "
        f"torchvision's on PIL images in a DataLoader with {CORES} workers. Each candidate counts as an image.",
        "",
        "| | images/s | times torchvision's |",
        "| --- | --- | --- |",
        f"| torchvision, DataLoader | {spread(theirs[1:], 0)} | 1 |",
    ]
    for name, speeds in ours.items():
        lines.append(f"| {name} | {spread(speeds[1:], 0)} | {spread(ratios(speeds[1:], theirs[1:]), 1)} |")
    return lines


def store(chosen: argparse.Namespace) -> list[str]:
    """Measure the writing and reading of answers against a memory map that is flushed."""
    rows = 50_000 if chosen.steps > 2 else 5000
    answers = torch.randn(rows, CLASSES).half()

    def ask(span: range) -> Columns:
        return {"logits": answers[span.start : span.stop]}

    found: dict[str, list[float]] = {name: [] for name in ("write", "flat write", "read", "flat read")}
    for _ in range(chosen.repeats + 1):
        with tempfile.TemporaryDirectory() as name:
            table = Table(Place(Path(name) / "store.zarr"), "clean", rows, DENSE.layout(CLASSES))
            flat = np.memmap(Path(name) / "flat", np.float16, "w+", shape=(rows, CLASSES))

            def write_flat(flat: np.memmap = flat, table: Table = table) -> None:
                for span in table.chunks:
                    flat[span.start : span.stop] = answers[span.start : span.stop].numpy()
                flat.flush()

            def read_flat(flat: np.memmap = flat, table: Table = table) -> None:
                for span in table.chunks:
                    np.array(flat[span.start : span.stop])

            def read(table: Table = table) -> None:
                for chunk in range(len(table.chunks)):
                    assert table.read(chunk) is not None

            found["write"].append(seconds(lambda table=table: list(fill([(table, ask)]))))
            found["flat write"].append(seconds(write_flat))
            found["read"].append(seconds(read))
            found["flat read"].append(seconds(read_flat))
    ours = {name: [1e6 * value / rows for value in values[1:]] for name, values in found.items()}
    lines = [
        "",
        "## The store against a memory map",
        "",
        f"{rows} rows of {CLASSES} float16 logits, in {len(table.chunks)} chunks; written to the disk, and read from its "
        "cache. The store makes and checks checksums.",
        "",
        "| | store, microseconds a row | memory map | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for name in ("write", "read"):
        flat_name = f"flat {name}"
        lines.append(
            f"| {name} | {spread(ours[name], 2)} | {spread(ours[flat_name], 2)} "
            f"| {spread(ratios(ours[name], ours[flat_name]), 1)} |"
        )
    return lines


def seconds(work: Callable[[], object]) -> float:
    """Time some work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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
    python, here = sys.executable, [sys.executable, __file__, "--steps", str(chosen.steps)]
    here += ["--threads", str(torch.get_num_threads())]
    commands = {
        "`kdcache --help`": [python, "-m", "kdcache", "--help"],
        "`import kdcache`": [python, "-c", "import kdcache"],
        "an empty Python": [python, "-c", ""],
        "`import torch`": [python, "-c", "import torch"],
        "until the first step, online": [*here, "--steps", "1", "--alone", "online"],
        "until the reference's first step": [*here, "--steps", "1", "--alone", "reference"],
    }
    taken: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(chosen.repeats):
        for name, command in commands.items():
            taken[name].append(process(*command, *(["--pairs", chosen.pairs[0]] if "--alone" in command else [])))
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
        f"Largest resident size of a process that takes {chosen.steps} steps, in MiB. The reference's workers come on top, "
        "with their share of what they have in common (PSS).",
        "",
        "| teacher and student | teacher online | teacher-free | reference | its workers | online by reference alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for pair in chosen.pairs:
        with tempfile.TemporaryDirectory() as name:
            alone = [*here, "--pairs", pair, "--store", f"{name}/answers.zarr", "--alone"]
            process(*alone, "fill")
            kinds = {kind: [json.loads(process(*alone, kind).printed) for _ in range(chosen.repeats)] for kind in ALONE}
        kinds.pop("fill")
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


def take_reference(chosen: argparse.Namespace) -> None:
    """Take steps of the reference in this process."""
    teacher, student = chosen.pairs[0].split(":")
    reference = Reference(teacher, student, noise(max(chosen.steps, 4 * CORES)).train, BATCH, CLASSES)
    for _ in range(chosen.steps):
        reference.step(*next(reference.batches))
    tell_memory()


def take_ours(chosen: argparse.Namespace) -> None:
    """Take our steps in this process, or fill the store for that."""
    with tempfile.TemporaryDirectory() as name:
        ours = Ours(chosen.pairs[0], chosen.steps, chosen.store or Path(name) / "answers.zarr")
        if chosen.alone == "fill":
            ours.fill()
        else:
            ours.run(ours.free if chosen.alone == "free" else ours.online)
    tell_memory()


PARTS = {"steps": steps, "views": views, "store": store, "start": start}
ALONE = {"online": take_ours, "free": take_ours, "reference": take_reference, "fill": take_ours}

if __name__ == "__main__":
    main()
