"""Charts of analyses. Each has units at its axes, and series that differ in colour, stroke and marker."""

from collections.abc import Sequence
from itertools import islice

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdcache.analysis.augmentations import AugmentationScore
from kdcache.analysis.curves import ErrorCurve
from kdcache.analysis.disagreement_counts import DisagreementCounts
from kdcache.analysis.groups import RunGroup
from kdcache.analysis.hardness import Hardness
from kdcache.analysis.kl_ratio import RatioCurve
from kdcache.report.style import looks

__all__ = [
    "draw_augmentation_scores",
    "draw_by_lambda",
    "draw_error_curves",
    "draw_hardness",
    "draw_over_epochs",
    "draw_ratios",
]

SHADE = 0.18


def draw_over_epochs(groups: Sequence[RunGroup], name: str, label: str, scale: float = 1.0) -> Figure:
    """Draw a figure of the metrics over the epochs, as the mean over the runs of each group and its deviation.

    Parameters
    ----------
    groups : sequence of RunGroup
    name : str
        A field of `kdcache.run.folder.EpochMetrics`.
    label : str
        Of the axis, with its unit.
    scale : float
        Brings the figure to that unit.
    """
    figure, axes = _one()
    for group, look in zip(groups, looks(), strict=False):
        found = group.by_epoch(name)
        if not found:
            continue
        mean = [scale * (figure.mean or 0.0) for _, figure in found]
        std = [scale * (figure.std or 0.0) for _, figure in found]
        few = {"marker": look.marker} if len(found) <= 40 else {}
        _line(axes, [epoch for epoch, _ in found], mean, std, group.name, look.color, look.linestyle, **few)
    axes.set(xlabel="epoch", ylabel=label)
    _whole_numbers(axes)
    _legend(axes)
    return figure


def draw_error_curves(curves: Sequence[ErrorCurve], stacked: bool = False) -> Figure:
    """Draw the test error against the total number of epochs, without and with augmentation (Figures 1 and 3).

    The two panels stand side by side, or one below the other where the page is narrow.
    """
    titles = {False: "without augmentation", True: "with augmentation"}
    sides = [side for side in titles if any(curve.augmented is side for curve in curves)]
    rows, columns = (len(sides), 1) if stacked else (1, len(sides))
    figure = Figure(figsize=(0.6 + 5 * columns, 0.2 + 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    style = dict(zip((curve.name for curve in curves), looks(), strict=False))
    for axes, side in zip(panels, sides, strict=False):
        for curve in curves:
            if curve.augmented is not side:
                continue
            look = style[curve.name]
            known = [(point.epochs, point.last) for point in curve.points if point.last.mean is not None]
            mean, std = [last.mean or 0.0 for _, last in known], [last.std or 0.0 for _, last in known]
            epochs = [epochs for epochs, _ in known]
            _line(axes, epochs, mean, std, curve.name, look.color, look.linestyle, marker=look.marker)
        lengths = sorted({point.epochs for curve in curves for point in curve.points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        axes.set(xlabel="total epochs", ylabel="test error after the last epoch (%)", title=titles[side])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    return figure


def draw_ratios(curves: Sequence[RatioCurve]) -> Figure:
    """Draw r over the normalised iterations (Figure 4), with its deviation over the steps."""
    figure, axes = _one()
    for curve, look in zip(curves, looks(), strict=False):
        _line(axes, curve.at, curve.mean, curve.std, curve.name, look.color, look.linestyle)
    axes.axhline(1, linewidth=0.8, color="#888888")
    axes.set(xlabel="iteration (share of all)", ylabel="KL ratio r, picked over all (no unit)", xlim=(0, 1))
    _legend(axes)
    return figure


def draw_hardness(found: Hardness) -> Figure:
    """Draw d over the epochs, and how many hard images stay hard."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    d, stay = figure.subplots(1, 2)
    first, second = islice(looks(), 2)
    epochs = [epoch + 1 for epoch in found.epochs]
    d.plot(epochs, found.median, color=first.color, marker=first.marker, label="median")
    d.fill_between(epochs, found.low, found.high, color=first.color, alpha=SHADE, label="10th to 90th percentile")
    d.set(xlabel="epoch", ylabel="d of x (nats)", ylim=(0, None))
    for shares, label, look in (
        (found.stayed, "hard images that were hard before", first),
        (found.became, "other images that became hard", second),
    ):
        percent = [share.percent or 0.0 for share in shares]
        stay.plot(epochs[1:], percent, color=look.color, linestyle=look.linestyle, marker=look.marker, label=label)
    stay.set(xlabel="epoch", ylabel="share (%)", ylim=(0, 100))
    for axes in (d, stay):
        _whole_numbers(axes)
        _legend(axes)
    return figure


def draw_augmentation_scores(scores: Sequence[AugmentationScore]) -> Figure:
    """Draw the metric of each augmentation with its 95 % interval, the best at the top."""
    known = [(score.aug, score.std) for score in scores if score.std is not None]
    figure = Figure(figsize=(7.2, 1.4 + 0.45 * len(known)), layout="constrained")
    axes = figure.subplots()
    look = next(looks())
    for place, (_, std) in enumerate(known):
        axes.errorbar(std.value, place, xerr=1.96 * std.error, fmt=look.marker, color=look.color, capsize=3)
    axes.set_yticks(range(len(known)), [aug for aug, _ in known])
    axes.invert_yaxis()
    axes.set(xlabel="standard deviation of the teacher's mean probability (lower is better)")
    axes.grid(alpha=0.3, axis="x")
    return figure


def draw_by_lambda(found: DisagreementCounts) -> Figure:
    """Draw the share of disputed labels by lambda, with its 95 % interval."""
    figure, axes = _one()
    look = next(looks())
    for low, high, share in found.by_lambda:
        if share.percent is None or share.interval is None:
            continue
        below, above = share.percent - share.interval[0], share.interval[1] - share.percent
        axes.errorbar(
            (low + high) / 2, share.percent, [[max(0, below)], [max(0, above)]], (high - low) / 2, look.marker,
            color=look.color, capsize=3,
        )  # fmt: skip
    axes.set(xlabel="lambda, the first image's share", ylabel="disputed labels (%)", xlim=(0, 1), ylim=(0, 100))
    axes.grid(alpha=0.3)
    return figure


def _one() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    return figure, figure.subplots()


def _line(
    axes: Axes,
    at: Sequence[float],
    mean: Sequence[float],
    std: Sequence[float],
    label: str,
    color: str,
    linestyle: str,
    marker: str = "",
) -> None:
    axes.plot(at, mean, color=color, linestyle=linestyle, marker=marker, markersize=4, label=label)
    if any(std):
        low = [value - spread for value, spread in zip(mean, std, strict=True)]
        high = [value + spread for value, spread in zip(mean, std, strict=True)]
        axes.fill_between(at, low, high, color=color, alpha=SHADE, linewidth=0)


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
