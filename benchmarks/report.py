"""Processor time of the report, of analyze and of compare for many runs, each in a process of its own.

python benchmarks/report.py --out docs/results/report.md
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import make_parser, table, write_page

from tests.many_runs import write_runs


def main() -> None:
    """Write runs, measure the commands, and write the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, nargs="+", default=[4, 30])
    chosen = parser.parse_args()
    rows = []
    for epochs in chosen.epochs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_runs(folder / "runs", chosen.runs, epochs)
            rows += [(epochs, *row) for row in measure(folder, chosen.runs)]
    write_page(
        chosen.out,
        "Reports of many runs",
        f"{chosen.runs} run folders in groups of five seeds, with statistics of 1,000 images, as the writers of run "
        "folders write them; their figures are made up. Processor time of the whole command, user and system.",
        table(("epochs of a run", "command", "seconds", "ms a run"), rows),
    )


def measure(folder: Path, count: int) -> list[tuple[str, str, str]]:
    """Measure each command on all runs, and the report on one."""
    paths = sorted((folder / "runs").glob("*student*"))
    half = len(paths) // 2
    commands: dict[str, tuple[int, Sequence[object]]] = {
        "report, one run": (1, ("report", paths[0])),
        "report": (count, ("report", folder / "runs")),
        "report --format csv": (count, ("report", folder / "runs", "--format", "csv")),
        "report --format json": (count, ("report", folder / "runs", "--format", "json")),
        "analyze curves": (count, ("analyze", "curves", folder / "runs")),
        "analyze kl-ratio": (count, ("analyze", "kl-ratio", folder / "runs")),
        "compare, half a side": (len(paths), ("compare", *paths[:half], "--", *paths[half:])),
    }
    rows = []
    for name, (runs, words) in commands.items():
        seconds = processor_seconds([*map(str, words)], folder)
        rows.append((name, f"{seconds:.2f}", f"{1000 * seconds / runs:.1f}"))
        print(*rows[-1], file=sys.stderr)
    return rows


def processor_seconds(words: Sequence[str], folder: Path) -> float:
    """Run a command in a folder and return its processor time."""
    before = os.times()
    command = [sys.executable, "-m", "kdcache", *words]
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()
