"""The command line. Commands are thin, and import what is heavy inside them."""

import logging
import os
import signal
import sys
from importlib import import_module
from typing import NamedTuple, NoReturn

import click

from kdcache import __version__, signals
from kdcache.errors import KdcacheError, first_line, is_out_of_memory, problem
from kdcache.machine import keep_freed_memory

__all__ = ["COMMANDS", "Command", "cli", "main"]

INTERRUPTED = 130

STOPPED = "stopped; what was whole is kept, and a training goes on with --resume"

REPEATED_AFTER = 3.0
"""Seconds after which an interrupt that did not get through is repeated."""


def main() -> NoReturn:
    """Run the command line: one clear line for an error, exit code 2 for wrong use and 1 for a failure at work."""
    debug = "--debug" in sys.argv[1:]
    logging.basicConfig(format="kdcache: %(message)s", level=logging.WARNING)
    logging.getLogger("kdcache").setLevel(logging.INFO)
    handle_signals()
    keep_freed_memory()
    try:
        code = cli(standalone_mode=False) or 0
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        signals.cancel_repeat()
        code = _complain(STOPPED, INTERRUPTED)
    except signals.Stopped:
        code = _complain(STOPPED, signals.SIGTERM_EXIT_CODE)
    except Exception as error:
        if debug:
            raise
        code = _complain(*_explained(error))
    if "kdcache.distributed" in sys.modules:  # torch comes with it, and what needs no torch is to answer at once
        from kdcache import distributed

        distributed.exit_process(code)
    sys.exit(code)


def handle_signals() -> None:
    """Let an interrupt stop the work at once, and SIGTERM where it suits the work."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    signal.signal(signal.SIGTERM, signals.on_sigterm)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Interrupt the work, and again after a while: Python drops what is raised in a destructor or a callback."""
    signal.setitimer(signal.ITIMER_REAL, REPEATED_AFTER)
    raise KeyboardInterrupt


def _explained(error: Exception) -> tuple[str, int]:
    """Say what an error means to the user, and with which code to exit."""
    if isinstance(error, KdcacheError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        machine = "a machine with more, or with fewer programs at work"
        return problem("out of memory", expected=machine, got=first_line(error)), KdcacheError.exit_code
    # The libraries that write for us report a full or missing disk each in its own way.
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("obstore", "safetensors"):
        return first_line(error), KdcacheError.exit_code
    if _is_one_of_many() and any(word in str(error) for word in ("gloo", "NCCL", "ncclInternal")):
        lost = "another process of this training ended, so this one ends too; it goes on with --resume"
        return f"{lost} ({first_line(error)})", KdcacheError.exit_code
    return f"unexpected {type(error).__name__}: {error} (kdcache --debug shows where)", KdcacheError.exit_code


def _is_one_of_many() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _complain(message: str, code: int) -> int:
    if _is_one_of_many():
        from kdcache import distributed

        if not distributed.is_first_to_exit():
            return code
    for line in message.splitlines():
        click.echo(f"kdcache: {line}", err=True)
    return code


class CommandsOnDemand(click.Group):
    """A group whose commands are imported when they are asked for: the options of a training come from its config."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Name the commands in the order of use."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        module = import_module(f"kdcache.cli.{COMMANDS[name].module}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.about) for name, command in COMMANDS.items()])


class Command(NamedTuple):
    """Where a command is defined, and what it does."""

    module: str
    about: str


COMMANDS = {
    "teacher-train": Command("training", "Train a teacher and store its answers to the clean images."),
    "student-train": Command("training", "Train a student on the teacher's answers to every view it sees."),
    "teacher-load": Command("training", "Make a teacher's run of a trained network, such as a published checkpoint."),
    "analyze": Command("analyze", "Look into what was trained."),
    "report": Command("report", "Write what runs came to: a page with tables and charts, Markdown, CSV or JSON."),
    "reproduce": Command("reproduce", "Carry out a study: a table or figure of the paper, or one of your own."),
    "compare": Command("compare", "Compare runs: kdcache compare RUN... -- RUN..."),
    "cache": Command("cache", "Fill, plan, check and tidy the store of a teacher's answers."),
    "data": Command("data", "List, show, fetch, pack and check datasets."),
    "views": Command("views", "Show the views of an epoch: the rows of its table, and a picture."),
    "models": Command("models", "List the networks, their sizes, and the pairs of the paper."),
    "export": Command("models", "Write a network for deployment: pixels in, probabilities out."),
    "predict": Command("models", "Name the classes of pictures."),
    "doctor": Command("doctor", "Look whether this machine is fit, with a training of some seconds."),
    "demo": Command("demo", "Show the whole story on the shipped images in a few minutes."),
}


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
@click.option(
    "--trust",
    multiple=True,
    metavar="python:MODULE:CALLABLE",
    help="Run this code where a run says that it is its network.",
)
def cli(debug: bool, trust: tuple[str, ...]) -> None:
    """Hold the commands; what ``--debug`` does is in `main`, which sees every error."""
    if trust:
        from kdcache.models import external

        for name in trust:
            external.trust(name)
