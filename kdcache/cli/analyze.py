"""``kdcache analyze``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import AUG_OPTION, CLASS_ORDER, DEVICE, UNLABELLED, WEIGHTS_ENTRY
from kdcache.errors import KdcacheError, UsageError, printable, problem

if TYPE_CHECKING:
    from kdcache.analysis.hardness import Hardness
    from kdcache.analysis.inputs import AnalysisInputs
    from kdcache.run.records import LoadedRuns, RunRecord

__all__ = ["analyze"]

Command = Callable[..., None]
AugTables = dict[str, dict[str, str]] | None

PATH = click.Path(path_type=Path)

MAX_GROUPS = 6
"""Groups whose hard images are printed and drawn."""

RUNS = click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
SEED = click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="View seed.")

TEACHER_OPTIONS = (
    click.option(
        "--teacher",
        metavar="RUN|torchvision:NAME",
        help="Run folder of a teacher, or of a student to take its teacher, or a network [the newest teacher].",
    ),
    click.option("--best", is_flag=True, help="Use the network of the run's best epoch instead of the last."),
    click.option("--weights", help="Weights of a network: a file, or torchvision's name for them [IMAGENET1K_V1]."),
    WEIGHTS_ENTRY,
    CLASS_ORDER,
    click.option("--dataset", help="Dataset to evaluate the teacher on, or where the run's was moved [the run's]."),
    click.option("--data-root", type=PATH, help="Folder of the datasets [the run's, or datasets]."),
    click.option("--image-size", type=click.IntRange(32), help="Side of a folder's images, in pixels [the run's]."),
    click.option(
        "--split", default="train", show_default=True, type=click.Choice(["train", "val"]), help="Split of the dataset."
    ),
    click.option("--store", help="Store of logits to read and write [the run's own, read only]."),
    DEVICE,
)


def teacher_options(command: Command) -> Command:
    """Add the options that select a teacher and the images to evaluate it on."""
    for option in reversed(TEACHER_OPTIONS):
        command = option(command)
    return command


def out_option(default: str) -> Callable[[Command], Command]:
    """Make the option for the output folder."""
    return click.option("--out", type=PATH, help=f"Folder for figures and pictures [{default}].")


@click.group("analyze", help=COMMANDS["analyze"].about)
def analyze() -> None:
    """Group the analyses."""


@analyze.command()
@teacher_options
@click.option("--samples", default=10_000, show_default=True, type=click.IntRange(1), help="Number of mixed views.")
@click.option("--aug", default="cutmix", show_default=True, type=click.Choice(["cutmix", "mixup"]), help="The mix.")
@AUG_OPTION
@SEED
@out_option("the teacher's run folder, or the current one")
def disagreement(samples: int, aug: str, augs: AugTables, seed: int, out: Path | None, **selection: Any) -> None:
    """Count how often the teacher disagrees with the label of mixed views.

    Overall, by lambda and by class, next to the teacher's error on the clean images; with a picture of the samples on
    which it disagrees most confidently. Writes disagreement.json and disagreement.png.
    """
    from kdcache.analysis.disagreement import measure_disagreement
    from kdcache.analysis.inputs import load_analysis_inputs
    from kdcache.files import write_json
    from kdcache.report.analysis_tables import classes_table, disagreement_table
    from kdcache.report.gallery import plot_disagreements
    from kdcache.report.tables import show

    teacher = load_analysis_inputs(**selection)
    folder = _output_folder(out, teacher)
    report = measure_disagreement(teacher, samples, seed, aug, augs)
    write_json(folder / "disagreement.json", report.as_json())
    plot_disagreements(report, folder / "disagreement.png")
    show(disagreement_table(report))
    show(classes_table(report, max_rows=20))
    _print_files(folder, "disagreement.json", "disagreement.png")


@analyze.command()
@teacher_options
@click.option("--aug", "words", multiple=True, help="As in student-train; repeat for several [all but sums].")
@AUG_OPTION
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1), help="Epochs of views.")
@click.option("--samples", default=10_000, show_default=True, type=click.IntRange(2), help="Maximum images per epoch.")
@SEED
@out_option("the teacher's run folder, or the current one")
def teacher(
    words: tuple[str, ...],
    augs: AugTables,
    epochs: int,
    samples: int,
    seed: int,
    out: Path | None,
    **selection: Any,
) -> None:
    """Rank augmentations for a teacher without training a student.

    By the standard deviation of the teacher's mean probability over groups of views; lower is better. Next to it are
    the entropy of its predictions, how often it disagrees with the label, and how much its predictions for one image
    differ. Writes augmentations.json and augmentations.png.
    """
    from kdcache.analysis.augmentations import STUDENT_FREE, rank_augmentations
    from kdcache.analysis.inputs import load_analysis_inputs
    from kdcache.files import write_json
    from kdcache.report.analysis_tables import augmentations_table
    from kdcache.report.charts import plot_augmentation_scores
    from kdcache.report.style import write_figure
    from kdcache.report.tables import show

    analyzed = load_analysis_inputs(**selection)
    folder = _output_folder(out, analyzed)
    scores = rank_augmentations(analyzed, words or STUDENT_FREE, epochs, samples, seed, augs=augs)
    document = {"teacher": analyzed.name, "dataset": analyzed.data.card.name, "split": analyzed.split, "seed": seed}
    lines = [{**score.as_json(), "gap_to_best_and_error": score.gap_to(scores[0])} for score in scores]
    write_json(folder / "augmentations.json", {**document, "augmentations": lines})
    write_figure(plot_augmentation_scores(scores), folder / "augmentations.png")
    show(augmentations_table(analyzed.name, scores))
    _print_files(folder, "augmentations.json", "augmentations.png")


@analyze.command("kl-ratio")
@RUNS
@click.option("--dataset", help="The runs' images, if they were moved [where they were].")
@click.option("--data-root", type=PATH, help="Folder of the datasets [the run's].")
@UNLABELLED
@out_option("the current one")
def kl_ratio(
    runs: tuple[Path, ...], dataset: str | None, data_root: Path | None, unlabelled: str | None, out: Path | None
) -> None:
    """Plot the KL ratio r over the iterations, and find the images that stay hard.

    Runs that differ only in the seed form a group, as in Figure 4. For the first run of each group, d of x is followed
    over the epochs: its distribution, which images stay hard, and which are forgotten. Writes kl-ratio.json and
    kl-ratio.png, and for each of the first six groups hard-images-N.png and hardness-N.png.
    """
    from kdcache.analysis.groups import group_runs
    from kdcache.analysis.kl_ratio import ratio_curves
    from kdcache.files import write_json
    from kdcache.report.analysis_tables import hardness_table, kl_ratio_table
    from kdcache.report.charts import plot_hardness, plot_kl_ratios
    from kdcache.report.style import MAX_SERIES, write_figure
    from kdcache.report.tables import show

    loaded = _load_runs(runs)
    groups = [group for group in group_runs(loaded.runs) if group.config.table == "student"]
    folder = _output_folder(out)
    places = {"dataset": dataset, "data_root": data_root, "unlabelled": unlabelled}
    curves, unread = ratio_curves(groups)
    _warn(unread)
    written, images = ["kl-ratio.json"], []
    if curves:
        show(kl_ratio_table(curves))
        write_figure(plot_kl_ratios(curves[:MAX_SERIES]), folder / "kl-ratio.png")
        written.append("kl-ratio.png")
    for group in groups:
        run = group.runs[0]
        if (hardness := _measure_hardness(run)) is None:
            continue
        images.append({"name": group.name, "run": str(run.path), **hardness.as_json()})
        if (number := len(images)) > MAX_GROUPS:
            continue
        show(hardness_table(f"{group.name} ({run.path})", hardness))
        write_figure(plot_hardness(hardness), folder / f"hardness-{number}.png")
        written += [f"hardness-{number}.png", *_draw_images(run, hardness, places, folder, number)]
    damaged = [*loaded.damaged, *unread]
    if not curves and not images and not damaged:
        remedy = "Name run folders of students that were trained with a teacher."
        raise UsageError(problem("no run has statistics of d, the KL divergence from the teacher", remedy=remedy))
    ratios = [curve.as_json() for curve in curves]
    write_json(folder / "kl-ratio.json", {"kl_ratios": ratios, "images": images, "damaged": damaged})
    _warn_of_more(len(curves) - MAX_SERIES, "curves", "kl-ratio.json")
    _warn_of_more(len(images) - MAX_GROUPS, "groups with hard images", "kl-ratio.json")
    _print_files(folder, *written)
    _require_undamaged(damaged)


def _measure_hardness(run: "RunRecord") -> "Hardness | None":
    from kdcache.analysis.hardness import measure_hardness
    from kdcache.run.statistics_store import StatisticsReader

    try:
        return measure_hardness(StatisticsReader.open(run.folder.statistics_store))
    except KdcacheError:
        return None  # already reported with the KL ratios


def _draw_images(
    run: "RunRecord", hardness: "Hardness", places: dict[str, Any], folder: Path, number: int
) -> list[str]:
    """Draw the easiest and the hardest images, if the dataset is still available."""
    from kdcache.report.gallery import draw_extremes
    from kdcache.run_data import load_run_data

    try:
        data = load_run_data(run.folder, **places)
    except KdcacheError as error:
        _warn([f"images of {run.path}: {line}" for line in str(error).splitlines()])
        return []
    draw_extremes(hardness, data, folder / f"hard-images-{number}.png")
    return [f"hard-images-{number}.png"]


@analyze.command()
@RUNS
@out_option("the current one")
def curves(runs: tuple[Path, ...], out: Path | None) -> None:
    """Plot the test error against the total number of epochs, as in Figures 1 and 3.

    Mean and standard deviation over the seeds, for each loss and augmentation. Writes curves.json and curves.png.
    """
    from kdcache.analysis.curves import error_curves, lowest_first
    from kdcache.files import write_json
    from kdcache.report.analysis_tables import errors_table
    from kdcache.report.charts import plot_error_curves
    from kdcache.report.style import MAX_SERIES, write_figure
    from kdcache.report.tables import show

    loaded = _load_runs(runs)
    found = error_curves(loaded.runs)
    if not found:
        raise UsageError(problem("runs", expected="finished trainings", got="none"))
    folder = _output_folder(out)
    write_json(folder / "curves.json", [curve.as_json() for curve in found])
    write_figure(plot_error_curves(lowest_first(found)[:MAX_SERIES]), folder / "curves.png")
    show(errors_table(found))
    _warn_of_more(len(found) - MAX_SERIES, "curves", "curves.json")
    _print_files(folder, "curves.json", "curves.png")
    _require_undamaged(loaded.damaged)


def _load_runs(paths: Sequence[Path]) -> "LoadedRuns":
    """Load runs, and warn about what is missing."""
    from kdcache.run.records import load_runs

    loaded = load_runs(paths)
    if not loaded.runs:
        raise UsageError(*loaded.problems)
    _warn(loaded.problems)
    return loaded


def _warn_of_more(count: int, what: str, file: str) -> None:
    if count > 0:
        _warn([f"{count} more {what} are in {file}, and not drawn"])


def _require_undamaged(damaged: Sequence[str]) -> None:
    """Fail at the end of an analysis that had to leave out figures."""
    if damaged:
        raise KdcacheError("figures that damaged files would change are left out")


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(f"kdcache: {line}", err=True)


def _output_folder(out: Path | None, teacher: "AnalysisInputs | None" = None) -> Path:
    from kdcache.files import require_writable

    folder = out or (teacher.folder if teacher and teacher.folder else Path())
    require_writable(folder)
    return folder


def _print_files(folder: Path, *names: str) -> None:
    for name in names:
        click.echo(printable(f"{'figures' if name.endswith('.json') else 'picture'}: {folder / name}"))
