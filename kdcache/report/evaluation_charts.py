"""Pictures of an evaluation: confusion, reliability, and the worst mistakes."""

from collections.abc import Iterator, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdcache.analysis.estimates import Proportion
from kdcache.analysis.evaluation import Evaluation
from kdcache.analysis.metrics import Mistake
from kdcache.report.gallery import draw_image
from kdcache.report.style import series_styles
from kdcache.report.tables import format_probabilities, shortened

__all__ = ["describe_mistake", "draw_confusion", "draw_mistakes", "draw_reliability"]

MAX_CLASSES = 24
"""Classes in a drawn confusion matrix; of more, those that are confused most often are chosen."""

MAX_NUMBERED = 12
"""Classes up to which the cells of a matrix have numbers."""

CELL_INCHES, MIN_MATRIX_INCHES, NAME_INCHES = 0.32, 2.6, 0.075
"""Side of a cell and of a small matrix, and length of a character of its class names."""

COLUMNS = 4
MAX_NAME_CHARS = 24
MAX_TITLE_CHARS = 60
CHARS_PER_INCH = 9
"""Of titles, which have more lines where a figure is narrow."""


def draw_confusion(evaluation: Evaluation, class_names: Sequence[str]) -> Figure:
    """Draw which share of the images of each class a network takes for each class."""
    chosen = sorted(_confused_classes(evaluation, len(class_names)))
    places = {label: place for place, label in enumerate(chosen)}
    shares = np.zeros((len(chosen), len(chosen)))
    for first, second, images in evaluation.quality.confusion:
        if first in places and second in places:
            shares[places[first], places[second]] = 100 * images / evaluation.quality.by_class[first].total
    names = [_short(class_names[label]) for label in chosen]
    # The names have room of their own, so that they take none from the cells.
    side = max(MIN_MATRIX_INCHES, CELL_INCHES * len(chosen)) + NAME_INCHES * max(map(len, names))
    figure = Figure(figsize=(0.7 + side, 0.9 + side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="none")
    axes.set_xticks(range(len(chosen)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(chosen)), names, fontsize=8)
    left_out = len(class_names) - len(chosen)
    title = f"{shortened(evaluation.name, MAX_TITLE_CHARS)}: % of each class"
    title += f", {left_out} classes left out" if left_out else ""
    axes.set_title(fill(title, round(CHARS_PER_INCH * figure.get_figwidth())), fontsize=10)
    axes.set(xlabel="predicted class", ylabel="class")
    if len(chosen) <= MAX_NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 50 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=color)
    return figure


def _confused_classes(evaluation: Evaluation, num_classes: int) -> set[int]:
    if num_classes <= MAX_CLASSES:
        return set(range(num_classes))
    found: set[int] = set()
    for first, second, _ in evaluation.quality.confusion:  # the most frequent pair first
        if first != second and len(found | {first, second}) <= MAX_CLASSES:
            found |= {first, second}
    return found


def draw_reliability(evaluations: Sequence[Evaluation]) -> Figure:
    """Draw accuracy against confidence with its 95 % intervals, and how many images have each confidence."""
    figure = Figure(figsize=(5, 5.4), layout="constrained")
    curve, share = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot((0, 1), (0, 1), color="#888888", linewidth=0.8)
    for evaluation, style in zip(evaluations, series_styles(), strict=False):
        bins = evaluation.quality.calibration.bins
        known = [bin for bin in bins if bin.images]
        label = f"{evaluation.name} (ECE {evaluation.quality.calibration.error:.1f} %)"
        confidence, accuracy = [bin.confidence or 0.0 for bin in known], [bin.accuracy or 0.0 for bin in known]
        curve.plot(confidence, accuracy, label=label, markersize=4, **style._asdict())
        intervals = [
            Proportion(round(bin.images * (bin.accuracy or 0.0)), bin.images).interval or (0, 0) for bin in known
        ]
        low, high = ([side / 100 for side in ends] for ends in zip(*intervals, strict=True))
        curve.vlines(confidence, low, high, color=style.color, linewidth=0.8)
        total = sum(bin.images for bin in bins)
        edges = [*(bin.low for bin in bins), 1.0]
        heights = [100 * bin.images / total for bin in bins]
        share.stairs(heights, edges, color=style.color, linestyle=style.linestyle)
    curve.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    share.set(xlabel="confidence: probability of the predicted class", ylabel="images (%)")
    for axes in (curve, share):
        axes.grid(alpha=0.3)
    return figure


def draw_mistakes(evaluation: Evaluation, class_names: Sequence[str]) -> Figure:
    """Draw the images with the largest loss among those of another class than predicted, and what was said of them."""
    rows = -(-len(evaluation.mistakes) // COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 0.5 + 3.2 * rows), layout="constrained")
    title = f"Mistakes of {shortened(evaluation.name, MAX_TITLE_CHARS)} with the largest loss"
    figure.suptitle(fill(title, round(CHARS_PER_INCH * figure.get_figwidth())), fontsize=11)
    axes: Iterator[Axes] = iter(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for image, mistake in zip(evaluation.views, evaluation.mistakes, strict=True):
        place = next(axes)
        draw_image(place, image)
        place.set_title(f"{_short(class_names[mistake.label])}, no. {mistake.place}", fontsize=9)
        place.set_xlabel("\n".join(describe_mistake(mistake, class_names)), fontsize=8)
    for place in axes:
        place.axis("off")
    return figure


def describe_mistake(mistake: Mistake, class_names: Sequence[str]) -> list[str]:
    """Say which class the network predicts, and which one its teacher, with their probabilities."""
    speakers = {"says": mistake.said, "teacher": mistake.teacher}
    named = {who: (_short(class_names[said.predicted]), said.confidence) for who, said in speakers.items() if said}
    return [f"{who}: {format_probabilities([one], '')}" for who, one in named.items()]


def _short(name: str) -> str:
    return shortened(name, MAX_NAME_CHARS)
