"""The demo: a shipped teacher, three students, and label disagreement, on the shipped images."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.stages.student import train_student
from kdcache.stages.teacher import load_teacher

from kdcache.analysis.disagreement import DisagreementReport, measure_disagreement
from kdcache.analysis.estimates import MeanStd
from kdcache.analysis.inputs import load_analysis_inputs
from kdcache.choices import SHIPPED
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import UsageError, problem
from kdcache.files import write_json
from kdcache.report.analysis_tables import disagreement_table
from kdcache.report.gallery import plot_disagreements
from kdcache.report.progress import Reporter, terminal_reporter
from kdcache.report.tables import TextTable, format_mean_std, show
from kdcache.run.folder import RUNS, FinishedRun

__all__ = [
    "DIFFERENCES",
    "EPOCHS",
    "ONE_SEED",
    "STUDENTS",
    "Student",
    "demo_disagreement",
    "demo_student_config",
    "demo_teacher",
    "format_difference",
    "recorded_figures",
    "run_demo",
]

EPOCHS = 7


class Student(NamedTuple):
    """A student of the demo: what it is trained on, in words, and its settings."""

    trained_on: str
    settings: dict[str, str]


STUDENTS = {
    "CE": Student("labels only (CE)", {"loss": "ce", "aug": "standard"}),
    "KD": Student("teacher (KD)", {"loss": "kd", "aug": "standard"}),
    "CutMix-pick": Student("teacher, CutMix-pick", {"loss": "kd", "aug": "cutmix-pick"}),
}

DIFFERENCES = (("KD", "CE"), ("CutMix-pick", "KD"))

ONE_SEED = "One seed decides nothing: conclude from the recorded differences, which have an interval."


def run_demo(out: Path | None = None, seed: int = 0) -> None:
    """Evaluate the shipped teacher, train three small students, and measure label disagreement.

    What was not measured in this run is marked as recorded.

    Parameters
    ----------
    out : Path, optional
        Folder of the runs, new or empty. Defaults to ``runs/demo``, ``runs/demo-2`` and so on.
    seed : int
        Of the students.

    Raises
    ------
    UsageError
        If the folder is not empty.
    """
    folder = _new_folder(out)
    with terminal_reporter() as reporter:
        teacher = demo_teacher(folder, reporter)
        configs = {name: demo_student_config(name, folder, seed) for name in STUDENTS}
        students = {name: train_student(config, reporter) for name, config in configs.items()}
        reporter.message("measuring label disagreement on 10,000 CutMix samples")
        found = demo_disagreement(teacher)
    write_json(folder / "disagreement.json", found.as_json())
    plot_disagreements(found, folder / "disagreement.png")

    show(disagreement_table(found))
    show(_accuracies(teacher, students, seed))
    show(_gains(students, seed))
    print(ONE_SEED)
    print(f"runs:     {folder}")
    print(f"picture:  {folder / 'disagreement.png'}")
    print("next:     kdcache teacher-train, then kdcache student-train --aug cutmix-pick")
    print("settings: kdcache student-train --help")


def demo_teacher(folder: Path, reporter: Reporter | None = None) -> FinishedRun:
    """Make the run of the shipped teacher, and evaluate it."""
    return load_teacher(SHIPPED, TeacherConfig.load(out=folder / "teacher"), reporter=reporter)


def demo_student_config(name: str, folder: Path, seed: int, resume: bool = False) -> StudentConfig:
    """Configure one of `STUDENTS`, whose teacher `demo_teacher` put into the folder."""
    return StudentConfig.load(
        teacher=folder / "teacher",
        epochs=EPOCHS,
        schedule="cosine",  # so short a training has no epoch for a rate that is too small to learn with
        seed=seed,
        out=folder / f"student-{name.lower()}-{seed}",
        resume=resume,
        **STUDENTS[name].settings,
    )


def demo_disagreement(teacher: FinishedRun) -> DisagreementReport:
    """Measure how often the teacher disagrees with the labels of CutMix."""
    return measure_disagreement(load_analysis_inputs(str(teacher.path)))


def recorded_figures() -> dict[str, Any]:
    """Read the figures of several seeds, which ``benchmarks/demo.py`` measured."""
    found: dict[str, Any] = json.loads((files("kdcache.data") / "demo.json").read_text("utf-8"))
    return found


def format_difference(interval: Mapping[str, float]) -> str:
    """Format a mean difference with its interval, such as ``+2.91 (+2.60 to +3.22)``."""
    return f"{interval['mean']:+.2f} ({interval['low']:+.2f} to {interval['high']:+.2f})"


def _accuracies(teacher: FinishedRun, students: dict[str, FinishedRun], seed: int) -> TextTable:
    recorded = recorded_figures()
    rows = [_row(teacher, "labels of all 60,000 images", "")]
    for name, run in students.items():
        rows.append(_row(run, STUDENTS[name].trained_on, format_mean_std(MeanStd.of(recorded["top1"][name]))))
    title = f"Fashion-MNIST, 6,000 training images, {EPOCHS} epochs: top-1 in percent, recorded as mean (std)"
    header = ("network", "trained on", f"seed {seed}", _recorded(recorded), "teacher forwards", "seconds")
    return TextTable(title, header, rows)


def _row(run: FinishedRun, trained_on: str, recorded: str) -> tuple[str, ...]:
    summary = run.summary
    top1, seconds = f"{summary['last_top1']:.2f}", f"{summary['seconds']:.0f}"
    return str(summary["model"]), trained_on, top1, recorded, str(summary["teacher_forwards"]), seconds


def _gains(students: dict[str, FinishedRun], seed: int) -> TextTable:
    """Put what this seed shows beside the recorded differences."""
    recorded = recorded_figures()
    top1 = {name: run.summary["last_top1"] for name, run in students.items()}
    rows = []
    for (one, other), interval in zip(DIFFERENCES, recorded["differences"], strict=True):
        rows.append((f"{one} minus {other}", f"{top1[one] - top1[other]:+.2f}", format_difference(interval)))
    ratio = students["CutMix-pick"].read_metrics()[-1].kl_ratio
    rows.append(("KL ratio r of CutMix-pick", f"{ratio:.2f}", format_mean_std(MeanStd.of(recorded["kl_ratio"]))))
    title = "Gains in points of top-1, recorded with intervals of 95 %; r of the last epoch, recorded as mean (std)"
    return TextTable(title, ("", f"seed {seed}", _recorded(recorded)), rows)


def _recorded(figures: dict[str, Any]) -> str:
    return f"{len(figures['seeds'])} seeds, recorded {figures['date']}"


def _new_folder(out: Path | None) -> Path:
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(problem(f"--out {out} exists and is not an empty folder"))
        return out
    number = 1
    while (path := RUNS / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return path
