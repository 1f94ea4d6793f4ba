"""The command line. Commands are thin, and import what is heavy inside them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kdcache import __version__
from kdcache.errors import KdcacheError, UsageError

if TYPE_CHECKING:
    from kdcache.config import TrainingConfig
    from kdcache.record import FinishedRun

__all__ = ["cli", "main"]

INTERRUPTED = 130

PRESET_SETTINGS = ("model", "epochs", "batch_size", "lr", "momentum", "weight_decay", "milestones", "gamma")
"""Settings that every preset states, so that a default shown in the help would mislead."""


def main() -> NoReturn:
    """Run the command line: one clear line for an error, exit code 2 for wrong use and 1 for a failure at work."""
    debug = "--debug" in sys.argv[1:]
    try:
        code = cli(standalone_mode=False) or 0
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _complain("stopped; what was whole is kept", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        code = _complain(*_explained(error))
    sys.exit(code)


def _explained(error: Exception) -> tuple[str, int]:
    """Say what an error means to the user, and with which code to exit."""
    if isinstance(error, KdcacheError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return str(error), KdcacheError.exit_code
    return f"unexpected {type(error).__name__}: {error} (kdcache --debug shows where)", KdcacheError.exit_code


def _complain(message: str, code: int) -> int:
    for line in message.splitlines():
        click.echo(f"kdcache: {line}", err=True)
    return code


class CommandsOnDemand(click.Group):
    """A group whose commands are made when they are asked for: the options of a training come from its config."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Name the commands in the order of use."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Make a command."""
        return COMMANDS[name]() if name in COMMANDS else None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without making them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, make.__doc__ or "") for name, make in COMMANDS.items()])


STORY = """Distil one image network into another, on every augmented view.

\b
Start with these three, one after the other:
  kdcache teacher-train
  kdcache student-train --aug cutmix-pick
  kdcache analyze disagreement
"""


@click.group(cls=CommandsOnDemand, help=STORY, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kdcache", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Hold the commands; what ``--debug`` does is in `main`, which sees every error."""


def teacher_train() -> click.Command:
    """Train a teacher and store its answers to the clean images."""
    from kdcache.config import TeacherConfig

    def run(config: str | None, **options: Any) -> None:
        settings = TeacherConfig.load(config, **options)
        from kdcache.report.progress import terminal
        from kdcache.stages import train_teacher

        with terminal() as reporter:
            _tell(train_teacher(settings, reporter))

    return _training_command("teacher-train", TeacherConfig, run, teacher_train)


def student_train() -> click.Command:
    """Train a student on the teacher's answers to every view it sees."""
    from kdcache.config import StudentConfig

    def run(config: str | None, **options: Any) -> None:
        settings = StudentConfig.load(config, **options)
        from kdcache.report.progress import terminal
        from kdcache.stages import train_student

        with terminal() as reporter:
            _tell(train_student(settings, reporter))

    return _training_command("student-train", StudentConfig, run, student_train)


def analyze() -> click.Command:
    """Look into what was trained."""
    return click.Group("analyze", help=analyze.__doc__, commands=[disagreement])


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--samples", default=10_000, show_default=True, type=click.IntRange(1), help="CutMix samples to count.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the views.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    help="Where to compute.",
)
def disagreement(run: Path | None, samples: int, seed: int, device: str) -> None:
    """Count how often the teacher disputes the label that CutMix gives.

    RUN is the run folder of a teacher, or of a student, whose teacher is then meant [the newest teacher under runs/].
    The outcome is written beside the teacher: disagreement.json and disagreement.png.
    """
    from kdcache.analysis.disagreement import study
    from kdcache.config import TeacherConfig
    from kdcache.files import write_json
    from kdcache.record import RUNS, FinishedRun, newest
    from kdcache.report.gallery import draw_disagreements
    from kdcache.report.tables import disagreement_table, show

    chosen = FinishedRun(run) if run else newest(TeacherConfig)
    if chosen is None:
        raise UsageError(f"no finished teacher under {RUNS}/: run 'kdcache teacher-train' first, or name a run")
    found = study(chosen, samples, seed, device)
    write_json(found.teacher / "disagreement.json", {**found.as_json(), "seed": seed})
    draw_disagreements(found.samples, found.class_names, found.teacher / "disagreement.png")
    show(disagreement_table(f"Label disagreement of {found.teacher}", found.disagreement, found.clean_error))
    click.echo(f"figures: {found.teacher / 'disagreement.json'}\npicture: {found.teacher / 'disagreement.png'}")


def demo() -> click.Command:
    """Show the whole story on the shipped images in a few minutes."""

    @click.command("demo", help=demo.__doc__)
    @click.option("--out", type=click.Path(path_type=Path), help="Folder for its runs [a new one under runs/].")
    def run(out: Path | None) -> None:
        from kdcache.stages.demo import run_demo

        run_demo(out)

    return run


COMMANDS: dict[str, Callable[[], click.Command]] = {
    "teacher-train": teacher_train,
    "student-train": student_train,
    "analyze": analyze,
    "demo": demo,
}


def _training_command(
    name: str, config: type["TrainingConfig"], run: Callable[..., None], about: Callable[..., object]
) -> click.Command:
    """Make a command whose options are the settings of a config."""
    preset = click.Option(
        ["--config"], metavar="FILE", help="TOML file, or the name of a preset [the preset of the dataset]."
    )
    params: list[click.Parameter] = [preset, *(_option(field, config) for field in config.model_fields)]
    return click.Command(name, callback=run, params=params, help=about.__doc__)


def _option(name: str, config: type["TrainingConfig"]) -> click.Option:
    """Make an option of a setting; the config checks its value, so that all faults are reported together."""
    field = config.model_fields[name]
    flag = f"--{name.replace('_', '-')}"
    text = field.description or ""
    if field.annotation is bool:
        return click.Option([flag], is_flag=True, default=None, help=text)
    if name in PRESET_SETTINGS:
        text = f"{text.rstrip('.')} [the preset's]."
    elif field.default is not None:
        text = f"{text.rstrip('.')} [{field.default}]."
    words = config.allowed_words(name)
    return click.Option([flag], metavar="|".join(words) if words else name.upper(), help=text)


def _tell(run: "FinishedRun") -> None:
    click.echo(
        "{kind} {model}: top-1 {last_top1:.2f} % (best {best_top1:.2f} % at epoch {best_epoch}), "
        "teacher asked {questions_asked} questions, {questions_answered} answered from the store, "
        "{seconds:.0f} s".format(**run.summary)
    )
    click.echo(f"run: {run.path}")
