"""Fill a store of the size of ImageNet with random logits, and read it back: memory, and seconds a row as it grows.

python benchmarks/store_scale.py > docs/results/store_scale.md
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import footer

from kdcache.answers.codec import DEFAULT_CODEC, Columns
from kdcache.answers.location import StoreLocation
from kdcache.answers.table import Table, fill_missing


def resident() -> float:
    """Memory that the process holds now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Fill, read, compare with a memory map, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="Where to put the store, which is removed afterwards.")
    chosen = parser.parse_args()
    noise = torch.randn(20_000, chosen.classes).half()

    def compute_rows(span: range) -> Columns:
        return {"logits": noise[torch.arange(span.start, span.stop) % len(noise)]}

    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        table = Table(
            StoreLocation(Path(name) / "store.zarr"), "clean", chosen.rows, DEFAULT_CODEC.layout(chosen.classes)
        )
        filled = measure(fill_missing([(table, compute_rows)]), len(table.chunks))
        reads = measure((table.read(chunk) for chunk in range(len(table.chunks))), len(table.chunks))
        size = table.location.size()
        flat = np.memmap(Path(name) / "flat", np.float16, "w+", shape=(chosen.rows, chosen.classes))
        started = time.perf_counter()
        for span in table.chunks:
            flat[span.start : span.stop] = compute_rows(span)["logits"].numpy()
        flat.flush()
        flat_write = time.perf_counter() - started
        started = time.perf_counter()
        for span in table.chunks:
            np.array(flat[span.start : span.stop])
        flat_read = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    print(f"""# A store of the size of ImageNet

{chosen.rows} rows of {chosen.classes} float16 logits (random ones stand for a teacher's), {size / 1e9:.2f} GB in
{len(table.chunks)} chunks. Microseconds a row in each fifth of the rows, every chunk checked and synced to the disk:

| | fifths | all, seconds | ratio to a memory map | memory at the end, MiB |
| --- | --- | --- | --- | --- |""")
    for word, (fifths, seconds, memory), plain in (("fill", filled, flat_write), ("read", reads, flat_read)):
        each = ", ".join(f"{1e6 * part / (chosen.rows / 5):.2f}" for part in fifths)
        print(f"| {word} | {each} | {seconds:.1f} | {seconds / plain:.2f} | {memory:.0f} |")
    print(f"""
"Memory" is the largest resident size at the end of a fifth. With the pages of the map, which the system lends, the
process came to {peak:.0f} MiB.""")
    print(footer())


def measure(work, chunks: int) -> tuple[list[float], float, float]:  # type: ignore[no-untyped-def]
    """Go through some work: seconds of each fifth and in all, and the largest memory seen at an end of one."""
    fifths, memory = [], 0.0
    started = begun = time.perf_counter()
    for done, _ in enumerate(work, start=1):
        if done % -(-chunks // 5) == 0 or done == chunks:
            now = time.perf_counter()
            fifths.append(now - started)
            started, memory = now, max(memory, resident())
    return fifths, time.perf_counter() - begun, memory


if __name__ == "__main__":
    main()
