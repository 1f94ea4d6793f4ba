"""Measure the contrastive loss with its 16,384 negatives: time of a step, and memory.

python benchmarks/crd.py --out docs/results/crd.md
"""

import time

import torch
from common import make_parser, spread, table, write_page

from kdcache.losses import LossContext, ViewOutputs
from kdcache.losses.crd import CRD, DENSE_LIMIT, NEGATIVES, WIDTH

BATCH, CLASSES = 64, 100


def main() -> None:
    """Measure, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[50_000, 100_000, 250_000, 300_000])
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args()
    rows = []
    for samples in chosen.samples:
        drawing, stepping = measure(samples, chosen.repeats)
        rows.append((samples, f"{2 * samples * WIDTH * 4 / 1e6:.0f}", spread(drawing), spread(stepping)))
    write_page(
        chosen.out,
        f"CRD with {NEGATIVES} negatives",
        f"Batches of {BATCH}, embeddings of {WIDTH} from vectors of 64 (student) and 128 (teacher), {CLASSES} classes, "
        f"float32. Milliseconds: medians (min, max) of {chosen.repeats}. Up to {DENSE_LIMIT} times as many samples as "
        "negatives, one product with the whole memory replaces gathering rows.",
        table(("samples", "memories, MB", "drawing the negatives", "loss, forward and backward"), rows),
    )


def measure(samples: int, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of drawing the negatives, and of the loss with its backward, after one step that warms up."""
    labels = torch.arange(samples) % CLASSES
    crd = CRD(LossContext((), (), labels, 4.0, 0, student_width=64, teacher_width=128))
    drawing, stepping = [], []
    for step in range(repeats + 1):
        rows = torch.arange(BATCH) + step * BATCH
        student, teacher = torch.randn(BATCH, 64, requires_grad=True), torch.randn(BATCH, 128)
        logits = torch.zeros(BATCH, CLASSES)
        outputs = ViewOutputs(
            logits, logits, None, labels[rows], rows, student_vectors=student, teacher_vectors=teacher
        )
        started = time.perf_counter()
        crd.negatives(rows, labels[rows], 0)
        drawn = time.perf_counter()
        crd(outputs).backward()
        drawing.append(1e3 * (drawn - started))
        stepping.append(1e3 * (time.perf_counter() - drawn))
    return drawing[1:], stepping[1:]


if __name__ == "__main__":
    main()
