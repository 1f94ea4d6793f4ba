"""``kdcache teacher-train`` and ``kdcache student-train``."""

from typing import TYPE_CHECKING

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import CACHE_WORDS, CLASS_ORDER, WEIGHTS_ENTRY, GroupedCommand, settings
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import UsageError, problem

if TYPE_CHECKING:
    from kdcache.report.progress import Reporter
    from kdcache.run.folder import FinishedRun

__all__ = ["student_train", "teacher_load", "teacher_train"]


@click.command("teacher-train", cls=GroupedCommand, help=COMMANDS["teacher-train"].about)
@settings(TeacherConfig)
def teacher_train(config: TeacherConfig) -> None:
    """Train a teacher."""
    from kdcache.report.progress import terminal_reporter
    from kdcache.stages import train_teacher

    with terminal_reporter() as reporter:
        _print_result(reporter, train_teacher(config, reporter))


@click.command("student-train", cls=GroupedCommand, help=f"{COMMANDS['student-train'].about}\n\n{CACHE_WORDS}")
@settings(StudentConfig)
def student_train(config: StudentConfig) -> None:
    """Train a student."""
    from kdcache.report.progress import terminal_reporter
    from kdcache.stages import train_student

    with terminal_reporter() as reporter:
        _print_result(reporter, train_student(config, reporter))


def _parse_channels(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise UsageError(problem(f"--{option.name}", expected="three numbers such as 0.5,0.5,0.5", got=text)) from None
    return red, green, blue


@click.command("teacher-load", cls=GroupedCommand, help=COMMANDS["teacher-load"].about)
@settings(TeacherConfig, TeacherConfig.USED_WHEN_LOADING)
@click.option(
    "--weights",
    required=True,
    help="Checkpoint file, run folder, 'shipped', or the name of published weights, which are downloaded: such as "
    "IMAGENET1K_V1 for --model torchvision:NAME, timm:NAME.TAG, hf-hub:ORG/NAME.",
)
@WEIGHTS_ENTRY
@click.option("--model", help="Network. [default: named in the file, or found by its tensors]")
@click.option(
    "--mean",
    metavar="FLOAT,...",
    callback=_parse_channels,
    help="Mean of each channel in training, 0 to 1. [default: of the weights, the network's library, or the dataset]",
)
@click.option(
    "--std",
    metavar="FLOAT,...",
    callback=_parse_channels,
    help="Standard deviation of each channel. [default: of the weights, the network's library, or the dataset]",
)
@CLASS_ORDER
@click.option(
    "--fit-head",
    is_flag=True,
    help="Take all but the last layer of --model, whose classes may be others or none, and fit one to the training "
    "images, without training: for networks that learned without labels, of ImageNet, or of texts.",
)
def teacher_load(
    config: TeacherConfig,
    weights: str,
    weights_entry: str | None,
    model: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    class_order: str | None,
    fit_head: bool,
) -> None:
    """Load a teacher."""
    from kdcache.report.progress import terminal_reporter
    from kdcache.stages.teacher import load_teacher

    with terminal_reporter() as reporter:
        run = load_teacher(weights, config, model, mean, std, reporter, weights_entry, class_order, fit_head)
        _print_result(reporter, run)


def _print_result(reporter: "Reporter", run: "FinishedRun") -> None:
    from kdcache.report.time_left import format_duration

    summary = run.summary
    last, best, epoch = (summary[name] for name in ("last_top1", "best_top1", "best_epoch"))
    chosen = f" (best {best:.2f} % at epoch {epoch})" if epoch else ""  # a loaded network has no epochs
    if summary.get("best_on") == "validation":
        on_validation = next(line.val_top1 for line in run.read_metrics() if line.epoch == epoch)
        chosen = f" ({best:.2f} % at epoch {epoch}, the best on validation with {on_validation:.2f} %)"
    counts = "{teacher_forwards} teacher forwards, {cache_hits} cache hits".format(**summary)
    spent = format_duration(summary["seconds"])
    reporter.message(f"{summary['kind']} {summary['model']}: top-1 {last:.2f} %{chosen}, {counts}, {spent}")
    reporter.message(f"run: {run.path}")
