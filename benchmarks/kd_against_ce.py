"""Does the teacher pay? The same student with labels alone, with KD, and with CutMix-pick, over several seeds.

Runs that are finished are not run again, so it can be stopped and started. The table goes to the standard output::

    python benchmarks/kd_against_ce.py --teacher RUN --out FOLDER > docs/results/kd_against_ce.md
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from kdcache.stages import train_student

from kdcache.config import StudentConfig
from kdcache.errors import UsageError
from kdcache.record import FinishedRun
from kdcache.report.progress import Reporter

ROWS = {
    "CE": {"loss": "ce", "aug": "standard"},
    "KD": {"loss": "kd", "aug": "standard"},
    "KD + CutMix-pick": {"loss": "kd", "aug": "cutmix-pick"},
}


class Errors(Reporter):
    """Tell the standard error what is trained; the standard output is for the table."""

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)

    def begin(self, title: str, epochs: int, images: int) -> None:
        """Print what begins."""
        self.say(title)


def run(out: Path, **settings: object) -> FinishedRun:
    """Train a student, unless it is trained already."""
    try:
        return FinishedRun(out)
    except UsageError:
        return train_student(StudentConfig.load(out=out, overwrite=True, **settings), Errors())


def main() -> None:
    """Run the grid, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    chosen = parser.parse_args()

    teacher = FinishedRun(chosen.teacher)
    runs: dict[str, list[FinishedRun]] = {name: [] for name in chosen.rows}
    for seed in range(chosen.seeds):
        for name in chosen.rows:
            out = chosen.out / f"{name.replace(' ', '')}-seed{seed}"
            runs[name].append(run(out, teacher=teacher.path, epochs=chosen.epochs, seed=seed, **ROWS[name]))

    first = runs[chosen.rows[0]][0]
    machine = json.loads((first.path / "environment.json").read_text("utf-8"))
    print(f"""# KD against CE on fashion-mini

{first.summary["model"]}, {chosen.epochs} epochs, top-1 on the 10,000 test images after the last epoch. Teacher:
{teacher.summary["model"]}, {teacher.summary["last_top1"]:.2f} %. Each seed is a seed of the weights and of the views.

| student | n | mean (std), % | each, % | questions asked by one run | seconds of one run |
| --- | --- | --- | --- | --- | --- |""")
    for name, found in runs.items():
        tops = [one.summary["last_top1"] for one in found]
        std = statistics.stdev(tops) if len(tops) > 1 else float("nan")
        seconds = statistics.median(one.summary["seconds"] for one in found)
        each = ", ".join(f"{top:.2f}" for top in tops)
        asked = found[0].summary["questions_asked"]
        print(f"| {name} | {len(tops)} | {statistics.mean(tops):.2f} ({std:.2f}) | {each} | {asked} | {seconds:.0f} |")
    grid = f"--seeds {chosen.seeds} --epochs {chosen.epochs} --rows {' '.join(repr(name) for name in chosen.rows)}"
    print(f"\nCommand: `python benchmarks/kd_against_ce.py --teacher TEACHER --out FOLDER {grid}`.")
    facts = ("device", "threads", "precision", "torch", "kdcache", "commit")
    print("Machine: " + ", ".join(f"{fact} {machine[fact]}" for fact in facts) + ".")


if __name__ == "__main__":
    main()
