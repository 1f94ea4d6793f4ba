"""``kdcache teacher-train`` and ``kdcache student-train``."""

from typing import TYPE_CHECKING

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import settings
from kdcache.config import StudentConfig, TeacherConfig

if TYPE_CHECKING:
    from kdcache.record import FinishedRun

__all__ = ["student_train", "teacher_train"]


@click.command("teacher-train", help=COMMANDS["teacher-train"].about)
@settings(TeacherConfig)
def teacher_train(config: TeacherConfig) -> None:
    """Train a teacher."""
    from kdcache.report.progress import terminal
    from kdcache.stages import train_teacher

    with terminal() as reporter:
        _tell(train_teacher(config, reporter))


@click.command("student-train", help=COMMANDS["student-train"].about)
@settings(StudentConfig)
def student_train(config: StudentConfig) -> None:
    """Train a student."""
    from kdcache.report.progress import terminal
    from kdcache.stages import train_student

    with terminal() as reporter:
        _tell(train_student(config, reporter))


def _tell(run: "FinishedRun") -> None:
    click.echo(
        "{kind} {model}: top-1 {last_top1:.2f} % (best {best_top1:.2f} % at epoch {best_epoch}), "
        "teacher asked {questions_asked} questions, {questions_answered} answered from the store, "
        "{seconds:.0f} s".format(**run.summary)
    )
    click.echo(f"run: {run.path}")
