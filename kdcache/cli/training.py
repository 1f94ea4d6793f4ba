"""``kdcache teacher-train`` and ``kdcache student-train``."""

from typing import TYPE_CHECKING

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import settings
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import problem

if TYPE_CHECKING:
    from kdcache.report.progress import Reporter
    from kdcache.run.folder import FinishedRun

__all__ = ["student_train", "teacher_load", "teacher_train"]

TENSORBOARD = click.option(
    "--tensorboard",
    is_flag=True,
    help="Also write every epoch's metrics for TensorBoard, into the run folder (needs kdcache[tensorboard]).",
)


def _reporter(tensorboard: bool) -> "Reporter":
    """Make what tells the user of a training; of the processes of torchrun, only the first one writes."""
    from kdcache.report.progress import Bar, Lines, terminal_reporter

    reporter = terminal_reporter()
    if not tensorboard or not isinstance(reporter, Bar | Lines):
        return reporter
    from kdcache.report.tensorboard import TensorBoard

    return TensorBoard(reporter)


@click.command("teacher-train", help=COMMANDS["teacher-train"].about)
@settings(TeacherConfig)
@TENSORBOARD
def teacher_train(config: TeacherConfig, tensorboard: bool) -> None:
    """Train a teacher."""
    from kdcache.stages import train_teacher

    with _reporter(tensorboard) as reporter:
        _tell(reporter, train_teacher(config, reporter))


@click.command("student-train", help=COMMANDS["student-train"].about)
@settings(StudentConfig)
@TENSORBOARD
def student_train(config: StudentConfig, tensorboard: bool) -> None:
    """Train a student."""
    from kdcache.stages import train_student

    with _reporter(tensorboard) as reporter:
        _tell(reporter, train_student(config, reporter))


def _three(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise click.BadParameter(problem("", expected="three numbers such as 0.5,0.5,0.5", got=text)[2:]) from None
    return red, green, blue


@click.command("teacher-load", help=COMMANDS["teacher-load"].about)
@settings(TeacherConfig, TeacherConfig.USED_WHEN_LOADING)
@click.option(
    "--weights",
    required=True,
    help="Checkpoint file, the word shipped, or with --model torchvision:NAME also IMAGENET1K_V1.",
)
@click.option("--model", help="Network [what the file names, or what its tensors fit].")
@click.option(
    "--mean", callback=_three, help="Normalisation it was trained with, 0 to 1 [the weights' or the dataset's]."
)
@click.option("--std", callback=_three, help="Likewise, the standard deviations.")
def teacher_load(
    config: TeacherConfig,
    weights: str,
    model: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> None:
    """Load a teacher."""
    from kdcache.report.progress import terminal_reporter
    from kdcache.stages.teacher import load_teacher

    with terminal_reporter() as reporter:
        _tell(reporter, load_teacher(weights, config, model, mean, std, reporter))


def _tell(reporter: "Reporter", run: "FinishedRun") -> None:
    best = "best" if run.summary.get("best_on", "test") == "test" else "best on validation:"
    reporter.message(
        "{kind} {model}: top-1 {last_top1:.2f} % ({best} {best_top1:.2f} % at epoch {best_epoch}), "
        "teacher asked {teacher_forwards} questions, {cache_hits} answered from the store, "
        "{seconds:.0f} s".format(best=best, **run.summary)
    )
    reporter.message(f"run: {run.path}")
