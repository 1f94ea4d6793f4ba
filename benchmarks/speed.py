"""How fast a step is: against the authors' way of taking one, and against the bare work of its networks.

python benchmarks/speed.py --out docs/results/speed.md

What is compared is measured in one run and in turn; figures are medians with the least and the most. The step that ours
is measured against is in `reference_step.py`. `--quick` shows that all of it works, and no more.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import put, ratios, spread
from processes import start
from reference_step import CORES, Apart, loader, seconds_each
from torch import Tensor
from watched_step import BATCH, CLASSES, NETWORKS, Ours, Watch, noise

from kdcache import models
from kdcache.answers.codec import DEFAULT_CODEC, Columns
from kdcache.answers.location import StoreLocation
from kdcache.answers.table import Table, fill_missing
from kdcache.compute import Compute
from kdcache.machine import keep_freed_memory
from kdcache.views import Plan, ViewMaker

PAIRS = ("resnet56:resnet20", "wrn_40_2:wrn_16_2")


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="TEACHER:STUDENT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="Steps of a measurement, which is an epoch.")
    parser.add_argument("--threads", type=int, help="By default torch's, which is one for each core.")
    parser.add_argument("--quick", action="store_true", help="A repeat of two steps.")
    parser.add_argument("--out", type=Path, help="Page to write.")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.repeats, chosen.steps = 1, 2
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    keep_freed_memory()  # as the command line does
    page = [
        "# How fast a step is",
        "",
        f"Batches of {BATCH} images of 32x32 pixels, {CLASSES} classes, {Compute.choose().precision}. Medians (least, "
        f"most) of {chosen.repeats} measurements of {chosen.steps} steps each, in turn, or of {slow_steps(chosen)} of "
        "the reference's, which has a process of its own; ratios are of neighbours.",
    ]
    for part in chosen.parts:
        print(f"measuring {part}", file=sys.stderr)
        page += PARTS[part](chosen)
        if chosen.out:  # what was measured is there, whatever becomes of the rest
            put(page, chosen.out)
    if not chosen.out:
        put(page, None)


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
        "Its limit is the bare work of the student: forward and backward of 2B images, a forward of 2B without "
        "gradient to score candidates, and the optimiser's step, with the same images and precision.",
        "",
        "| student | bare, ms | by bare | outside forward and backward | and optimiser | with the teacher online |",
        "| --- | --- | --- | --- | --- | --- |",
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
            f"| {spread([outside(one, (*NETWORKS, 'optimiser')) for one in items], 1)} % "
            f"| {spread([outside(one, (*NETWORKS, 'store')) for one in online], 1)} % |"
        )
        for name in items[0]:
            table.setdefault(name, []).append(spread([1e3 * one[name] / chosen.steps for one in items], 2))
    students = " | ".join(pair.split(":")[1] for pair in chosen.pairs)
    itemised = [
        "",
        "Its parts, in milliseconds of a step (backward includes that of the losses; the outside of an online step is "
        "all but forwards, backward and what the cached teacher does):",
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
    split = noise(max(chosen.steps, 4 * CORES)).train
    apart = Apart(torch.get_num_threads(), teacher, student, split, BATCH, CLASSES)
    with apart as reference, tempfile.TemporaryDirectory() as name:
        ours = Ours(pair, chosen.steps, Path(name) / "answers.zarr")
        ours.fill()
        rounds, free, online = [], [], []
        for number in range(chosen.repeats + 1):
            print(f"  {pair} {number}", file=sys.stderr)
            rounds.append(
                Round(
                    reference.seconds("run", slow_steps(chosen)),
                    ours.run(ours.online),
                    ours.run(ours.free),
                    ours.bare(),
                    reference.seconds("bare", slow_steps(chosen)),
                    reference.seconds("load", 2 * chosen.steps),
                )
            )
            for found, cached_teacher in ((free, ours.free), (online, ours.online)):
                watch = Watch()
                ours.run(cached_teacher, watch)
                found.append(watch.seconds)
    return rounds[1:], free[1:], online[1:]  # the first ones warm up


def slow_steps(chosen: argparse.Namespace) -> int:
    """Count the steps of the reference, which has no costs of an epoch's beginning that more steps would share."""
    return max(2, int(chosen.steps) // 4)


def outside(seconds: dict[str, float], networks: tuple[str, ...]) -> float:
    """Percent of the time that is spent elsewhere than in some places."""
    return 100 * (1 - sum(seconds[name] for name in networks) / sum(seconds.values()))


def views(chosen: argparse.Namespace) -> list[str]:
    """Measure the making of views: ours in one thread, and torchvision's in a worker for each core."""
    split, cpu = noise(chosen.steps * 10).train, torch.device("cpu")
    plans = [Plan(len(split), 32, 4, crop_flip=True, seed=0, mixes=mixes) for mixes in ((), ("cutmix", "cutmix"))]
    x, picked = (ViewMaker(split, plan, BATCH, cpu) for plan in plans)
    normalize = models.build("resnet8", num_classes=CLASSES, seed=0).normalize
    makers: dict[str, tuple[ViewMaker, Callable[[Tensor], Tensor]]] = {
        "x": (x, lambda views: views),
        "x and two candidates": (picked, lambda views: views),
        "x, normalised": (x, normalize),
        "x and two candidates, normalised": (picked, normalize),
    }
    loading, threads = loader(split, BATCH), torch.get_num_threads()
    theirs: list[float] = []
    ours: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(chosen.repeats + 1):
        theirs.append(BATCH / seconds_each(loading, chosen.steps * 10) / CORES)
        torch.set_num_threads(1)
        for name, (maker, finish) in makers.items():
            started, made = time.perf_counter(), 0
            for batch in maker.epoch(number):
                made += len(finish(batch.views))
            ours[name].append(made / (time.perf_counter() - started))
        torch.set_num_threads(threads)
    lines = [
        "",
        "## Making views",
        "",
        "Images a second and core. Ours in one thread, with the drawing of the epoch's table: as bytes, which the "
        "network normalises, and with that; each candidate counts as an image. Torchvision's on PIL images that are "
        f"cropped, flipped and normalised in a DataLoader with {CORES} workers.",
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

    def compute_rows(span: range) -> Columns:
        return {"logits": answers[span.start : span.stop]}

    found: dict[str, list[float]] = {name: [] for name in ("write", "flat write", "read", "flat read")}
    for _ in range(chosen.repeats + 1):
        with tempfile.TemporaryDirectory() as name:
            table = Table(StoreLocation(Path(name) / "store.zarr"), "clean", rows, DEFAULT_CODEC.layout(CLASSES))
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

            found["write"].append(seconds(lambda table=table: list(fill_missing([(table, compute_rows)]))))
            found["flat write"].append(seconds(write_flat))
            found["read"].append(seconds(read))
            found["flat read"].append(seconds(read_flat))
    ours = {name: [1e6 * value / rows for value in values[1:]] for name, values in found.items()}
    lines = [
        "",
        "## The store against a memory map",
        "",
        f"{rows} rows of {CLASSES} float16 logits, in {len(table.chunks)} chunks; written to the disk, and read from "
        "its cache. The store makes and checks checksums.",
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


PARTS = {"steps": steps, "views": views, "store": store, "start": start}

if __name__ == "__main__":
    main()
