"""Fill, read and analyze a store of the size of ImageNet: time and memory, compared with a memory map.

python benchmarks/scale.py --out docs/results/scale.md
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import make_parser, table, write_page

from kdcache import models
from kdcache.analysis.augmentations import rank_augmentations
from kdcache.analysis.disagreement import measure_disagreement
from kdcache.analysis.hardness import measure_hardness
from kdcache.analysis.inputs import AnalysisInputs
from kdcache.answers.encoding import EncodedAnswers
from kdcache.answers.find import Answers, open_store
from kdcache.answers.store import CLEAN, AnswerStore, ReplayTableName
from kdcache.answers.table import fill_missing
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.datasets import Card, Dataset, Split
from kdcache.run.statistics import EpochStatistics, StatisticsShape
from kdcache.run.statistics_store import StatisticsReader, StatisticsStore

TABLES = (CLEAN, ReplayTableName(0, 0, "standard").path, ReplayTableName(0, 0, "cutmix-1").path)
EPOCHS = 5


def main() -> None:
    """Measure, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to put the stores, which are removed afterwards")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        rows = measure(chosen.samples, chosen.classes, Path(name))
    write_page(
        chosen.out,
        "A store of the size of ImageNet",
        f"{chosen.samples} samples with {chosen.classes} random float16 logits each, "
        f"{2e-9 * chosen.samples * chosen.classes:.2f} GB per table, with checksums, synced to the disk. The analyses "
        f"read {len(TABLES)} tables, or statistics of {EPOCHS} epochs, and compute no logits. Memory is the largest "
        "resident size of the process up to then; it includes pages of the memory map.",
        table(("", "seconds", "memory, MiB"), rows),
    )


def measure(samples: int, classes: int, folder: Path) -> list[tuple[str, str, str]]:
    """Time every step: rows of the table."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, classes, generator=generator).half()
    data = make_dataset(samples, classes)
    teacher = Teacher(models.build("resnet8", num_classes=classes, seed=0), Compute.choose("cpu"))
    store = open_store(folder / "answers.zarr", teacher, data)
    spans = store.table(CLEAN).chunks

    def rows_of(span: range) -> EncodedAnswers:
        return {"logits": noise[torch.arange(span.start, span.stop) % len(noise)]}

    def fill(*names: str) -> None:
        for _ in fill_missing([(store.table(name), rows_of) for name in names]):
            pass

    def write_flat() -> None:
        with (folder / "flat").open("wb") as file:
            for span in spans:
                file.write(rows_of(span)["logits"].numpy().data)
            file.flush()
            os.fsync(file.fileno())

    def read_flat() -> None:
        flat = np.memmap(folder / "flat", np.float16, "r", shape=(samples, classes))
        for span in spans:
            np.array(flat[span.start : span.stop])

    answers = Answers.of_store(teacher, data, store)
    analyzed = AnalysisInputs("random", None, data, "train", answers, writes_store=False, has_own_images=True)
    work: dict[str, Callable[[], object]] = {
        "fill a table": lambda: fill(CLEAN),
        "read a table": lambda: read(store),
        "fill the other tables": lambda: fill(*TABLES[1:]),
        "label disagreement": lambda: measure_disagreement(analyzed, samples=samples),
        "rank standard and cutmix": lambda: rank_augmentations(analyzed, ("standard", "cutmix"), 1, samples=samples),
        "write statistics": lambda: write_statistics(folder / "statistics.zarr", samples),
        "images that stay hard": lambda: measure_hardness(StatisticsReader.open(folder / "statistics.zarr")),
        "write a file": write_flat,
        "read a memory map": read_flat,
    }
    rows = []
    for name, step in work.items():
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        rows.append((name, f"{seconds:.1f}", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f}"))
    return rows


def make_dataset(samples: int, classes: int) -> Dataset:
    """Make a dataset of one gray image: pixels do not matter where all logits are stored."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(samples, -1, -1, -1)
    split = Split(images, torch.arange(samples) % classes)
    split.__dict__["fingerprint"] = "one image"
    card = Card("fashion-mini", classes, 32, 4, (0.5,) * 3, (0.25,) * 3, "a generator", "none")
    return Dataset(card, tuple(map(str, range(classes))), split, split)


def read(store: AnswerStore) -> None:
    """Read a table chunk by chunk."""
    one = store.table(CLEAN)
    for chunk in range(len(one.chunks)):
        assert one.read(chunk) is not None


def write_statistics(path: Path, samples: int) -> None:
    """Write random statistics of some epochs."""
    shape = StatisticsShape(samples, slots=2, steps=100, losses=("kd",))
    store = StatisticsStore(path, EPOCHS, shape)
    for epoch in range(EPOCHS):
        statistics = EpochStatistics.empty(shape, torch.device("cpu"))
        statistics.d_x.uniform_()
        store.write(epoch, statistics)


if __name__ == "__main__":
    main()
