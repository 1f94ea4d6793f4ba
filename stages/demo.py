"""The demo: a shipped teacher, three students, and label disagreement, on the shipped images."""

from pathlib import Path

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
from kdcache.report.progress import terminal_reporter
from kdcache.report.tables import TextTable, show
from kdcache.run.folder import RUNS, FinishedRun

__all__ = ["STUDENTS", "run_demo"]

EPOCHS = 7

STUDENTS = {
    "labels only (CE)": {"loss": "ce", "aug": "standard"},
    "teacher (KD)": {"loss": "kd", "aug": "standard"},
    "teacher, CutMix-pick": {"loss": "kd", "aug": "cutmix-pick"},
}


def run_demo(out: Path | None = None) -> None:
    """Evaluate the shipped teacher, train three small students, and measure label disagreement.

    All printed results are measured in this run.

    Parameters
    ----------
    out : Path, optional
        Folder of the runs, new or empty. Defaults to ``runs/demo``, ``runs/demo-2`` and so on.

    Raises
    ------
    UsageError
        If the folder is not empty.
    """
    folder = _new_folder(out)
    with terminal_reporter() as reporter:
        teacher = load_teacher(SHIPPED, TeacherConfig.load(out=folder / "teacher"), reporter=reporter)
        students = {}
        for trained_on, settings in STUDENTS.items():
            out = folder / f"student-{settings['loss']}-{settings['aug']}"
            config = StudentConfig.load(teacher=teacher.path, epochs=EPOCHS, out=out, **settings)
            students[trained_on] = train_student(config, reporter)
        reporter.message("measuring label disagreement on 10,000 CutMix samples")
        found = measure_disagreement(load_analysis_inputs(str(teacher.path)))
    write_json(folder / "disagreement.json", found.as_json())
    plot_disagreements(found, folder / "disagreement.png")

    show(disagreement_table(found))
    rows = [_row(teacher, "labels of all 60,000 images")]
    rows += [_row(run, trained_on) for trained_on, run in students.items()]
    show(
        TextTable(
            f"Fashion-MNIST, 6,000 training images, {EPOCHS} epochs, 1 seed",
            ("network", "trained on", "top-1 (last)", "teacher forwards", "seconds"),
            rows,
        )
    )
    print(f"runs:     {folder}")
    print(f"picture:  {folder / 'disagreement.png'}")
    print("next:     kdcache teacher-train, then kdcache student-train --aug cutmix-pick")
    print("settings: kdcache student-train --help")


def _row(run: FinishedRun, trained_on: str) -> tuple[str, ...]:
    summary = run.summary
    return (
        str(summary["model"]),
        trained_on,
        f"{summary['last_top1']:.2f} %",
        str(summary["teacher_forwards"]),
        f"{summary['seconds']:.0f}",
    )


def _new_folder(out: Path | None) -> Path:
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(problem(f"--out {out} exists and is not an empty folder"))
        return out
    number = 1
    while (path := RUNS / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return path
