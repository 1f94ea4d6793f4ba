"""Measure how fast pictures are decoded: by Pillow alone, from a folder, and from a packed file.

OMP_NUM_THREADS=1 python benchmarks/decode.py --out docs/results/decode.md
"""

import io
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import make_parser, spread, table, write_page
from PIL import Image

from kdcache import datasets
from kdcache.datasets.pack import pack
from kdcache.datasets.workers import default_workers
from kdcache.views import ViewPlan, Views

CLASSES = 20


def main() -> None:
    """Measure, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--train", type=int, default=3000, help="training pictures")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        write_pictures(root / "imagenet", {"train": chosen.train, "val": CLASSES})
        pack(datasets.read("imagenet", root=root), root / "packed.h5")
        files = sorted((root / "imagenet" / "train").rglob("*.JPEG"))
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        measures: dict[tuple[str, int], Callable[[int], float]] = {
            ("Pillow alone, no crop or resize", 0): lambda number: decode(files)
        }
        for workers in (0, default_workers()):
            for where, source in (("folder", "imagenet"), ("packed file", f"hdf5:{root}/packed.h5")):
                measures[f"x of an epoch, {where}", workers] = partial(epoch, source, root, workers)
        speeds: dict[tuple[str, int], list[float]] = {key: [] for key in measures}
        for number in range(chosen.repeats):
            for key, measure in measures.items():
                speeds[key].append(measure(number))
    write_page(
        chosen.out,
        "Decoding pictures",
        f"{len(files)} JPEG files in {CLASSES} classes, {megabytes:.0f} MB, 350 to 650 by 260 to 490 pixels, decoded "
        "to x of 224x224 (RandomResizedCrop and flip), batches of 256. Pictures per second: medians (min, max) of "
        f"{chosen.repeats}, measured in turn. Without workers, threads of the process decode.",
        table(
            ("source", "workers", "pictures/s"),
            [(what, workers or "none", spread(found, 0)) for (what, workers), found in speeds.items()],
        ),
    )


def write_pictures(root: Path, counts: dict[str, int]) -> None:
    """Write JPEG pictures of gradients and noise in ImageNet's layout."""
    generator = np.random.Generator(np.random.Philox(8))
    for split, count in counts.items():
        for number in range(count):
            label = number % CLASSES
            width, height = (int(side) for side in generator.integers((350, 260), (651, 491)))
            y, x = np.mgrid[:height, :width] / 40
            waves = np.sin(x * (1 + label % 5) + generator.random() * 6) + np.cos(y * (1 + label // 5))
            color = np.array([label * 12, 255 - label * 9, (label * 37) % 256])
            pixels = color * 0.6 + 40 * waves[:, :, None] + generator.normal(0, 25, (height, width, 1))
            path = root / split / f"n{label:08d}" / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def decode(files: list[Path]) -> float:
    """Decode files one after the other with Pillow: pictures per second."""
    started = time.perf_counter()
    for file in files:
        with Image.open(io.BytesIO(file.read_bytes())) as picture:
            picture.convert("RGB")
    return len(files) / (time.perf_counter() - started)


def epoch(name: str, root: Path, workers: int, number: int) -> float:
    """Make the x of an epoch in batches of 256, without a network: pictures per second."""
    split = datasets.load(name, root=root, workers=workers).train
    views = Views(split, ViewPlan(len(split), 224, None, crop_flip=True, seed=0), 256, torch.device("cpu"))
    started = time.perf_counter()
    for _ in views.epoch(number):
        pass
    return len(split) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
