"""What the benchmarks that kill have in common: a small dataset, the signs of a write that was cut off, the page."""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from common import footer
from PIL import Image

__all__ = ["SAMPLES", "arguments", "files", "pictures", "print_table", "unfinished"]

SAMPLES = 90


def arguments(description: str) -> tuple[int, random.Random]:
    """Read from the command line how often to kill, and what the moments are drawn from."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    return chosen.kills, random.Random(chosen.seed)


def pictures(root: Path) -> Path:
    """Make a small folder dataset."""
    noise = np.random.Generator(np.random.Philox(5))
    for split, count in (("train", SAMPLES // 3), ("val", 5)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def files(store: Path) -> dict[str, bytes]:
    """Read every chunk and commit record of a store."""
    found = [path for path in store.rglob("*") if "/c/" in str(path) and path.suffix != ".partial" and path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


def unfinished(root: Path) -> set[Path]:
    """Find what a writer has begun and not finished, in run folders and in stores.

    That are files without their names, chunks of answers without a commit record, tables of answers without any chunk,
    and statistics of an epoch that is not said to be written.
    """
    litter = {path for path in root.rglob("*") if path.suffix in (".tmp", ".partial")}
    return litter.union(_answers_begun(root), _statistics_begun(root))


def _answers_begun(root: Path) -> Iterator[Path]:
    for table in (path for name in ("epoch-*/*", "clean") for path in root.rglob(name) if path.is_dir()):
        chunks = {path.relative_to(table / "logits") for path in table.glob("logits/c/*/0")}
        if not chunks:
            yield table
        yield from (table / "logits" / chunk for chunk in chunks if not (table / "commits" / chunk).exists())


def _statistics_begun(root: Path) -> Iterator[Path]:
    for store in root.rglob("statistics.zarr"):
        written = json.loads((store / "zarr.json").read_text())["attributes"].get("epochs_written", 0)
        yield from (chunk for chunk in store.glob("*/c/*") if int(chunk.name) >= written)


def print_table(text: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print the page: what was done, the table, and on which machine."""
    columns = list(columns)
    print(text)
    for line in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(map(str, line)) + " |")
    print(footer())
