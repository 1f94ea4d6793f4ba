"""The students of the demo over ten seeds: the figures that it shows as recorded, and the table in the README.

python benchmarks/demo.py --runs /tmp/demo

It goes on where it was stopped, and writes data/demo.json and the lines of README.md between its marks.
"""

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any

from kdcache.compute import Compute
from kdcache.config import TeacherConfig
from kdcache.environment import describe_environment
from kdcache.files import write_json, write_text
from kdcache.models.sources import SHIPPED
from kdcache.run.folder import FinishedRun
from kdcache.stages.demo import EPOCHS, STUDENTS, train_demo_student
from kdcache.stages.teacher import load_teacher
from kdcache.study.intervals import mean_interval

ROOT = Path(__file__).parents[1]

PAIRS = {"KD minus CE": ("KD", "CE"), "CutMix-pick minus KD": ("CutMix-pick", "KD")}


def main() -> None:
    """Train, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=10)
    chosen = parser.parse_args()
    teacher = chosen.runs / "teacher"
    run = FinishedRun(teacher) if teacher.exists() else load_teacher(SHIPPED, TeacherConfig.load(out=teacher))
    runs = {name: [] for name in STUDENTS}
    for seed in range(chosen.seeds):
        for name in STUDENTS:
            trained = train_demo_student(name, teacher, chosen.runs, seed, resume=True)
            runs[name].append(trained)
            print(seed, name, trained.summary["last_top1"], flush=True)
    figures = summarize(runs)
    write_json(ROOT / "data" / "demo.json", figures)
    readme = ROOT / "README.md"
    text = re.sub(
        "(?<=<!-- demo -->\n).*?(?=<!-- end of demo -->)",
        lambda _: readme_table(run, runs, figures),
        readme.read_text(),
        flags=re.DOTALL,
    )
    write_text(readme, text)


def summarize(runs: dict[str, list[FinishedRun]]) -> dict[str, Any]:
    """Compute means, and differences within a seed with 95 % intervals."""
    top1 = {name: [run.summary["last_top1"] for run in found] for name, found in runs.items()}
    differences = {}
    for name, (one, other) in PAIRS.items():
        interval = mean_interval([a - b for a, b in zip(top1[one], top1[other], strict=True)])
        differences[name] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    facts = describe_environment(Compute.choose())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {name: facts[name] for name in ("platform", "precision", "threads", "torch", "kdcache")},
        "epochs": EPOCHS,
        "seeds": list(range(len(runs["CE"]))),
        "students": {
            name: {"mean": statistics.fmean(values), "std": statistics.stdev(values), "top1": values}
            for name, values in top1.items()
        },
        "differences": differences,
    }


def readme_table(teacher: FinishedRun, runs: dict[str, list[FinishedRun]], figures: dict[str, Any]) -> str:
    """Write the table of the README."""
    summary, count = teacher.summary, len(figures["seeds"])
    lines = [
        f"| network | trained on | top-1, mean (std) of {count} seeds | teacher forwards a seed |",
        "| --- | --- | ---: | ---: |",
        f"| {summary['model']} | labels of all 60,000 images | {summary['last_top1']:.2f} % | "
        f"{summary['teacher_forwards']:,} |",
    ]
    for name, found in runs.items():
        one = figures["students"][name]
        forwards = found[0].summary["teacher_forwards"]
        lines.append(
            f"| {found[0].summary['model']} | {STUDENTS[name].trained_on} | {one['mean']:.2f} % ({one['std']:.2f}) | "
            f"{forwards:,} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
