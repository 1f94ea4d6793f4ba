"""``kdcache analyze``."""

from pathlib import Path

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE
from kdcache.errors import UsageError

__all__ = ["analyze"]


@click.group("analyze", help=COMMANDS["analyze"].about)
def analyze() -> None:
    """Hold the analyses."""


@analyze.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--samples", default=10_000, show_default=True, type=click.IntRange(1), help="CutMix samples to count.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the views.")
@DEVICE
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
