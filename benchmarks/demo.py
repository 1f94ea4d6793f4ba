"""The students of the demo over ten seeds: the figures that it shows as recorded, and the tables of two pages.

python benchmarks/demo.py --runs /tmp/demo

It resumes where it was stopped, and writes data/demo.json and the marked lines of README.md and docs/results/demo.md.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import table
from kdcache.stages.demo import (
    DIFFERENCES,
    STUDENTS,
    demo_disagreement,
    demo_student_config,
    demo_teacher,
    format_difference,
)
from kdcache.stages.student import train_student

from kdcache.analysis.estimates import MeanStd
from kdcache.files import write_json, write_text
from kdcache.report.tables import format_mean_std
from kdcache.run.folder import FinishedRun
from kdcache.study.intervals import mean_interval

ROOT = Path(__file__).parents[1]

SEEDS = range(10)

SETTINGS = ("model", "epochs", "batch_size", "lr", "schedule", "weight_decay", "loss", "aug", "temperature", "alpha")
"""Recorded with the figures, which are those of the demo only as long as it has the same."""

MARKED = re.compile(r"(?<=<!-- demo -->\n).*?(?=<!-- end of demo -->)", re.DOTALL)


def main() -> None:
    """Train, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    folder = parser.parse_args().runs
    teacher = FinishedRun(folder / "teacher") if (folder / "teacher").exists() else demo_teacher(folder)
    runs: dict[str, list[FinishedRun]] = {name: [] for name in STUDENTS}
    for seed in SEEDS:
        for name in STUDENTS:
            runs[name].append(train_student(demo_student_config(name, folder, seed, resume=True)))
            print(seed, name, runs[name][-1].summary["last_top1"], flush=True)
    found = figures(teacher, runs)
    write_json(ROOT / "data" / "demo.json", found)
    for page, lines in marked_lines(found).items():
        write_text(page, MARKED.sub(lines.replace("\\", r"\\"), page.read_text("utf-8")))


def figures(teacher: FinishedRun, runs: dict[str, list[FinishedRun]]) -> dict[str, Any]:
    """Collect what the runs have measured, and compute differences within a seed with 95 % intervals."""
    top1 = {name: [round(run.summary["last_top1"], 2) for run in found] for name, found in runs.items()}
    first, last = {name: found[0] for name, found in runs.items()}, runs["CutMix-pick"][-1]
    environment = last.read_environment()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime(last.summary["finished_at"])),
        "machine": {name: environment[name] for name in ("platform", "device", "precision", "threads", "torch")},
        "settings": {name: {key: getattr(run.config, key) for key in SETTINGS} for name, run in first.items()},
        "seeds": [run.config.seed for run in runs["CE"]],
        "teacher": {key: teacher.summary[key] for key in ("model", "last_top1")},
        "label_disagreement": demo_disagreement(teacher).counts.overall.as_json(),
        "top1": top1,
        "kl_ratio": [run.read_metrics()[-1].kl_ratio for run in runs["CutMix-pick"]],
        "differences": [difference(top1[one], top1[other]) for one, other in DIFFERENCES],
    }


def difference(one: list[float], other: list[float]) -> dict[str, Any] | None:
    """Estimate the mean difference of two students of the same seeds."""
    interval = mean_interval([left - right for left, right in zip(one, other, strict=True)])
    return None if interval is None else interval.as_json()


def marked_lines(figures: dict[str, Any]) -> dict[Path, str]:
    """Write the lines with figures of each page."""
    return {ROOT / "README.md": means(figures), ROOT / "docs" / "results" / "demo.md": all_seeds(figures)}


def means(figures: dict[str, Any]) -> str:
    """Write a table of means, each with the gain over the one above."""
    teacher, settings, top1 = figures["teacher"], figures["settings"], figures["top1"]
    gains = {
        one: f"{format_difference(interval)} over {other}"
        for (one, other), interval in zip(DIFFERENCES, figures["differences"], strict=True)
    }
    rows = [(teacher["model"], "labels of all 60,000 images", f"{teacher['last_top1']:.2f}", "")]
    for name, student in STUDENTS.items():
        rows.append((settings[name]["model"], student.trained_on, mean_std(top1[name]), gains.get(name, "")))
    accuracy = f"top-1 in %, mean (std) of {len(figures['seeds'])} seeds, {figures['date']}"
    return table(("network", "trained on", accuracy, "gain in points (95 % interval)"), rows) + "\n"


def all_seeds(figures: dict[str, Any]) -> str:
    """Write a table of all seeds, and what they were measured with."""
    top1, ratios, disagreement = figures["top1"], figures["kl_ratio"], figures["label_disagreement"]
    seeds = zip(figures["seeds"], *top1.values(), ratios, strict=True)
    rows = [(seed, *(f"{value:.2f}" for value in values)) for seed, *values in seeds]
    summary = ("mean (std)", *map(mean_std, (*top1.values(), ratios)))
    facts = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    return (
        f"{means(figures)}\n{table(('seed', *top1, 'r of CutMix-pick'), [*rows, summary])}\n\n"
        f"Label disagreement: {disagreement['percent']:.1f} % of {disagreement['of']:,} CutMix samples.\n\n"
        f"Command: `python benchmarks/demo.py --runs /tmp/demo`, {figures['date']}.\nMachine: {facts}.\n"
    )


def mean_std(values: Sequence[float]) -> str:
    """Format the mean of the seeds with its standard deviation."""
    return format_mean_std(MeanStd.of(values))


if __name__ == "__main__":
    main()
