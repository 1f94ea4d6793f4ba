"""Analyse answers of the size of ImageNet out of a store: memory and time, against a quarter of the rows.

python benchmarks/analyses_scale.py > docs/results/analyses_scale.md
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import footer

from kdcache import models
from kdcache.analysis.analyzed_teacher import AnalyzedTeacher
from kdcache.analysis.augmentations import rank_augmentations
from kdcache.analysis.disagreement import measure_disagreement
from kdcache.analysis.hardness import measure_hardness
from kdcache.answers.codec import Columns
from kdcache.answers.open import open_store
from kdcache.answers.store import CLEAN, ReplayTableName
from kdcache.answers.table import fill_missing
from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.datasets import Card, Dataset, Split
from kdcache.run.statistics import EpochStatistics, StatisticsReader, StatisticsShape, StatisticsStore


def peak() -> float:
    """Most memory that the process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(rows: int, classes: int, folder: str) -> None:
    """Fill a store with random answers, analyse them all, and print a line of the table for each analysis."""
    generator = torch.Generator().manual_seed(0)
    # One grey image stands for all; its pixels do not matter, since every answer is stored.
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(rows, -1, -1, -1)
    split = Split(images, torch.randint(classes, (rows,), generator=generator))
    split.__dict__["fingerprint"] = "one image"
    card = Card("fashion-mini", classes, 32, 4, (0.5,) * 3, (0.25,) * 3, "a generator", "none")
    data = Dataset(card, tuple(map(str, range(classes))), split, split)
    teacher = Teacher(models.build("resnet8", num_classes=classes, seed=0), Compute.choose("cpu"))
    noise = torch.randn(20_000, classes, generator=generator).half()

    def compute_rows(span: range) -> Columns:
        return {"logits": noise[torch.arange(span.start, span.stop) % len(noise)]}

    with tempfile.TemporaryDirectory(dir=folder) as name:
        store = open_store(Path(name) / "answers.zarr", teacher, data)
        tables = (CLEAN, ReplayTableName(0, 0, "standard").path, ReplayTableName(0, 0, "cutmix-1").path)
        for _ in fill_missing([(store.table(table), compute_rows) for table in tables]):
            pass
        shape = StatisticsShape(rows, slots=2, steps=100, losses=("kd",))
        statistics = StatisticsStore(Path(name) / "s.zarr", 5, shape)
        for epoch in range(5):
            figures = EpochStatistics.empty(shape, torch.device("cpu"))
            figures.d_x.uniform_(generator=generator)
            statistics.write(epoch, figures)
        analyzed = AnalyzedTeacher("made", None, data, "train", teacher, store, writes_store=False)
        for what, analyse in (
            ("images that stay hard, 5 epochs", lambda: measure_hardness(StatisticsReader.open(Path(name) / "s.zarr"))),
            ("label disagreement", lambda: measure_disagreement(analyzed, samples=rows)),
            (
                "standard and cutmix for a teacher",
                lambda: rank_augmentations(analyzed, ("standard", "cutmix"), 1, samples=rows),
            ),
        ):
            before, started = peak(), time.perf_counter()
            analyse()
            taken = time.perf_counter() - started
            print(f"| {what} | {rows} | {taken:.0f} | {before:.0f} | {peak():.0f} |", flush=True)


def main() -> None:
    """Measure both sizes in processes of their own, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="Where to put stores, removed afterwards.")
    parser.add_argument("--one", action="store_true", help="Measure one size alone, without the page around it.")
    chosen = parser.parse_args()
    if chosen.one:
        measure(chosen.rows, chosen.classes, chosen.folder)
        return
    print(
        f"""# Analyses of the size of ImageNet

Every row of a store of random float16 answers with {chosen.classes} classes, three tables of them, and of statistics of
five epochs is read; nothing is asked. One image stands for all. A table of {chosen.rows} rows takes
{2e-9 * chosen.rows * chosen.classes:.2f} GB.

| analysis | rows | seconds | peak memory before it, MiB | after it |
| --- | ---: | ---: | ---: | ---: |""",
        flush=True,
    )
    for rows in (chosen.rows // 4, chosen.rows):
        command = [sys.executable, __file__, "--one", f"--rows={rows}", f"--classes={chosen.classes}"]
        subprocess.run([*command, f"--folder={chosen.folder}"], check=True)
    print(footer())


if __name__ == "__main__":
    main()
