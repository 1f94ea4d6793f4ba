"""The demo: a shipped teacher, three students, and label disagreement, on the shipped images."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.stages.student import train_student
from kdcache.stages.teacher import load_teacher

from kdcache.analysis.disagreement import measure_disagreement
from kdcache.analysis.inputs import load_analysis_inputs
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import UsageError, problem
from kdcache.files import write_json
from kdcache.models.sources import SHIPPED
from kdcache.report.analysis_tables import disagreement_table
from kdcache.report.gallery import plot_disagreements
from kdcache.report.progress import Reporter, terminal_reporter
from kdcache.report.tables import TextTable, show
from kdcache.run.folder import RUNS, FinishedRun

__all__ = ["STUDENTS", "Student", "recorded_figures", "run_demo", "train_demo_student"]

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


def run_demo(out: Path | None = None, seed: int = 0) -> None:
    """Evaluate the shipped teacher, train three small students, and measure label disagreement.

    What is not measured in this run is marked as recorded.

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
        teacher = load_teacher(SHIPPED, TeacherConfig.load(out=folder / "teacher"), reporter=reporter)
        students = {name: train_demo_student(name, teacher.path, folder, seed, reporter) for name in STUDENTS}
        reporter.message("measuring label disagreement on 10,000 CutMix samples")
        found = measure_disagreement(load_analysis_inputs(str(teacher.path)))
    write_json(folder / "disagreement.json", found.as_json())
    plot_disagreements(found, folder / "disagreement.png")

    show(disagreement_table(found))
    show(_table(teacher, students, seed))
    ratio = students["CutMix-pick"].read_metrics()[-1].kl_ratio
    print(f"KL ratio r of the last epoch, of CutMix-pick in this run: {ratio:.2f} (picked views over all)")
    print(f"One seed decides nothing: {_differences()}.")
    print(f"runs:     {folder}")
    print(f"picture:  {folder / 'disagreement.png'}")
    print("next:     kdcache teacher-train, then kdcache student-train --aug cutmix-pick")
    print("settings: kdcache student-train --help")


def train_demo_student(
    name: str, teacher: Path, folder: Path, seed: int, reporter: Reporter | None = None, resume: bool = False
) -> FinishedRun:
    """Train one of `STUDENTS`."""
    config = StudentConfig.load(
        teacher=teacher,
        epochs=EPOCHS,
        schedule="cosine",  # so short a training has no epoch for a rate that is too small to learn with
        seed=seed,
        out=folder / f"student-{name.lower()}-{seed}",
        resume=resume,
        **STUDENTS[name].settings,
    )
    return train_student(config, reporter)


def recorded_figures() -> dict[str, Any]:
    """Read the figures of ten seeds, which ``benchmarks/demo.py`` measured."""
    found: dict[str, Any] = json.loads((files("kdcache.data") / "demo.json").read_text())
    return found


def _table(teacher: FinishedRun, students: dict[str, FinishedRun], seed: int) -> TextTable:
    recorded = recorded_figures()
    count, date = len(recorded["seeds"]), recorded["date"]
    rows = [_row(teacher, "labels of all 60,000 images", "")]
    for name, run in students.items():
        figures = recorded["students"][name]
        rows.append(_row(run, STUDENTS[name].trained_on, f"{figures['mean']:.2f} % ({figures['std']:.2f})"))
    return TextTable(
        f"Fashion-MNIST, 6,000 training images, {EPOCHS} epochs",
        (
            "network",
            "trained on",
            f"top-1, seed {seed}",
            f"{count} seeds, recorded {date}",
            "teacher forwards",
            "seconds",
        ),
        rows,
    )


def _row(run: FinishedRun, trained_on: str, recorded: str) -> tuple[str, ...]:
    summary = run.summary
    top1, seconds = f"{summary['last_top1']:.2f} %", f"{summary['seconds']:.0f}"
    return str(summary["model"]), trained_on, top1, recorded, str(summary["teacher_forwards"]), seconds


def _differences() -> str:
    recorded = recorded_figures()
    lines = [
        f"{name} is {one['mean']:+.2f} points ({one['low']:+.2f} to {one['high']:+.2f})"
        for name, one in recorded["differences"].items()
    ]
    return f"over {len(recorded['seeds'])} seeds, recorded {recorded['date']}, {', '.join(lines)} (95 % intervals)"


def _new_folder(out: Path | None) -> Path:
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(problem(f"--out {out} exists and is not an empty folder"))
        return out
    number = 1
    while (path := RUNS / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return path
