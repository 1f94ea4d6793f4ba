"""``kdcache doctor``."""

from pathlib import Path

import click

from kdcache.choices import PRECISIONS
from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE
from kdcache.errors import KdcacheError, problem

__all__ = ["doctor"]


@click.command("doctor", help=COMMANDS["doctor"].about)
@click.option(
    "--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="Folder of the run folders."
)
@click.option(
    "--data-root",
    default="datasets",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder that holds downloaded datasets.",
)
@DEVICE
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", *PRECISIONS]),
    help="Arithmetic of the networks.",
)
def doctor(runs: Path, data_root: Path, device: str, precision: str) -> None:
    """Look at the machine: a line for each finding; exits with 1 where one is a fault."""
    from kdcache.doctor import FAULT, Recipes, examine
    from kdcache.stages import train_student, train_teacher

    problems = []
    for finding in examine(Recipes(train_teacher, train_student), runs, data_root, device, precision):
        click.echo(f"{finding.state:<6}{finding.about}: {finding.text}")
        problems += [finding.about] if finding.state == FAULT else []
    if problems:
        raise KdcacheError(problem("this machine is not fit", got=", ".join(problems)))
