"""``kdcache demo``."""

from pathlib import Path

import click

from kdcache.cli import COMMANDS

__all__ = ["demo"]


@click.command("demo", help=COMMANDS["demo"].about)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for its runs [a new one under runs/].")
def demo(out: Path | None) -> None:
    """Show the whole story."""
    from kdcache.stages.demo import run_demo

    run_demo(out)
