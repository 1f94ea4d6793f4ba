"""Measure how fast a step is, compared with a straightforward one (`reference_step.py`) and with the bare networks.

    python benchmarks/speed.py --out docs/results/speed.md

What is compared is measured in turn in one run. ``--quick`` only shows that everything works.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from common import make_parser, ratios, spread, table, write_page
from our_step import BATCH, CLASSES, OurSteps, noise_dataset
from reference_step import CORES, ReferenceProcess, load_batches, seconds_per_batch
from torch import Tensor

from kdcache import models
from kdcache.compute import Compute
from kdcache.machine import keep_freed_memory
from kdcache.views import ViewPlan, Views

OURS = Compute.choose("cpu")
NETWORK_PARTS = ("scoring forward", "training forward", "backward")


def main() -> None:
    """Measure, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--pairs", nargs="+", default=["resnet56:resnet20", "wrn_40_2:wrn_16_2"], help="TEACHER:STUDENT"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="steps of an epoch, which is a measurement")
    parser.add_argument(
        "--processor-time", action="store_true", help="instead of the clock's, where other programs run; use one thread"
    )
    parser.add_argument("--quick", action="store_true", help="one repeat of two steps")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.repeats, chosen.steps = 1, 2
    if chosen.processor_time:
        time.perf_counter = time.process_time
    keep_freed_memory()  # as the command line does
    page = [
        f"Batches of {BATCH} images of 32x32 pixels, {CLASSES} classes. Medians (min, "
        f"max) of {chosen.repeats} measurements of {chosen.steps} steps each, in turn, or of {slow_steps(chosen)} of "
        "the reference's steps, which run in a process of their own; ratios are of neighbors. Times are "
        f"{'processor time, without that of DataLoaders' if chosen.processor_time else 'by the clock'}."
    ]
    for part in chosen.parts:
        print(f"measuring {part}", file=sys.stderr)
        page += PARTS[part](chosen)
    write_page(chosen.out, "How fast a step is", *page)


def slow_steps(chosen: argparse.Namespace) -> int:
    """Number of steps of the reference, which has no cost per epoch to spread over many steps."""
    return max(2, int(chosen.steps) // 4)


def measure_steps(chosen: argparse.Namespace) -> list[str]:
    """Compare steps with the reference, with the student's bare networks, and with each other's parts."""
    compared, ours, limits = [], [], []
    parts_rows: dict[str, list[str]] = {}
    for pair in chosen.pairs:
        of, parts = measure_pair(pair, chosen)
        ms = {name: spread([1e3 * value for value in values], 0) for name, values in of.items()}
        name = pair.replace(":", " to ")
        for precision in reference_precisions():
            step = of[f"reference {precision}"]
            sums = [sum(both) for both in zip(of[f"networks {precision}"], of["loader"], strict=True)]
            times = [spread(ratios(step, of[kind]), 2) for kind in ("online", "cached")]
            compared.append((name, precision, ms[f"reference {precision}"], *times))
            limits.append((name, precision, ms[f"networks {precision}"], ms["loader"], spread(ratios(step, sums), 2)))
        ours.append((name, ms["online"], ms["cached"], ms["bare"], spread(ratios(of["cached"], of["bare"]), 3)))
        for part in parts[0]:
            parts_rows.setdefault(part, []).append(spread([1e3 * one[part] / chosen.steps for one in parts], 2))
        outside = [100 * (1 - sum(one[part] for part in NETWORK_PARTS) / sum(one.values())) for one in parts]
        parts_rows.setdefault("outside forward and backward, %", []).append(spread(outside))
    names = [pair.replace(":", " to ") for pair in chosen.pairs]
    return [
        "## A step of CutMix-pick",
        f"How many times faster than the reference a step is. Ours computes in {OURS.precision}.",
        table(("networks", "reference computes in", "reference, ms", "online", "cached"), compared),
        "Online, the teacher runs in the step; cached, all its logits come from the store. Bare is the work of the "
        "student's networks alone: a forward of 2B candidates without gradient, forward and backward of 2B images, and "
        "the optimizer. In milliseconds:",
        table(("networks", "online", "cached", "bare", "cached by bare"), ours),
        "The reference is as fast as its parts, measured alone: four forwards of the teacher, four of the student, the "
        f"backward, and a DataLoader with {CORES} workers.",
        table(("networks", "precision", "forwards and backward, ms", "DataLoader, ms", "step by their sum"), limits),
        "Parts of a step with cached logits, in milliseconds:",
        table(("", *names), [(part, *values) for part, values in parts_rows.items()]),
    ]


def reference_precisions() -> list[str]:
    """Name the precisions of the reference: float32, as the authors' code has it, and ours."""
    return list(dict.fromkeys(["float32", OURS.precision]))


def measure_pair(pair: str, chosen: argparse.Namespace) -> tuple[dict[str, list[float]], list[dict[str, float]]]:
    """Seconds per step of every kind of step, measured in turn, and the parts of a step with cached logits."""
    split, slow = noise_dataset(max(chosen.steps, 4 * CORES)).train, slow_steps(chosen)
    with ExitStack() as stack:
        ours = OurSteps(pair, chosen.steps, Path(stack.enter_context(tempfile.TemporaryDirectory())), OURS)
        measures: dict[str, Callable[[], float]] = {
            "online": lambda: ours.run("online"),
            "cached": lambda: ours.run("cached"),
            "bare": ours.run_networks,
        }
        for precision in reference_precisions():
            of = *pair.split(":"), split, BATCH, CLASSES, Compute(OURS.device, precision)
            reference = stack.enter_context(ReferenceProcess(torch.get_num_threads(), *of))
            measures[f"reference {precision}"] = partial(reference.measure, "run", slow)
            measures[f"networks {precision}"] = partial(reference.measure, "run_networks", slow)
            measures["loader"] = partial(reference.measure, "load", 2 * chosen.steps)
        found: dict[str, list[float]] = {name: [] for name in measures}
        parts = []
        for number in range(chosen.repeats + 1):
            print(f"  {pair} {number}", file=sys.stderr)
            for name, measure in measures.items():
                found[name].append(measure())
            parts.append(ours.parts("cached"))
    return {name: values[1:] for name, values in found.items()}, parts[1:]  # the first ones warm up


def measure_views(chosen: argparse.Namespace) -> list[str]:
    """Compare the making of views in one thread with torchvision's transforms in a worker for each core."""
    split, cpu = noise_dataset(chosen.steps * 10).train, torch.device("cpu")
    plans = [ViewPlan(len(split), 32, 4, crop_flip=True, seed=0, mixes=mixes) for mixes in ((), ("cutmix", "cutmix"))]
    x, candidates = (Views(split, plan, BATCH, cpu) for plan in plans)
    normalize = models.build("resnet8", num_classes=CLASSES, seed=0).normalize
    makers: dict[str, tuple[Views, Callable[[Tensor], Tensor]]] = {
        "x": (x, lambda views: views),
        "x and two candidates": (candidates, lambda views: views),
        "x, normalized": (x, normalize),
        "x and two candidates, normalized": (candidates, normalize),
    }
    batches, threads = load_batches(split, BATCH), torch.get_num_threads()
    torchvision: list[float] = []
    ours: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(chosen.repeats + 1):
        torchvision.append(BATCH / seconds_per_batch(batches, chosen.steps * 10) / CORES)
        torch.set_num_threads(1)
        for name, (maker, finish) in makers.items():
            started = time.perf_counter()
            count = sum(len(finish(batch.views)) for batch in maker.epoch(number))
            ours[name].append(count / (time.perf_counter() - started))
        torch.set_num_threads(threads)
    rows = [(name, spread(found[1:], 0), spread(ratios(found[1:], torchvision[1:]))) for name, found in ours.items()]
    return [
        "## Making views",
        "Images per second and core; each candidate counts as an image. Ours in one thread, including the epoch's view "
        "plan: as bytes, which the network normalizes, and normalized. Torchvision's on PIL images that are cropped, "
        f"flipped and normalized in a DataLoader with {CORES} workers.",
        table(
            ("", "images/s", "times torchvision's"), [("torchvision, DataLoader", spread(torchvision[1:], 0), 1), *rows]
        ),
    ]


def measure_startup(chosen: argparse.Namespace) -> list[str]:
    """Measure commands that only print something, and imports."""
    python = [sys.executable, "-c"]
    kdcache = [sys.executable, "-m", "kdcache"]
    commands = {
        "an empty Python": [*python, ""],
        "`import kdcache`": [*python, "import kdcache"],
        "`import torch`": [*python, "import torch"],
        **{f"`kdcache {word}`": [*kdcache, word] for word in ("--help", "models", "doctor")},
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(chosen.repeats):
        for name, command in commands.items():
            before, started = os.times(), time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds, after = time.perf_counter() - started, os.times()
            processor = sum(after[2:4]) - sum(before[2:4])
            times[name].append((processor, seconds))
    rows = [(name, *(spread(found, 2) for found in zip(*pairs, strict=True))) for name, pairs in times.items()]
    return ["## Starting", table(("whole processes", "processor, s", "clock, s"), rows)]


PARTS = {"steps": measure_steps, "views": measure_views, "startup": measure_startup}

if __name__ == "__main__":
    main()
