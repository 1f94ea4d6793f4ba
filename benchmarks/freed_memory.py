"""What a step takes where freed memory is kept, against where the C library gives it back, see `kdcache.machine`.

python benchmarks/freed_memory.py --out docs/results/freed_memory.md

A student is trained alone in a process of its own, on images that are there: a forward that scores candidates, and
forward and backward of as many images.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import put, ratios, spread
from watched_step import CLASSES, bare_step

from kdcache import models, training
from kdcache.compute import Compute
from kdcache.machine import keep_freed_memory

STUDENTS = (("resnet20", 32, 128), ("wrn_16_2", 32, 128), ("torchvision:resnet18", 224, 32))
"""Networks, the side of their images in pixels, and how many of them a forward gets."""

SECONDS = 4.0


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Page to write.")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(measure(**json.loads(chosen.inside))))
        return
    precision = Compute.choose("cpu").precision
    page = [
        "# What it takes to give memory back",
        "",
        "Steps of a student in a process of its own: a forward without gradient, forward and backward, of as many "
        f"images, {precision}. Medians (least, most) of {chosen.repeats} processes each, in turn, of {SECONDS:g} "
        "seconds of steps; ratios are of neighbours. By default the C library gives large blocks back to the system, "
        "and each page of them is a fault when it is used again; `kdcache` lets it keep them.",
        "",
        "| student | given back, ms | kept, ms | times faster | faults a step, given back | kept | peak, MiB | kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, side, images in STUDENTS:
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(chosen.repeats):
            for keep in found:
                inside = json.dumps({"model": model, "side": side, "images": images, "keep": keep})
                command = [sys.executable, __file__, "--inside", inside]
                found[keep].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        back, kept = ({name: [one[name] for one in found[keep]] for name in found[keep][0]} for keep in found)
        page.append(
            f"| {model}, {images} images of {side} pixels | {spread(back['ms'], 0)} | {spread(kept['ms'], 0)} "
            f"| {spread(ratios(back['ms'], kept['ms']), 2)} | {spread(back['problems'], 0)} "
            f"| {spread(kept['problems'], 0)} | {spread(back['peak'], 0)} | {spread(kept['peak'], 0)} |"
        )
    put(page, chosen.out)


def measure(model: str, side: int, images: int, keep: bool) -> dict[str, float]:
    """Take steps in this process for some seconds, after as many that warm up."""
    if keep:
        keep_freed_memory()
    compute = Compute.choose("cpu")
    network = models.build(model, num_classes=CLASSES, image_size=side, seed=0).train()
    optimiser, unchanged = training.sgd(network, 0.05, 0.9, 5e-4), training.FrozenRunningStats(network)
    views = torch.randint(0, 256, (images, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()

    for _ in range(2):
        steps, before, started = 0, resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        while (taken := time.perf_counter() - started) < SECONDS:
            bare_step(network, optimiser, unchanged, compute, views, views)
            steps += 1
    after = resource.getrusage(resource.RUSAGE_SELF)
    problems = (after.ru_minflt - before.ru_minflt) / steps
    return {"ms": 1e3 * taken / steps, "problems": problems, "peak": after.ru_maxrss / 2**10}


if __name__ == "__main__":
    main()
