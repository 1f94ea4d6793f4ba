"""What the contrastive loss costs with its 16,384 negatives: time of a step, and memory.

python benchmarks/crd.py > docs/results/crd.md
"""

import argparse
import time

import torch
from common import footer, spread

from kdcache.losses import LossContext, ViewOutputs
from kdcache.losses.crd import CRD, DENSE_LIMIT, NEGATIVES, WIDTH

BATCH, REPEATS = 64, 7


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[50_000, 100_000, 250_000, 300_000])
    chosen = parser.parse_args()
    print(f"""# CRD with {NEGATIVES} negatives

Batches of {BATCH}, embeddings of {WIDTH} from vectors of 64 (student) and 128 (teacher), 100 classes, float32.
Milliseconds, medians (least, most) of {REPEATS}. Up to {DENSE_LIMIT} times as many samples as negatives, one product
with the whole memory takes the place of gathering rows.

| samples | memories, MB | drawing the negatives | loss, forward and backward |
| --- | --- | --- | --- |""")
    for samples in chosen.samples:
        labels = torch.arange(samples) % 100
        crd = CRD(LossContext(((64,),), ((128,),), labels, 4.0, 0))
        drawing, stepping = [], []
        for step in range(REPEATS + 1):
            rows = torch.arange(BATCH) + step * BATCH
            student, teacher = torch.randn(BATCH, 64, requires_grad=True), torch.randn(BATCH, 128)
            started = time.perf_counter()
            crd.negatives(rows, labels[rows], 0)
            drawn = time.perf_counter()
            logits = torch.zeros(BATCH, 100)
            views = ViewOutputs(
                logits, logits, None, labels[rows], rows, student_features=(student,), teacher_features=(teacher,)
            )
            crd(views).backward()
            drawing.append(1e3 * (drawn - started))
            stepping.append(1e3 * (time.perf_counter() - drawn))
        size = 2 * samples * WIDTH * 4 / 1e6
        print(f"| {samples} | {size:.0f} | {spread(drawing[1:])} | {spread(stepping[1:])} |")
    print(footer())


if __name__ == "__main__":
    main()
