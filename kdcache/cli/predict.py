"""``kdcache predict``."""

import os
import sys
from pathlib import Path

import click

from kdcache.choices import MAX_PIXELS
from kdcache.cli import COMMANDS
from kdcache.cli.models import BEST
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.report.predictions import PREDICTION_FORMATS, Guess

__all__ = ["predict"]

DEFAULT_TOP = 5


@click.command("predict", help=COMMANDS["predict"].about)
@click.argument("network", metavar="RUN|FILE")
@click.argument("images", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--format",
    default="text",
    show_default=True,
    type=click.Choice(list(PREDICTION_FORMATS)),
    help="Format of the output; csv and jsonl have all digits.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    help=f"Number of classes per image. [default: {DEFAULT_TOP}, or all if there are fewer]",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 2**31),
    help=f"Pixels above which an image is not decoded. [default: the run's, or {MAX_PIXELS}]",
)
@click.option("--workers", type=click.IntRange(0), help="Processes that decode images. [default: one per core]")
@BEST
def predict(
    network: str,
    images: tuple[str, ...],
    format: str,
    top: int | None,
    max_pixels: int | None,
    workers: int | None,
    best: bool,
) -> None:
    """Predict classes."""
    from kdcache.datasets.named import named_pictures
    from kdcache.datasets.workers import default_workers
    from kdcache.models.predictor import Prediction, load_predictor
    from kdcache.models.predictor import predict as predictions
    from kdcache.report.progress import progress_bar

    file, limit = _network_file(network, best)
    predictor, named = load_predictor(file), named_pictures(images)
    names, writer = predictor.class_names, PREDICTION_FORMATS[format]
    if top is not None and top > len(names):
        raise UsageError(problem("--top", expected=f"at most {len(names)}, the number of classes", got=top))
    top = top or min(DEFAULT_TOP, len(names))
    for line in (*named.others, *named.problems):
        click.echo(f"kdcache: {line}", err=True)
    bad, total = len(named.problems), len(named.files)
    click.echo(writer.head(top), nl=False)
    results = predictions(
        predictor, named.files, max_pixels or limit, default_workers() if workers is None else workers
    )
    # On a terminal, the answers show the progress.
    with progress_bar("predicting", "pictures", disable=sys.stdout.isatty()) as progress:
        for done, result in enumerate(results, 1):
            if isinstance(result, Prediction):
                best_classes = result.probabilities.topk(top)
                pairs = zip(best_classes.indices.tolist(), best_classes.values.tolist(), strict=True)
                guesses = [Guess(label, names[label], probability) for label, probability in pairs]
                print(writer.line(result.path, guesses), end="", flush=True)
            else:
                bad += 1
                print(f"kdcache: {result}", file=sys.stderr)  # above the bar
            progress(done, total)
    if bad:
        raise KdcacheError(problem("images without a prediction", got=f"{bad} of {total + len(named.problems)}"))


def _network_file(network: str, best: bool) -> tuple[Path, int]:
    """Find the file of a network, and the pixels above which it decodes no image."""
    from kdcache.run.folder import FinishedRun

    if not network:
        raise UsageError(problem("network", expected="a run folder or an exported file", got="an empty path"))
    path = Path(network)
    if not os.path.isfile(path):
        run = FinishedRun(path)
        return run.chosen_network_file(best), run.config.max_pixels
    if best:
        raise UsageError(problem("--best", expected="a run folder", got=f"the file {path}"))
    return path, MAX_PIXELS
