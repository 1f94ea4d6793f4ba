"""Charts. Axes have units; series differ in color, line style and marker. A legend is for what shows the figure."""

from __future__ import annotations  # so that charts of what is recorded need no torch

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdcache.analysis.estimates import MeanStd
from kdcache.analysis.groups import RunGroup
from kdcache.report.style import SeriesStyle, series_styles
from kdcache.report.tables import shortened

if TYPE_CHECKING:
    from kdcache.analysis.augmentations import AugmentationScore
    from kdcache.analysis.curves import ErrorCurve
    from kdcache.analysis.disagreement_counts import LabelDisagreement
    from kdcache.analysis.hardness import Hardness
    from kdcache.analysis.kl_ratio import KLRatioCurve

__all__ = [
    "draw_by_lambda",
    "draw_losses",
    "draw_over_epochs",
    "plot_augmentation_scores",
    "plot_error_curves",
    "plot_hardness",
    "plot_kl_ratios",
]

BAND_ALPHA = 0.18
"""Opacity of the bands that show a standard deviation."""

MARKED_POINTS = 12
"""Points of a series that have a marker, about."""

NAME_CHARS = 40
"""Length of a name on an axis."""


def draw_over_epochs(groups: Sequence[RunGroup], name: str, label: str, scale: float = 1.0) -> Figure:
    """Draw a field of the metrics over the epochs: mean and standard deviation over the runs of each group.

    Parameters
    ----------
    groups : sequence of RunGroup
    name : str
        A field of `kdcache.run.folder.EpochMetrics`.
    label : str
        Label of the axis, with the unit.
    scale : float
        Factor that converts the field to that unit.
    """
    return _over_epochs({group.name: group.by_epoch(name) for group in groups}, label, scale)


def draw_losses(group: RunGroup) -> Figure:
    """Draw the training loss and the cross-entropy on the test images over the epochs."""
    fields = {"training loss": "train_loss", "cross-entropy on the test images": "test_loss"}
    return _over_epochs({label: group.by_epoch(name) for label, name in fields.items()}, "loss (nats)")


def _over_epochs(series: Mapping[str, Sequence[tuple[int, MeanStd]]], ylabel: str, scale: float = 1.0) -> Figure:
    figure, axes = _single_axes()
    for (label, points), style in zip(series.items(), series_styles(), strict=False):
        if not points:
            continue
        mean = [scale * (value.mean or 0.0) for _, value in points]
        std = [scale * (value.std or 0.0) for _, value in points]
        _draw_series(axes, [epoch for epoch, _ in points], mean, std, label, style)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.grid(alpha=0.3)
    _integer_ticks(axes)
    return figure


def plot_error_curves(curves: Sequence[ErrorCurve], stacked: bool = False) -> Figure:
    """Draw the test error by the total number of epochs, without and with augmentation (Figures 1 and 3).

    The two panels are side by side, or `stacked` for a narrow page.
    """
    titles = {False: "without augmentation", True: "with augmentation"}
    sides = [side for side in titles if any(curve.is_augmented is side for curve in curves)]
    rows, columns = (len(sides), 1) if stacked else (1, len(sides))
    figure = Figure(figsize=(0.6 + 5 * columns, 0.2 + 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    styles = dict(zip((curve.name for curve in curves), series_styles(), strict=False))
    for axes, side in zip(panels, sides, strict=False):
        for curve in curves:
            if curve.is_augmented is side:
                known = [(point.epochs, point.last) for point in curve.points if point.last.mean is not None]
                mean, std = [last.mean or 0.0 for _, last in known], [last.std or 0.0 for _, last in known]
                _draw_series(axes, [epochs for epochs, _ in known], mean, std, curve.name, styles[curve.name])
        epochs = sorted({point.epochs for curve in curves for point in curve.points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(epochs, [str(number) for number in epochs])
        axes.minorticks_off()
        axes.set(xlabel="total epochs", ylabel="test error after the last epoch (%)", title=titles[side])
        axes.grid(alpha=0.3)
    return figure


def plot_kl_ratios(curves: Sequence[KLRatioCurve]) -> Figure:
    """Draw r over the iterations (Figure 4): mean and standard deviation over the steps."""
    figure, axes = _single_axes()
    for curve, style in zip(curves, series_styles(), strict=False):
        _draw_series(axes, curve.at, curve.mean, curve.std, curve.name, style)
    axes.axhline(1, linewidth=0.8, color="#888888")
    axes.set(xlabel="iteration (share of all)", ylabel="KL ratio r, picked over all (no unit)", xlim=(0, 1))
    axes.grid(alpha=0.3)
    return figure


def plot_hardness(hardness: Hardness) -> Figure:
    """Draw d over the epochs, and the share of hard images that stay hard."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    d, transitions = figure.subplots(1, 2)
    first, second = islice(series_styles(), 2)
    epochs = [epoch + 1 for epoch in hardness.epochs]
    d.plot(epochs, hardness.median, color=first.color, marker=first.marker, label="median")
    band = "10th to 90th percentile"
    d.fill_between(epochs, hardness.low, hardness.high, color=first.color, alpha=BAND_ALPHA, label=band)
    d.set(xlabel="epoch", ylabel="d of x (nats)", ylim=(0, None))
    for proportions, label, style in (
        (hardness.stayed_hard, "hard images that were hard before", first),
        (hardness.became_hard, "other images that became hard", second),
    ):
        percent = [proportion.percent or 0.0 for proportion in proportions]
        transitions.plot(epochs[1:], percent, label=label, **style._asdict())
    transitions.set(xlabel="epoch", ylabel="share (%)", ylim=(0, 100))
    for axes in (d, transitions):
        _integer_ticks(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    return figure


def plot_augmentation_scores(scores: Sequence[AugmentationScore]) -> Figure:
    """Draw the metric of each augmentation with its 95 % interval, in the given order from the top."""
    known = [(score.aug, score.std) for score in scores if score.std is not None]
    figure = Figure(figsize=(7.2, 1.4 + 0.45 * len(known)), layout="constrained")
    axes = figure.subplots()
    style = next(series_styles())
    for position, (_, std) in enumerate(known):
        axes.errorbar(std.value, position, xerr=1.96 * std.error, fmt=style.marker, color=style.color, capsize=3)
    axes.set_yticks(range(len(known)), [shortened(aug, NAME_CHARS) for aug, _ in known])
    axes.invert_yaxis()
    axes.set(xlabel="standard deviation of the teacher's mean probability (lower is better)")
    axes.grid(alpha=0.3, axis="x")
    return figure


def draw_by_lambda(counts: LabelDisagreement) -> Figure:
    """Draw label disagreement by lambda with its 95 % interval."""
    figure, axes = _single_axes()
    style = next(series_styles())
    for low, high, proportion in counts.by_lambda:
        if proportion.percent is None or proportion.interval is None:
            continue
        below, above = proportion.percent - proportion.interval[0], proportion.interval[1] - proportion.percent
        axes.errorbar(
            (low + high) / 2,
            proportion.percent,
            yerr=[[max(0, below)], [max(0, above)]],
            xerr=(high - low) / 2,
            fmt=style.marker,
            color=style.color,
            capsize=3,
        )
    xlabel = "lambda (share of the first image)"
    axes.set(xlabel=xlabel, ylabel="label disagreement (%)", xlim=(0, 1), ylim=(0, 100))
    axes.grid(alpha=0.3)
    return figure


def _single_axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    return figure, figure.subplots()


def _draw_series(
    axes: Axes,
    at: Sequence[float],
    mean: Sequence[float],
    std: Sequence[float],
    label: str,
    style: SeriesStyle,
) -> None:
    every = -(-len(at) // MARKED_POINTS)
    axes.plot(at, mean, **style._asdict(), markersize=4, markevery=every or 1, label=label)
    if any(std):
        low = [value - spread for value, spread in zip(mean, std, strict=True)]
        high = [value + spread for value, spread in zip(mean, std, strict=True)]
        axes.fill_between(at, low, high, color=style.color, alpha=BAND_ALPHA, linewidth=0)


def _integer_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
