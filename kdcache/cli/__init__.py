"""The command line. Commands are thin, and import slow modules only when they run."""

import io
import logging
import os
import signal
import sys
import warnings
from importlib import import_module
from typing import NamedTuple, NoReturn

import click

from kdcache import __version__, extensions, signals
from kdcache.errors import KdcacheError, did_you_mean, first_line, is_out_of_memory, printable, problem
from kdcache.machine import keep_freed_memory

__all__ = ["COMMANDS", "Command", "cli", "main"]

INTERRUPT_EXIT_CODE = 130

INTERRUPT_REPEAT_SECONDS = 3.0
"""Seconds after which an interrupt that had no effect is raised again."""


def main() -> NoReturn:
    """Run the command line. An error is one line; the exit code is 2 for wrong use, 1 for a failure during the work."""
    debug = "--debug" in sys.argv[1:]
    prepare_output(debug)
    is_main = os.environ.get("RANK", "0") == "0"  # under torchrun, one of the processes reports
    logging.getLogger("kdcache").setLevel(logging.INFO if is_main else logging.WARNING)
    handle_signals()
    keep_freed_memory()
    try:
        try:
            code = cli(standalone_mode=False) or 0
        finally:
            signals.end_work()
    except click.ClickException as error:
        code = _print_error(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _print_error(_stopped(), INTERRUPT_EXIT_CODE)
    except signals.Stopped:
        code = _print_error(_stopped(), signals.STOPPED_EXIT_CODE)
    except Exception as error:
        if debug:
            raise
        code = _print_error(*_explain(error))
    if "kdcache.distributed" in sys.modules:  # do not import torch only to exit
        from kdcache import distributed

        distributed.exit_process(code)
    sys.exit(code)


class _Line(logging.Formatter):
    """Writes a record as one line that cannot command a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return f"kdcache: {printable(record.getMessage())}"


def prepare_output(debug: bool) -> None:
    """Let no text fail to be printed, and nothing be printed that libraries say to programmers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of classes may be in any script
    handler = logging.StreamHandler()
    handler.setFormatter(_Line())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it cannot keep its cache of fonts
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of every try; who gives up says so
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")


def handle_signals() -> None:
    """Let an interrupt stop the work at once, and the signals of schedulers where the work can be saved."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    for number in signals.STOP_SIGNALS:
        signal.signal(number, signals.on_stop_signal)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Raise `KeyboardInterrupt`, now and repeatedly: Python ignores it in a destructor or a callback."""
    signal.setitimer(signal.ITIMER_REAL, INTERRUPT_REPEAT_SECONDS)
    raise KeyboardInterrupt


def _stopped() -> str:
    """Say that the command was stopped, and how to go on."""
    command = next((COMMANDS[word] for word in sys.argv[1:] if word in COMMANDS), None)
    return " ".join(["stopped.", *([command.when_stopped] if command and command.when_stopped else [])])


def _explain(error: Exception) -> tuple[str, int]:
    """Message and exit code for an error."""
    if isinstance(error, KdcacheError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        remedy = "Use a machine with more memory, or stop other programs."
        return problem("out of memory", got=first_line(error), remedy=remedy), KdcacheError.exit_code
    # Each library that writes files reports a full or missing disk in its own way.
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("obstore", "safetensors"):
        return first_line(error), KdcacheError.exit_code
    if _is_distributed() and any(word in str(error) for word in ("gloo", "NCCL", "ncclInternal")):
        what = "lost the connection to another process of this training"
        return problem(what, got=first_line(error), remedy="Resume the training with --resume."), KdcacheError.exit_code
    message = f"unexpected {type(error).__name__}: {error} (run kdcache --debug to see the traceback)"
    return message, KdcacheError.exit_code


def _is_distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _print_error(message: str, code: int) -> int:
    """Print a message, on one of several processes, and return the exit code."""
    if _is_distributed():
        from kdcache import distributed

        if not distributed.is_first_to_exit():
            return code
    for line in message.splitlines():
        click.echo(f"kdcache: {line}", err=True)
    return code


class LazyGroup(click.Group):
    """A group that imports a command only when it is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        """List the commands in the order of use."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        module = import_module(f"kdcache.cli.{COMMANDS[name].module}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command by its name."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            context.fail(problem(f"No such command '{args[0]}'.", remedy=did_you_mean(args[0], COMMANDS)))
        return super().resolve_command(context, args)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Code that the user names anywhere among them may be imported."""
        extensions.trust(" ".join(args))
        return super().parse_args(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.about) for name, command in COMMANDS.items()])


class Command(NamedTuple):
    """The module of a command, its help text, and what it says when it is stopped."""

    module: str
    about: str
    when_stopped: str = ""


RESUME = "Completed work is saved. Resume a training with --resume."
REPEAT = "Completed work is saved. Run the same command again to continue."

COMMANDS = {
    "teacher-train": Command("training", "Train a teacher, and store its logits of the clean images.", RESUME),
    "student-train": Command("training", "Train a student on the teacher's logits of every view.", RESUME),
    "teacher-load": Command("training", "Load a trained network, such as a published checkpoint, as a teacher."),
    "evaluate": Command("evaluate", "Evaluate networks side by side: accuracy by class, agreement, size and speed."),
    "analyze": Command("analyze", "Analyze trained networks."),
    "report": Command("report", "Report the results of runs as a page with charts, Markdown, CSV or JSON."),
    "reproduce": Command("reproduce", "Run a study: a table or figure of the paper, or your own.", REPEAT),
    "compare": Command("compare", "Compare runs: kdcache compare RUN... -- RUN..."),
    "cache": Command("cache", "Fill, plan, verify and clean up the store of a teacher's logits.", REPEAT),
    "data": Command("data", "List, show, fetch, pack and check datasets.", REPEAT),
    "views": Command("views", "Show the views of an epoch as a table and a picture."),
    "models": Command("models", "List the networks with their sizes, and the pairs of the paper."),
    "export": Command("models", "Export a network for deployment: pixels in, probabilities out."),
    "push": Command("push", "Push a network with a model card to the Hugging Face Hub."),
    "predict": Command("predict", "Predict the classes of image files, and of those in folders."),
    "doctor": Command("doctor", "Check whether this machine is ready for training."),
    "demo": Command("demo", "Run the whole method on the shipped images in a few minutes."),
}


HELP = """Distill one image network into another, on every augmented view.

\b
To start, run these three commands:
  kdcache teacher-train
  kdcache student-train --aug cutmix-pick
  kdcache analyze disagreement
"""


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(cls=LazyGroup, help=HELP, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="kdcache", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--trust",
    multiple=True,
    metavar="python:MODULE:CALLABLE",
    help="Allow this code to be imported where a file names it: the config of a run, a study, a checkpoint or a "
    "store. May be repeated.",
)
def cli(debug: bool, trust: tuple[str, ...]) -> None:
    """Take the options before the command, which `main` and `LazyGroup.parse_args` have handled."""
