"""``kdcache analyze``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE
from kdcache.errors import KdcacheError, UsageError, problem

if TYPE_CHECKING:
    from kdcache.analysis.runs import RunRecord
    from kdcache.analysis.subject import Subject

__all__ = ["analyze"]

PATH = click.Path(path_type=Path)

RUNS = click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
SEED = click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the views.")

SUBJECT = (
    click.option(
        "--teacher",
        metavar="RUN|torchvision:NAME",
        help="Run folder of a teacher, or of a student whose teacher is meant, or a network [the newest teacher].",
    ),
    click.option("--weights", help="Weights of a network: a file, or torchvision's name for them [IMAGENET1K_V1]."),
    click.option("--dataset", help="Images to ask about [the run's]."),
    click.option("--data-root", type=PATH, help="Folder that holds downloaded datasets [the run's, or datasets]."),
    click.option("--image-size", type=click.IntRange(32), help="Side of a folder's images, in pixels [the run's]."),
    click.option(
        "--split", default="train", show_default=True, type=click.Choice(["train", "val"]), help="Part of them."
    ),
    click.option("--store", help="Store in which answers are looked up and kept [a run's own is only looked up]."),
    DEVICE,
)
"""What names a teacher and the images that it is asked about."""


def out(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option that says where figures and pictures are written."""
    return click.option("--out", type=PATH, help=f"Folder for figures and pictures [{default}].")


def _subject(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(SUBJECT):
        command = option(command)
    return command


@click.group("analyze", help=COMMANDS["analyze"].about)
def analyze() -> None:
    """Hold the analyses."""


@analyze.command()
@_subject
@click.option("--samples", default=10_000, show_default=True, type=click.IntRange(1), help="Mixed views to count.")
@click.option("--aug", default="cutmix", show_default=True, type=click.Choice(["cutmix", "mixup"]), help="The mix.")
@SEED
@out("the teacher's run folder, or the current one")
def disagreement(samples: int, aug: str, seed: int, out: Path | None, **which: Any) -> None:
    """Count how often the teacher disputes the label that a mix gives.

    By lambda, by class, and beside the teacher's error on the clean images; with a picture of the disputed samples of
    which the teacher is surest. Writes disagreement.json and disagreement.png.
    """
    from kdcache.analysis.disagreement import study
    from kdcache.analysis.subject import open_subject
    from kdcache.files import write_json
    from kdcache.report.gallery import draw_disagreements
    from kdcache.report.sheets import classes_sheet, disagreement_sheet
    from kdcache.report.tables import show, table

    subject = open_subject(**which)
    found = study(subject, samples, seed, aug)
    folder = _folder(out, subject)
    write_json(folder / "disagreement.json", found.as_json())
    draw_disagreements(found, folder / "disagreement.png")
    show(table(*disagreement_sheet(found)))
    show(table(*classes_sheet(found, most=20)))
    _tell(folder, "disagreement.json", "disagreement.png")


@analyze.command()
@_subject
@click.option("--aug", "augs", multiple=True, help="As in student-train, may be repeated [all but sums].")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1), help="Epochs of views.")
@click.option("--samples", default=10_000, show_default=True, type=click.IntRange(2), help="Images of each, at most.")
@SEED
@out("the teacher's run folder, or the current one")
def teacher(augs: tuple[str, ...], epochs: int, samples: int, seed: int, out: Path | None, **which: Any) -> None:
    """Rank augmentations for a teacher without training any student.

    By the standard deviation of the teacher's mean probability over groups of views, lower being better; beside it the
    entropy of its answers, the labels that it disputes, and how much its answers to one image differ. Writes
    augmentations.json and augmentations.png.
    """
    from kdcache.analysis.augmentations import WITHOUT_STUDENT, rank
    from kdcache.analysis.subject import open_subject
    from kdcache.files import write_json
    from kdcache.report.charts import draw_merits
    from kdcache.report.sheets import merits_sheet
    from kdcache.report.style import write_figure
    from kdcache.report.tables import show, table

    subject = open_subject(**which)
    found = rank(subject, augs or WITHOUT_STUDENT, epochs, samples, seed)
    folder = _folder(out, subject)
    lines = [{**one.as_json(), "behind_and_its_error": one.behind(found[0])} for one in found]
    figures = {"teacher": subject.name, "dataset": subject.data.card.name, "split": subject.split, "seed": seed}
    write_json(folder / "augmentations.json", {**figures, "augmentations": lines})
    write_figure(draw_merits(found), folder / "augmentations.png")
    show(table(*merits_sheet(subject.name, found)))
    _tell(folder, "augmentations.json", "augmentations.png")


@analyze.command("kl-ratio")
@RUNS
@click.option("--data-root", type=PATH, help="Folder that holds downloaded datasets [the run's].")
@out("the current one")
def kl_ratio(runs: tuple[Path, ...], data_root: Path | None, out: Path | None) -> None:
    """Show the KL ratio r over the iterations, and which images stay hard.

    Runs that differ in nothing but the seed are taken together, as in Figure 4. Of the first run of each, d of x is
    followed over the epochs: how it spreads, which images stay hard and which are forgotten. Writes kl-ratio.json and
    kl-ratio.png, and for each group of runs hard-images-N.png and hardness-N.png.
    """
    from kdcache.analysis.hardness import hardness
    from kdcache.analysis.kl_ratio import ratio_curves
    from kdcache.analysis.runs import group
    from kdcache.files import write_json
    from kdcache.report.charts import draw_hardness, draw_ratios
    from kdcache.report.sheets import hardness_sheet, ratios_sheet
    from kdcache.report.style import write_figure
    from kdcache.report.tables import show, table

    groups = [one for one in group(_look(runs)) if one.config.table == "student"]
    curves, problems = ratio_curves(groups)
    _warn(problems)
    folder = _folder(out)
    written, figures = ["kl-ratio.json"], {"kl_ratios": [curve.as_json() for curve in curves], "images": []}
    if curves:
        show(table(*ratios_sheet(curves)))
        write_figure(draw_ratios(curves), folder / "kl-ratio.png")
        written.append("kl-ratio.png")
    for one in groups:
        try:
            found = hardness(one.runs[0].statistics())
        except KdcacheError:
            continue  # it was told with the ratios
        if found is None:
            continue
        number = len(figures["images"]) + 1
        figures["images"].append({"name": one.name, "run": str(one.runs[0].path), **found.as_json()})
        show(table(*hardness_sheet(f"{one.name} ({one.runs[0].path})", found)))
        write_figure(draw_hardness(found), folder / f"hardness-{number}.png")
        written += [f"hardness-{number}.png", *_draw_images(one.runs[0], found, data_root, folder, number)]
    if len(written) == 1:
        raise UsageError(problem("runs", expected="students that had a teacher", got="none with statistics of d"))
    write_json(folder / "kl-ratio.json", figures)
    _tell(folder, *written)


def _draw_images(run: "RunRecord", found: Any, data_root: Path | None, folder: Path, number: int) -> list[str]:
    """Draw the easiest and the hardest images, where these are still there."""
    from kdcache.report.gallery import draw_extremes
    from kdcache.setup import load_data

    place = {"data_root": data_root} if data_root else {}
    try:
        data = load_data(run.config.model_copy(update=place))
    except KdcacheError as error:
        _warn([f"images of {run.path}: {line}" for line in str(error).splitlines()])
        return []
    draw_extremes(found, data, folder / f"hard-images-{number}.png")
    return [f"hard-images-{number}.png"]


@analyze.command()
@RUNS
@out("the current one")
def curves(runs: tuple[Path, ...], out: Path | None) -> None:
    """Show the test error against the total number of epochs, as in Figures 1 and 3.

    Mean and standard deviation over the seeds, for each loss and augmentation. Writes curves.json and curves.png.
    """
    from kdcache.analysis.curves import error_curves
    from kdcache.files import write_json
    from kdcache.report.charts import draw_error_curves
    from kdcache.report.sheets import errors_sheet
    from kdcache.report.style import write_figure
    from kdcache.report.tables import show, table

    found = error_curves(_look(runs))
    if not found:
        raise UsageError(problem("runs", expected="finished trainings", got="none"))
    folder = _folder(out)
    write_json(folder / "curves.json", [curve.as_json() for curve in found])
    write_figure(draw_error_curves(found), folder / "curves.png")
    show(table(*errors_sheet(found)))
    _tell(folder, "curves.json", "curves.png")


def _look(paths: Sequence[Path]) -> "list[RunRecord]":
    """Read runs, telling what is missing."""
    from kdcache.analysis.runs import load_runs

    runs, problems = load_runs(paths)
    if not runs:
        raise UsageError(*problems)
    _warn(problems)
    return runs


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(f"kdcache: {line}", err=True)


def _folder(out: Path | None, subject: "Subject | None" = None) -> Path:
    folder = out or (subject.folder if subject and subject.folder else Path())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tell(folder: Path, *names: str) -> None:
    for name in names:
        click.echo(f"{'figures' if name.endswith('.json') else 'picture'}: {folder / name}")
