"""``kdcache demo``."""

from pathlib import Path

import click

from kdcache.cli import COMMANDS

__all__ = ["demo"]


@click.command("demo", help=COMMANDS["demo"].about)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of its runs. [default: a new folder in runs/]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the students.")
def demo(out: Path | None, seed: int) -> None:
    """Run the demo."""
    from kdcache.stages.demo import run_demo

    run_demo(out, seed)
