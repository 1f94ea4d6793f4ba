"""A student's bare step with layers as torch has them, and as `kdcache.models.build` leaves them.

python benchmarks/layers.py --out docs/results/layers.md

A forward that scores candidates, forward and backward of as many images, and the optimiser's step, in turn in one
process.
"""

import argparse
import time
from pathlib import Path

import torch
from common import put, ratios, spread
from torch import nn
from watched_step import CLASSES, bare_step

from kdcache import loop, models
from kdcache.compute import Compute
from kdcache.machine import keep_freed_memory

STUDENTS = (
    *((model, 32, 128) for model in ("resnet20", "wrn_16_2", "MobileNetV2", "ShuffleV1", "ShuffleV2")),
    *(
        (f"torchvision:{model}", 224, 16)
        for model in ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")
    ),
)
"""Networks, the side of their images in pixels, and how many of them a forward gets."""

WAYS: dict[str, tuple[type[nn.Module], ...]] = {
    "torch's": (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.ReLU),
    "depthwise": (nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.ReLU),
    "and batch norms": (nn.AdaptiveAvgPool2d, nn.ReLU),
    "and means": (nn.ReLU,),
    "and activations": (),
}
"""Which modules go back to torch's forward."""

TORCHS, *OURS = WAYS

SECONDS = 2.0


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, help="Page to write.")
    chosen = parser.parse_args()
    keep_freed_memory()
    compute = Compute.choose("cpu", chosen.precision)
    page = [
        "# Layers that torch trains slowly on a processor",
        "",
        "A student's bare step: a forward without gradient, forward and backward of as many images, and the "
        f"optimiser's step, {compute.precision}; with all layers as torch has them, with our gradients of depthwise "
        "convolutions, with our batch norms too, with our means of whole maps, and with our ReLU. "
        f"Medians (least, most) of {chosen.repeats} measurements of about {SECONDS:g} seconds each, in turn in one "
        "process; ratios are of neighbours.",
        "",
        "| student | torch's, ms | " + " | ".join(f"{way}, ms | times faster" for way in OURS) + " |",
        "| --- | --- |" + " --- | --- |" * len(OURS),
    ]
    for model, side, images in STUDENTS:
        found = measure(model, side, images, compute, chosen.repeats)
        plain = found[TORCHS]
        cells = [f"{spread(found[way], 0)} | {spread(ratios(plain, found[way]), 2)}" for way in OURS]
        page.append(f"| {model}, {images} images of {side} pixels | {spread(plain, 0)} | {' | '.join(cells)} |")
    put(page, chosen.out)


def measure(model: str, side: int, images: int, compute: Compute, repeats: int) -> dict[str, list[float]]:
    """Take steps in each way: milliseconds of a step, for each measurement."""
    views = torch.randint(0, 256, (images, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    networks = {}
    for way, back in WAYS.items():
        networks[way] = models.build(model, num_classes=CLASSES, image_size=side, seed=0).train()
        for module in networks[way].modules():
            if isinstance(module, back):
                vars(module).pop("forward", None)
    for turn in range(repeats + 1):
        for way, network in networks.items():
            optimiser, unchanged = loop.sgd(network, 0.05, 0.9, 5e-4), loop.UnchangedStatistics(network)
            steps, started = 0, time.perf_counter()
            while (taken := time.perf_counter() - started) < SECONDS:
                bare_step(network, optimiser, unchanged, compute, views, views)
                steps += 1
            if turn:  # the first one warms up
                found[way].append(1e3 * taken / steps)
    return found


if __name__ == "__main__":
    main()
