"""Measure the images per second of one training, of two at once, and of two with the threads that kdcache advises.

python benchmarks/two_trainings.py --out docs/results/two_trainings.md
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import make_parser, spread, table, write_page

from kdcache.machine import cores
from kdcache.run.folder import FinishedRun


def main() -> None:
    """Measure, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--epochs", type=int, default=3, help="of each training; the first is left out if there are more"
    )
    parser.add_argument("--train-fraction", type=float, default=1.0)
    chosen = parser.parse_args()
    settings = [f"--epochs={chosen.epochs}", f"--train-fraction={chosen.train_fraction}", "--evaluate-every=1000"]
    share = f"--threads={max(1, cores() // 2)}"
    cases: tuple[tuple[str, int, list[str]], ...] = (
        ("alone", 1, []),
        ("alone, half the cores", 1, [share]),
        ("two at once", 2, []),
        ("two at once, as advised", 2, [share]),
    )
    rows = [(name, " ".join(more) or "default", *measure(count, [*settings, *more])) for name, count, more in cases]
    write_page(
        chosen.out,
        "Two trainings on one machine",
        f"`kdcache teacher-train` with its defaults, on {cores()} cores. Images per second of each training: medians "
        "(min, max) of the epochs but the first.",
        table(("", "threads", "first", "second"), rows),
    )


def measure(count: int, options: list[str]) -> list[str]:
    """Images per second of so many trainings at once."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, str(number)) for number in range(count)]
        command = [sys.executable, "-m", "kdcache", "teacher-train", "--device=cpu", *options]
        running = [
            subprocess.Popen([*command, f"--out={out}"], env=environment, stdout=subprocess.DEVNULL) for out in outs
        ]
        for process in running:
            if process.wait():
                sys.exit("a training failed")
        speeds = [[line.images_per_second or 0.0 for line in FinishedRun(out).read_metrics()] for out in outs]
    return [spread(values[1:] or values, 0) for values in speeds] + ["-"] * (2 - count)


if __name__ == "__main__":
    main()
