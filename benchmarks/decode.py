"""How fast pictures are decoded: bare, from a folder, and from a packed file; and that both train to the same weights.

A set in ImageNet's shape is made of noise and gradients, JPEG of different sizes around 500 x 375 pixels::

    OMP_NUM_THREADS=1 python benchmarks/decode.py > docs/results/decode.md
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import footer, spread
from kdcache.stages import train_teacher
from PIL import Image
from safetensors.torch import load_file

from kdcache import datasets
from kdcache.config import TeacherConfig
from kdcache.datasets.pack import pack
from kdcache.datasets.workers import default_workers
from kdcache.views import ViewMaker, ViewPlan

CLASSES = 20


def make(root: Path, train: int, val: int) -> None:
    """Write pictures of `CLASSES` classes, each with a colour and a pattern of its own, of any size and shape."""
    draw = np.random.Generator(np.random.Philox(8))
    for part, count in (("train", train), ("val", val)):
        for label in range(CLASSES):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count // CLASSES):
                width, height = (int(side) for side in draw.integers((350, 260), (651, 491)))
                y, x = np.mgrid[:height, :width] / 40
                waves = np.sin(x * (1 + label % 5) + draw.random() * 6) + np.cos(y * (1 + label // 5))
                colour = np.array([label * 12, 255 - label * 9, (label * 37) % 256])
                pixels = colour * 0.6 + 40 * waves[:, :, None] + draw.normal(0, 25, (height, width, 1))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.JPEG", quality=90)


def keep_half(root: Path) -> None:
    """Make another set of every second training picture."""
    for file in (root / "imagenet").rglob("*.JPEG"):
        if file.parts[-3] == "val" or int(file.stem) % 2:
            link = root / "half" / file.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)


def bare(files: list[Path]) -> float:
    """Decode files one after the other, with Pillow alone: pictures a second."""
    started = time.perf_counter()
    for file in files:
        with Image.open(io.BytesIO(file.read_bytes())) as picture:
            picture.convert("RGB")
    return len(files) / (time.perf_counter() - started)


def epoch(name: str, root: Path, workers: int, number: int) -> float:
    """Walk through the x of an epoch, in batches of 256, without a network: pictures a second."""
    split = datasets.load(name, root=root, workers=workers).train
    views = ViewMaker(split, ViewPlan(len(split), 224, None, crop_flip=True, seed=0), 256, torch.device("cpu"))
    started = time.perf_counter()
    for _ in views.epoch(number):
        pass
    return len(split) / (time.perf_counter() - started)


def resident(name: str, root: Path) -> float:
    """Walk through an epoch in a process of its own, which decodes: the most memory that it held, in MB (Linux)."""
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); from pathlib import Path; import decode\n"
        f"decode.epoch({name!r}, Path({str(root)!r}), 0, 0)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def table(samples: int) -> tuple[float, float, float]:
    """Draw a table with CutMix-pick's two candidates in a process of its own: seconds, its MB, and MB at the peak."""
    code = (
        "import time, tracemalloc; from kdcache.views import ViewPlan\n"
        f"plan = ViewPlan({samples}, 224, None, crop_flip=True, seed=0, mixes=('cutmix', 'cutmix'))\n"
        "start = time.perf_counter(); plan.epoch(0); seconds = time.perf_counter() - start\n"
        "tracemalloc.start(); table = plan.epoch(1); print(seconds, *tracemalloc.get_traced_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, held, peak = map(float, done.stdout.split())
    return seconds, held / 1e6, peak / 1e6


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--val", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make(root / "imagenet", chosen.train, chosen.val)
        keep_half(root)
        started = time.perf_counter()
        pack(datasets.read("imagenet", root=root), root / "packed.h5")
        packing = time.perf_counter() - started
        pack(datasets.read("imagenet", root=root / "half"), root / "half.h5")
        packed, half = f"hdf5:{root}/packed.h5", f"hdf5:{root}/half.h5"
        files = sorted((root / "imagenet" / "train").rglob("*.JPEG"))
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        print(f"""# Decoding pictures

{len(files)} JPEG files in {CLASSES} classes, {megabytes:.0f} MB, 350 to 650 by 260 to 490 pixels,
decoded to x of 224x224 (RandomResizedCrop and flip), batches of 256. Pictures a second: median (least, most) of
{chosen.repeats}, taken in turn. Without workers, two threads or more decode in this process.

| what | workers | pictures a second |
| --- | --- | --- |""")
        rows: dict[tuple[str, int], Callable[[int], float]] = {
            ("bare decode, Pillow, nothing cut or resized", 0): lambda number: bare(files)
        }
        for workers in (0, default_workers()):
            for where, source in (("folder", "imagenet"), ("packed", packed)):
                rows[f"x of an epoch, {where}", workers] = partial(epoch, source, root, workers)
        found: dict[tuple[str, int], list[float]] = {key: [] for key in rows}
        for number in range(chosen.repeats):
            for key, measure in rows.items():
                found[key].append(measure(number))
        for (what, workers), values in found.items():
            print(f"| {what} | {workers or 'none'} | {spread(values, 0)} |")
        print(f"\nPacking took {packing:.1f} s, hashing included.\n")
        print("Most memory of a process that walks through an epoch without workers, in MB:\n")
        print("| pictures | folder | packed |\n| --- | --- | --- |")
        print(f"| {len(files) // 2} | {resident('imagenet', root / 'half'):.0f} | {resident(half, root):.0f} |")
        print(f"| {len(files)} | {resident('imagenet', root):.0f} | {resident(packed, root):.0f} |")
        seconds, held, peak = table(1281167)
        print("\nAn epoch's table for 1,281,167 samples with two candidates each:")
        print(f"{seconds:.2f} s, {held:.0f} MB, {peak:.0f} MB at the peak (NumPy's allocations).\n")
        networks = []
        for place, source in enumerate(("imagenet", packed)):
            given = {"dataset": source, "data_root": root, "image_size": 64, "out": root / f"run{place}"}
            config = TeacherConfig.load("imagenet", model="resnet8", epochs=1, batch_size=64, device="cpu", **given)
            networks.append(load_file(train_teacher(config).path / "model.safetensors"))
        same = all(torch.equal(tensor, networks[1][key]) for key, tensor in networks[0].items())
        print(f"resnet8 trained for an epoch at 64x64 pixels, from the folder and packed: same weights: {same}.")
    print(footer())
    print(f"Load of the machine at the end: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
