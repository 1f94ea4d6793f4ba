"""``kdcache views``."""

from pathlib import Path

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import settings
from kdcache.config import StudentConfig
from kdcache.errors import UsageError, printable, problem

__all__ = ["views"]

SHOWN = ("aug", "augs", "pick", "candidates", "batch_size", "seed", "view_seed")


@click.command("views", help=COMMANDS["views"].about)
@settings(StudentConfig, (*StudentConfig.in_group("data"), *SHOWN))
@click.option("--epoch", default=1, show_default=True, type=click.IntRange(1), help="Epoch, counted from 1.")
@click.option("--samples", default=8, show_default=True, type=click.IntRange(1, 64), help="Samples to show.")
@click.option("--out", default="views.png", show_default=True, type=click.Path(path_type=Path), help="File to write.")
def views(config: StudentConfig, epoch: int, samples: int, out: Path) -> None:
    """Show the views of an epoch."""
    import torch

    from kdcache.files import require_writable_file
    from kdcache.report.tables import show
    from kdcache.report.view_pictures import draw_views, views_table
    from kdcache.setup import load_data, make_plan
    from kdcache.views import Views

    require_writable_file(out)
    data = load_data(config)
    plan = make_plan(config, data)
    if samples > plan.samples:
        raise UsageError(problem("--samples", expected=f"at most {plan.samples} training images", got=samples))
    show(views_table(plan, data, epoch - 1, samples))
    draw_views(Views(data.train, plan, 64, torch.device("cpu")), data, epoch - 1, samples, out)
    click.echo(printable(f"picture: {out}"))
