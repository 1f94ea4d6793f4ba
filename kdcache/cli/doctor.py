"""``kdcache doctor``."""

from pathlib import Path

import click

from kdcache.choices import PRECISIONS
from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE
from kdcache.errors import KdcacheError, problem

__all__ = ["doctor"]


@click.command("doctor", help=COMMANDS["doctor"].about)
@click.option("--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="Folder of the runs.")
@click.option(
    "--data-root",
    default="datasets",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the downloaded datasets.",
)
@click.option("--train", is_flag=True, help="Also check the devices of torch, and train a small teacher and student.")
@DEVICE
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", *PRECISIONS]),
    help="Precision of the networks.",
)
def doctor(runs: Path, data_root: Path, train: bool, device: str, precision: str) -> None:
    """Check the machine: a line for each check; exits with 1 if there is a problem."""
    from kdcache.doctor import PROBLEM, quick_checks, run_checks

    checks = quick_checks(runs, data_root)
    if train:
        from kdcache.self_test import TrainFunctions, training_checks
        from kdcache.stages import train_student, train_teacher

        checks |= training_checks(TrainFunctions(train_teacher, train_student), runs, device, precision)
    problems = []
    for finding in run_checks(checks):
        click.echo(f"{finding.state:<8}{finding.check}: {finding.text}")
        problems += [finding.check] if finding.state == PROBLEM else []
    if problems:
        raise KdcacheError(problem(f"this machine has problems with {', '.join(problems)}"))
    if not train:
        click.echo("Run 'kdcache doctor --train' to check the devices of torch and a small training, too.")
